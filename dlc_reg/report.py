"""Pictures of a registration: one offline page, and one before/after figure. Both need the extra `viz`."""

from __future__ import annotations

import io
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlc_reg._report_scene import Scene, build_scene
from dlc_reg.io import replacing
from dlc_reg.registration.result import RegistrationResult, Verdict

# Okabe and Ito's orange and blue, dark to light: told apart by every kind of colour vision, and in grey.
SOURCE_RAMP = ("#7a3b00", "#f5a623")
TARGET_RAMP = ("#0a3561", "#4aa5e8")
VERDICT_COLOURS = {
    Verdict.ALIGNED: "#0b6e4f",
    Verdict.AMBIGUOUS: "#8a5a00",
    Verdict.DOUBTFUL: "#8a5a00",
    Verdict.FAILED: "#a4262c",
}


def headline(result: RegistrationResult) -> str:
    """The verdict in one sentence: "aligned: 62% of the source lies on the target"."""
    reasons = "; ".join(result.verdict_reasons) or str(result.status.value)
    return f"{result.verdict or 'no verdict'}: {reasons}"


def require_viz() -> None:
    """Raises `ImportError` that names the remedy, unless the extra `viz` is installed."""
    missing = [name for name in ("plotly", "matplotlib") if find_spec(name) is None]
    if missing:
        raise ImportError(f'drawing needs {" and ".join(missing)}: pip install "dlc_reg[viz]"')


def write_report(result: RegistrationResult, path: str | Path, *, overwrite: bool = False) -> Path:
    """Writes one HTML page that needs no network: before/after in 3D, residuals, iterations, pose, settings.

    The file appears whole or not at all. Raises `FileExistsError` unless `overwrite`, `ImportError` without the extra
    `viz`, `InputError` where `result.clouds` is None.
    """
    require_viz()
    from dlc_reg._report_page import page

    with replacing(Path(path), overwrite=overwrite) as temporary:
        scene = build_scene(result)
        temporary.write_text(page(result, scene, _still(result, scene)), encoding="utf-8")
    return Path(path)


def plot(result: RegistrationResult, path: str | Path | None = None) -> Any:
    """Before and after, side by side, with the verdict beneath: a Matplotlib `Figure` (extra `viz`).

    It belongs to no window and changes no global state of Matplotlib. `path` (png, pdf, svg, jpg) saves it as well,
    and replaces what is there.
    """
    require_viz()
    figure = _figure(result, build_scene(result, limit=60_000))
    if path is not None:
        with replacing(Path(path), overwrite=True) as temporary:
            figure.savefig(temporary, dpi=160)
    return figure


def _still(result: RegistrationResult, scene: Scene) -> bytes:
    buffer = io.BytesIO()
    _figure(result, scene, caption=False).savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _figure(result: RegistrationResult, scene: Scene, caption: bool = True) -> Any:
    from matplotlib.figure import Figure

    camera = np.stack([np.cross(scene.up, scene.view), scene.up, scene.view])
    panels = [("before", scene.before, scene.before_shade), ("after", scene.after, scene.after_shade)]
    flat = [np.concatenate([source, scene.target]) @ camera.T for _, source, _ in panels]
    low, high = _frame(np.concatenate(flat)[:, :2])
    width, head, foot = 10.0, 0.75, 0.75 if caption else 0.1  # inches
    panel = 0.48 * width
    tall = panel * float(np.clip((high[1] - low[1]) / (high[0] - low[0]), 0.4, 1))
    height = head + tall + foot
    figure = Figure(figsize=(width, height), facecolor="white")
    for column, (name, _, shade) in enumerate(panels):
        axes = figure.add_axes((0.01 + 0.5 * column, foot / height, panel / width, tall / height))
        axes.set_axis_off()
        axes.set_title(name, fontsize=13, color="#333333")
        xyz = flat[column]
        order = np.argsort(xyz[:, 2], kind="stable")  # far to near: the painter's algorithm
        colours = np.concatenate([_ramp(SOURCE_RAMP, shade), _ramp(TARGET_RAMP, scene.target_shade)])
        size = float(np.clip(70_000 / len(xyz), 0.5, 12))
        axes.scatter(xyz[order, 0], xyz[order, 1], s=size, c=colours[order], linewidths=0, rasterized=True)
        axes.set_xlim(low[0], high[0])
        axes.set_ylim(low[1], high[1])
        axes.set_aspect("equal")
    for x, align, label, ramp in ((0.495, "right", "● source", SOURCE_RAMP), (0.505, "left", "● target", TARGET_RAMP)):
        colour = _hex(_ramp(ramp, np.array([0.72]))[0])
        figure.text(x, 1 - 0.2 / height, label, ha=align, va="center", fontsize=11, color=colour)
    if caption:
        colour = VERDICT_COLOURS.get(result.verdict, "#444444") if result.verdict else "#444444"
        sentence = textwrap.shorten(headline(result), 210, placeholder=" …")
        sentence = textwrap.fill(sentence, 116 if len(sentence) <= 116 else 8 + len(sentence) // 2)
        figure.text(0.5, 0.36 / height, sentence, ha="center", va="center", fontsize=11, color=colour, parse_math=False)
    return figure


def _frame(flat: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    low, high = flat.min(axis=0), flat.max(axis=0)
    margin = 0.02 * max(float((high - low).max()), 1e-12)
    return low - margin, high + margin


def _ramp(ramp: tuple[str, str], shade: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n, 3) colours in [0, 1] between the two ends of `ramp`."""
    dark, light = (np.array([int(end[i : i + 2], 16) for i in (1, 3, 5)]) / 255 for end in ramp)
    return np.asarray(dark + np.asarray(shade, dtype=np.float64)[:, None] * (light - dark))


def _hex(colour: NDArray[np.float64]) -> str:
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in colour)
