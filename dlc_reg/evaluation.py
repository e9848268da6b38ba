"""Evaluation of registration methods: the same pairs for all of them, in one run, without a way to the ground truth.

    results = evaluate(shapes, "rpmnet-independent", ["identity", "icp", "learned:weights.safetensors"], pairs=500)
    print(results.text())
    results.save("results")      # results.json, pairs.csv

Methods get `Clouds`, which hold no pose; the truths stay here, and meet the estimates when all of them are there.
"""

from __future__ import annotations

import csv
import math
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dlc_reg._baselines import METHODS, REFINEMENTS
from dlc_reg._landscapes import basin_of, basin_radius, iterations_to_converge, slices, violation_curve, violation_rate
from dlc_reg._methods import (
    TOGETHER,
    Clouds,
    Learned,
    Method,
    OneByOne,
    Polished,
    about_weights,
    installed,
    learned,
    method,
)
from dlc_reg._symmetry import is_symmetric, keep_asymmetric, symmetric_shapes
from dlc_reg._tables import PUBLISHED, Ruled, markdown
from dlc_reg.errors import InputError
from dlc_reg.io import read_columns, replacing
from dlc_reg.metrics import euler_errors, modified_chamfer, rotation_error, translation_error
from dlc_reg.protocols import Pair, PairDataset, Protocol, Shapes
from dlc_reg.protocols import protocol as find_protocol
from dlc_reg.registration.result import strict_json

__all__ = [
    "BINS",
    "FILES",
    "METHODS",
    "PUBLISHED",
    "REFINEMENTS",
    "Clouds",
    "Learned",
    "Method",
    "OneByOne",
    "Polished",
    "Results",
    "about_weights",
    "basin_of",
    "basin_radius",
    "evaluate",
    "installed",
    "is_symmetric",
    "iterations_to_converge",
    "keep_asymmetric",
    "learned",
    "licences",
    "markdown",
    "method",
    "provenance",
    "slices",
    "success_by_rotation",
    "symmetric_shapes",
    "violation_curve",
    "violation_rate",
]

Array = NDArray[Any]

THRESHOLDS = (1, 5, 10)  # degrees
BINS = ((0, 30), (30, 60), (60, 90), (90, 120), (120, 150), (150, 180))  # degrees of initial rotation
FILES = ("results.json", "pairs.csv")


