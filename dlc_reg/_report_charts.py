"""The page's charts as SVG: sharp at any size, in the page's colours, and there without scripts and on paper."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlc_reg._report_picture import HEAT, hexadecimal

BINS = 30
WIDTH, HEIGHT = 440, 260
LEFT, RIGHT, TOP, BOTTOM = 66, WIDTH - 16, 30, HEIGHT - 48


@dataclass(frozen=True)
class Axes:
    """Where numbers lie in the drawing: x from `low` to `high`, y from 0 to `top`."""

    low: float
    high: float
    top: float

    def x(self, value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (value - self.low) / (self.high - self.low)

    def y(self, value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * value / self.top


def histogram(residuals: NDArray[np.float32], limit: float, hottest: float) -> str:
    """Per cent of the source by distance, up to `limit`; `hottest` is the distance where the colours end."""
    counts, edges = np.histogram(residuals[residuals < limit], BINS, (0, limit))
    share = 100 * counts / len(residuals)
    axes = Axes(0, limit, 1.05 * float(share.max()) or 1.0)
    bars = [
        f'<rect x="{axes.x(low):.1f}" y="{axes.y(part):.1f}" width="{(RIGHT - LEFT) / BINS - 1:.1f}" '
        f'height="{BOTTOM - axes.y(part):.1f}" fill="{hexadecimal(HEAT, (low + high) / 2 / hottest)}">'
        f"<title>{part:.1f}% between {low:.3g} and {high:.3g}</title></rect>"
        for low, high, part in zip(edges[:-1], edges[1:], share, strict=True)
        if part
    ]
    beyond = f"{100 - share.sum():.1f}% farther away (grey)" if counts.sum() < len(residuals) else ""
    label = f"Histogram of the distances, median {float(np.median(residuals)):.4g}; {beyond or 'all shown'}"
    return _chart(axes, [*bars, _text(RIGHT, TOP - 12, beyond, "end")], label, "distance, in the points’ unit", "%")


def curves(history: Sequence[dict[str, Any]], key: str, label: str, unit: str = "") -> str:
    """`key` of each record by step, where it is a number. One curve a voxel size: values compare only within one."""
    factor = 100 if unit == "%" else 1
    stages = [
        list(stage) for _, stage in itertools.groupby(enumerate(history, 1), lambda item: item[1].get("voxel_size"))
    ]
    known = [factor * record[key] for record in history if is_number(record.get(key))] or [0.0]
    axes = Axes(0.5, len(history) + 0.5, 100.0 if unit == "%" else 1.1 * max(known) or 1.0)
    marks = []
    for stage in stages:
        (first, record), (last, _) = stage[0], stage[-1]
        if first > 1:
            marks.append(f'<path class="between" d="M{axes.x(first - 0.5):.1f} {TOP}V{BOTTOM}"/>')
        name = _stage(record.get("voxel_size"))
        if axes.x(last + 0.5) - axes.x(first - 0.5) > 7.5 * len(name):
            marks.append(_text(axes.x((first + last) / 2), TOP - 12, name, "middle"))
        spots = [(step, factor * record[key]) for step, record in stage if is_number(record.get(key))]
        line = " ".join(f"{axes.x(step):.1f},{axes.y(value):.1f}" for step, value in spots)
        marks.append(f'<polyline points="{line}"/>')
        marks += [
            f'<circle cx="{axes.x(step):.1f}" cy="{axes.y(value):.1f}" r="3">'
            f"<title>{name} step {step}: {value:.4g}{unit}</title></circle>"
            for step, value in spots
        ]
    label = f"{label} by step, from {known[0]:.4g}{unit} to {known[-1]:.4g}{unit}"
    return _chart(axes, marks, label, "step", unit, whole=True)


def is_number(value: Any) -> bool:
    """Whether a record has it: neither missing nor NaN nor infinite."""
    return value is not None and math.isfinite(value)


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """About four round numbers from `low` to `high`: 1, 2 or 5 times a power of ten apart."""
    wanted = max((high - low) / 5, 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(wanted))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted * (1 - 1e-9))
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _chart(axes: Axes, marks: Sequence[str], label: str, below: str, unit: str, whole: bool = False) -> str:
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">']
    for value in ticks(0, axes.top):
        parts.append(f'<path class="grid" d="M{LEFT} {axes.y(value):.1f}H{RIGHT}"/>')
        parts.append(_text(LEFT - 8, axes.y(value) + 4, f"{value:.6g}{unit}", "end"))
    parts += [
        _text(axes.x(value), BOTTOM + 18, f"{value:.6g}", "middle") for value in ticks(axes.low, axes.high, whole)
    ]
    parts.append(_text((LEFT + RIGHT) / 2, HEIGHT - 8, below, "middle"))
    return "".join([*parts, *marks, "</svg>"])


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'


def _stage(voxel: float | None) -> str:
    return "" if voxel is None else f"voxel {voxel:.2g}" if voxel else "all points"
