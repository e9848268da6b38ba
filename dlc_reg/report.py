"""Pictures of a registration: one offline page, and one before/after figure, which needs the extra `viz`."""

from __future__ import annotations

import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dlc_reg._report_page import SIGNS, page, why
from dlc_reg._report_picture import SOURCE, TARGET, colours, framed, hexadecimal, picture
from dlc_reg._report_scene import Scene, build_scene
from dlc_reg.io import replacing
from dlc_reg.registration.result import RegistrationResult, Verdict

VERDICT_COLOURS = {
    Verdict.ALIGNED: "#0b6e4f",
    Verdict.AMBIGUOUS: "#8a5a00",
    Verdict.DOUBTFUL: "#8a5a00",
    Verdict.FAILED: "#a4262c",
}


def headline(result: RegistrationResult) -> str:
    """The verdict in one sentence: "aligned: 62% of the source lies on the target"."""
    return f"{result.verdict or 'no verdict'}: {'; '.join(why(result))}"


def require_viz() -> None:
    """Raises `ImportError` that names the remedy, unless the extra `viz` is installed: `plot` needs it."""
    if find_spec("matplotlib") is None:
        raise ImportError('drawing needs matplotlib: pip install "dlc_reg[viz]"')


def write_report(result: RegistrationResult, path: str | Path, *, overwrite: bool = False) -> Path:
    """Writes one HTML page that needs no network: verdict, before/after in 3D, residuals, iterations, pose, settings.

    The file appears whole or not at all. Raises `FileExistsError` unless `overwrite`, `InputError` where
    `result.clouds` is None.
    """
    with replacing(Path(path), overwrite=overwrite) as temporary:
        temporary.write_text(page(result, build_scene(result)), encoding="utf-8")
    return Path(path)


def plot(result: RegistrationResult, path: str | Path | None = None) -> Any:
    """The verdict with its reasons, and before and after side by side beneath: a Matplotlib `Figure` (extra `viz`).

    It belongs to no window and changes no global state of Matplotlib. `path` (png, pdf, svg, jpg) saves it as well,
    and replaces what is there. Raises `ImportError` without the extra, `InputError` where `result.clouds` is None.
    """
    require_viz()
    figure = _figure(result, build_scene(result, limit=60_000))
    if path is not None:
        with replacing(Path(path), overwrite=True) as temporary:
            figure.savefig(temporary, dpi=160)
    return figure


def _figure(result: RegistrationResult, scene: Scene) -> Any:
    from matplotlib.figure import Figure

    verdict = f"{SIGNS[result.verdict]} {result.verdict}" if result.verdict else "no verdict"
    colour = VERDICT_COLOURS.get(result.verdict, "#444444") if result.verdict else "#444444"
    reasons = [line for reason in why(result) for line in textwrap.wrap(reason, 112)]
    camera = np.stack([np.cross(scene.up, scene.view), scene.up])
    panels = [("before", scene.before, scene.before_shade), ("after", scene.after, scene.after_shade)]
    halves = [framed(np.concatenate([source, scene.target]) @ camera.T)[1] for _, source, _ in panels]
    width, line = 10.0, 0.24  # inches
    wide = 0.48 * width
    tall = wide * float(np.clip(max(half[1] / half[0] for half in halves), 0.4, 1))
    head = 0.95 + line * len(reasons)
    height = head + tall + 0.35
    figure = Figure(figsize=(width, height), facecolor="white")
    middle: dict[str, Any] = {"ha": "center", "va": "center"}
    figure.text(0.5, 1 - 0.32 / height, verdict.upper(), fontsize=19, weight="bold", color=colour, **middle)
    for row, reason in enumerate(reasons):
        y = 1 - (0.68 + line * row) / height
        figure.text(0.5, y, reason, fontsize=11, color="#222222", parse_math=False, **middle)
    for column, (name, source, shade) in enumerate(panels):
        axes = figure.add_axes((0.01 + 0.5 * column, 0.35 / height, wide / width, tall / height))
        axes.set_axis_off()
        axes.set_title(name, fontsize=13, color="#333333")
        painted = np.concatenate([colours(SOURCE, shade), colours(TARGET, scene.target_shade)])
        size = (1000, round(1000 * tall / wide))
        image = picture(np.concatenate([source, scene.target]), painted, scene.view, scene.up, size)
        axes.imshow(image, aspect="auto")
    keys = ((0.495, "right", "source", SOURCE), (0.505, "left", "target", TARGET))
    for (x, align, label, ramp), cloud in zip(keys, result.clouds or (), strict=True):
        name = cloud.name if len(cloud.name) <= 48 else "…" + cloud.name[-47:]
        named = label if name in (label, "") else f"{label}: {name}"
        style: dict[str, Any] = {"fontsize": 11, "color": hexadecimal(ramp, 0.72), "parse_math": False}
        figure.text(x, 0.17 / height, f"● {named}", ha=align, va="center", **style)
    return figure
