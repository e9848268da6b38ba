"""What an evaluation prints: the field's table, with published values beside it, as text that is Markdown too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """A row of somebody's table; figures by the columns' names, angles in degrees."""

    method: str
    source: str
    figures: dict[str, float]


@dataclass(frozen=True)
class PublishedTable:
    """Rows for one protocol, and how their data differ from what is evaluated here."""

    rows: tuple[Published, ...]
    differs: str


_REGTR = "as quoted by RegTR, CVPR 2022"
_MODELNET = "ModelNet40's last 20 categories, the papers' own test files; both clouds drawn from the same 2,048 points"
_DEMO = "public notebook of the DLC authors' registration demo"


def _isotropic(method: str, rotation: float, translation: float, source: str = _REGTR) -> Published:
    return Published(method, source, {"rotation_mean": rotation, "translation_mean": translation})


PUBLISHED: dict[str, PublishedTable] = {
    "rpmnet": PublishedTable(
        (
            _isotropic("DCP-v2", 11.98, 0.171),
            _isotropic("RPM-Net", 1.71, 0.018),
            _isotropic("Predator", 1.74, 0.019),
            _isotropic("RegTR", 1.47, 0.014),
        ),
        _MODELNET,
    ),
    "modelonet": PublishedTable(
        (
            _isotropic("DCP-v2", 16.5, 0.300),
            _isotropic("RPM-Net", 7.34, 0.124),
            _isotropic("Predator", 5.24, 0.132),
            _isotropic("RegTR", 3.93, 0.087),
        ),
        _MODELNET,
    ),
    "prnet": PublishedTable(
        (
            Published(
                "PRNet, learning3d's weights",
                "learning3d, its own test",
                {"euler_rmse": 5.41, "euler_mae": 2.79, "translation_rmse": 0.034, "translation_mae": 0.022},
            ),
        ),
        "ModelNet40, 768 of 1,024 points, the same points in both clouds",
    ),
    "dcp": PublishedTable(
        (
            Published(
                "PRNet + ICP, without DLC, all categories",
                _DEMO,
                {"euler_rmse": 15.8**0.5, "euler_mae": 0.76, "translation_rmse": 2.1e-5**0.5},
            ),
            Published(
                "PRNet + ICP, without DLC, unseen categories",
                _DEMO,
                {"euler_rmse": 16.5**0.5, "euler_mae": 0.66, "translation_rmse": 1.7e-5**0.5},
            ),
            Published(
                "PRNet + ICP, with DLC, all categories, 1,800 of 2,468 pairs",
                _DEMO,
                {"euler_rmse": 8.4**0.5, "translation_rmse": 2.0e-5**0.5},
            ),
        ),
        "ModelNet40, 1,024 points, the same in both clouds; with DLC three rounds of the network, without it one",
    ),
}
"""By the protocol's name. RMSE are roots of the mean squares that were printed."""


def published(protocol: str) -> PublishedTable | None:
    """The table that stands beside this protocol; of an independent form, that of the papers' form, and it says so."""
    if protocol in PUBLISHED:
        return PUBLISHED[protocol]
    base = {"dcp-resampled": "dcp"}.get(protocol, protocol.removesuffix("-independent"))
    if base not in PUBLISHED or base == protocol:
        return None
    table = PUBLISHED[base]
    return PublishedTable(table.rows, f"{table.differs}; here the clouds have no point in common, which is harder")


@dataclass(frozen=True)
class Column:
    key: str
    title: str
    form: str = ".3f"


COLUMNS = (
    Column("rotation_mean", "rot mean [deg]"),
    Column("rotation_median", "median"),
    Column("translation_mean", "trans mean", ".4f"),
    Column("translation_median", "median", ".4f"),
    Column("euler_rmse", "Euler RMSE [deg]"),
    Column("euler_mae", "MAE"),
    Column("translation_rmse", "trans RMSE", ".4f"),
    Column("translation_mae", "MAE", ".4f"),
    Column("chamfer", "mod. Chamfer", ".5f"),
    Column("recall_1", "< 1 deg"),
    Column("recall_5", "< 5 deg"),
    Column("recall_10", "< 10 deg"),
    Column("seconds", "s a pair", ".4f"),
)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose source is aligned too; the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    ruler = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(header), line(ruler), *(line(row) for row in rows)])


@dataclass(frozen=True)
class Ruled:
    """Rows by name, each with figures by column."""

    rows: dict[str, dict[str, float]] = field(default_factory=dict)

    def text(self, protocol: str) -> str:
        """The table of these rows, and the published one below it."""
        header = ["method", *(c.title for c in COLUMNS)]
        body = [[name, *_cells(figures)] for name, figures in self.rows.items()]
        beside = published(protocol)
        lines = []
        if beside is not None:
            body += [[f"*{row.method}*", *_cells(row.figures)] for row in beside.rows]
            sources = ", ".join(dict.fromkeys(row.source for row in beside.rows))
            lines = ["", f"In italics: published ({sources}), not run here. Their data: {beside.differs}."]
        return "\n".join([markdown(header, body), *lines])


def _cells(figures: dict[str, float]) -> list[str]:
    """Empty where there is no figure, or NaN."""
    values = [figures.get(c.key, math.nan) for c in COLUMNS]
    return ["" if math.isnan(v) else format(v, c.form) for v, c in zip(values, COLUMNS, strict=True)]