@dataclass(frozen=True, eq=False)
class Results:
    """Estimates of all methods on the same pairs, with their errors."""

    protocol: Protocol
    truths: Array  # (P, 4, 4)
    indices: Array  # (P,) of the shapes
    estimates: dict[str, Array]  # (P, 4, 4) a method
    seconds: dict[str, float]  # a pair
    chamfers: dict[str, Array]  # (P,) modified Chamfer distances; NaN where they were not asked for
    about: dict[str, Any] = field(default_factory=dict)

    def figures(self) -> dict[str, dict[str, float]]:
        """Of each method, the columns of the table."""
        return {name: self._figures(name) for name in self.estimates}

    def text(self) -> str:
        """The table, with published values where there are any."""
        return Ruled(self.figures()).text(self.protocol.name)

    def errors(self, name: str) -> tuple[Array, Array]:
        """Rotation errors [deg] and translation errors (P,) of a method."""
        estimate = self.estimates[name]
        turned = np.degrees(rotation_error(estimate, self.truths).numpy())
        return turned, translation_error(estimate, self.truths).numpy()

    def save(self, folder: str | Path, *, overwrite: bool = False) -> tuple[Path, Path]:
        """Writes results.json and pairs.csv; returns their paths."""
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        paths = out / FILES[0], out / FILES[1]
        for path in paths:
            if path.exists() and not overwrite:
                raise InputError("folder", f"'{path}', which exists", "a new folder, or overwrite=True")
        document = {**self.about, "protocol": asdict(self.protocol), "pairs": len(self.truths)}
        document["euler_sequence"] = self.euler_sequence
        with replacing(paths[0], overwrite=overwrite) as draft:
            draft.write_text(strict_json({**document, "methods": self.figures()}, indent=2), encoding="utf-8")
        with replacing(paths[1], overwrite=overwrite) as draft, draft.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            entries = [f"{what}_{i}{j}" for what in ("truth", "estimate") for i in range(3) for j in range(4)]
            writer.writerow(["pair", "shape", "method", "rotation_deg", "translation", "chamfer", *entries])
            writer.writerows(self._rows())
        return paths

    @property
    def euler_sequence(self) -> Literal["zyx", "xyz"]:
        """That of the protocol's paper: RPM-Net's where the source is moved, else DCP's and PRNet's."""
        return "xyz" if self.protocol.moves == "source" else "zyx"

    def _figures(self, name: str) -> dict[str, float]:
        turned, moved = self.errors(name)
        euler = euler_errors(self.estimates[name], self.truths, self.euler_sequence)
        return {
            "rotation_mean": float(turned.mean()),
            "rotation_median": float(np.median(turned)),
            "translation_mean": float(moved.mean()),
            "translation_median": float(np.median(moved)),
            "euler_rmse": euler.rotation_rmse_deg,
            "euler_mae": euler.rotation_mae_deg,
            "translation_rmse": euler.translation_rmse,
            "translation_mae": euler.translation_mae,
            "chamfer": float(self.chamfers[name].mean()),
            **{f"recall_{t}": float((turned < t).mean()) for t in THRESHOLDS},
            "seconds": self.seconds[name],
        }

    def _rows(self) -> list[list[Any]]:
        rows = []
        for name, estimate in self.estimates.items():
            turned, moved = self.errors(name)
            for i, (truth, pose) in enumerate(zip(self.truths, estimate, strict=True)):
                entries = [f"{x:.9g}" for x in (*truth[:3].ravel(), *pose[:3].ravel())]
                figures = ["" if math.isnan(x) else f"{x:.6g}" for x in (turned[i], moved[i], self.chamfers[name][i])]
                rows.append([i, int(self.indices[i]), name, *figures, *entries])
        return rows


def evaluate(
    shapes: Shapes,
    protocol: str | Protocol,
    methods: Sequence[str | Method],
    *,
    pairs: int | None = None,
    seed: int = 0,
    chamfer: bool = True,
    progress: bool = False,
) -> Results:
    """Runs the methods on the same pairs.

    Args:
        shapes: those to make pairs of, chosen already (`Shapes.select`, `keep_asymmetric`).
        pairs: how many; None is one a shape.
        chamfer: compute the modified Chamfer distance too, which takes longer than some methods.

    An estimate that is not finite counts as the identity.
    """
    chosen = find_protocol(protocol) if isinstance(protocol, str) else protocol
    runners = [method(m) if isinstance(m, str) else m for m in methods]
    if len({r.name for r in runners}) < len(runners):
        raise InputError("methods", ", ".join(r.name for r in runners), "different names")
    data = PairDataset(shapes, chosen, seed, pairs)
    given = [data[i] for i in range(len(data))]
    truths = np.stack([pair.truth.double().numpy() for pair in given])
    clouds = [blind(pair) for pair in given]
    estimates: dict[str, Array] = {}
    seconds: dict[str, float] = {}
    for runner in runners:
        first = runner.method.name if isinstance(runner, Polished) else ""
        estimates[runner.name], seconds[runner.name] = _run(runner, clouds, estimates.get(first), progress)
        seconds[runner.name] += seconds.get(first, 0.0)
    chamfers = {n: _chamfers(data, given, e) if chamfer else np.full(len(e), math.nan) for n, e in estimates.items()}
    about = {
        "seed": seed,
        "data_checksum": shapes.checksum,
        "shapes": len(shapes),
        "about_methods": {runner.name: dict(runner.about) for runner in runners},
        **provenance(),
    }
    indices = np.array([pair.index for pair in given])
    return Results(chosen, truths, indices, estimates, seconds, chamfers, about)


def blind(pair: Pair) -> Clouds:
    """A pair without what must not be known."""
    return Clouds(pair.source.double().numpy(), pair.target.double().numpy())


def success_by_rotation(
    shapes: Shapes,
    methods: Sequence[str | Method],
    *,
    bins: Sequence[tuple[int, int]] = BINS,
    pairs: int | None = None,
    points: int | None = None,
    noise: bool = False,
    degrees: Sequence[float] = (5.0, 10.0),
    seed: int = 0,
    progress: bool = False,
) -> dict[str, dict[tuple[int, int], dict[str, float]]]:
    """Of each method and each bin of initial rotations [deg], the share of pairs within so many degrees.

    Whole clouds without a point in common (protocol full-LO-HI), jittered if `noise`, of `points` points.
    """
    table: dict[str, dict[tuple[int, int], dict[str, float]]] = {}
    for low, high in bins:
        protocol = find_protocol(f"full-{low}-{high}" + ("-noise" if noise else ""))
        if points is not None:
            protocol = Protocol(**{**asdict(protocol), "points": points})
        results = evaluate(shapes, protocol, methods, pairs=pairs, seed=seed, chamfer=False, progress=progress)
        for name in results.estimates:
            turned, _ = results.errors(name)
            figures = {f"within_{d:g}": float((turned < d).mean()) for d in degrees}
            table.setdefault(name, {})[(low, high)] = figures
    return table


def licences(path: str | Path) -> list[str]:
    """The licences that a prepared file names for its shapes, in its column "licence"; empty if it has none."""
    return sorted({str(x) for x in read_columns(path, (), "a script", optional=("licence",)).get("licence", ())})


def provenance() -> dict[str, Any]:
    """Where figures come from: commit, versions, hardware and time."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
        except OSError:  # no git here
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    ours = git("ls-files", Path(__file__).name)  # an installed package may lie in somebody else's checkout
    commit = (git("rev-parse", "HEAD") if ours else "") or "unknown: not a git checkout"
    changed = ours and git("status", "--porcelain", "--untracked-files=no")
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "commit": commit + (" with changes" if changed else ""),
        "versions": {
            "dlc_reg": sys.modules["dlc_reg"].__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "hardware": {"processor": _processor(), "threads": torch.get_num_threads(), "gpu": cuda},
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _run(runner: Method, clouds: list[Clouds], before: Array | None, progress: bool) -> tuple[Array, float]:
    """Estimates (P, 4, 4), and seconds a pair after a run on one pair that warms up.

    `before`: what the method that the runner polishes has found already; the seconds are then of the polish alone.
    """
    from tqdm import tqdm

    def run(rows: slice) -> Array:
        if before is not None and isinstance(runner, Polished):
            return runner.after(clouds[rows], before[rows])
        return runner(clouds[rows])

    run(slice(1))
    found, began = [], time.perf_counter()
    starts = range(0, len(clouds), TOGETHER)
    for start in tqdm(starts, desc=runner.name, disable=not progress, leave=False):
        found.append(run(slice(start, start + TOGETHER)))
    took = (time.perf_counter() - began) / len(clouds)
    poses: Array = np.concatenate(found)
    poses[~np.isfinite(poses).all((1, 2))] = np.eye(4)
    return poses, took


def _chamfers(data: PairDataset, pairs: list[Pair], estimates: Array) -> Array:
    """RPM-Net's modified Chamfer distance of each pair."""
    given = zip(pairs, estimates, strict=True)
    clouds = [
        (estimate, pair.truth, pair.source, pair.target, data.clean_target(i))
        for i, (pair, estimate) in enumerate(given)
    ]
    return np.array([float(modified_chamfer(*c)) for c in clouds])
