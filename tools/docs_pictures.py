"""Draws the pictures of the documents that need no data: `python tools/docs_pictures.py` writes them to docs/images.

bunny.jpg is what `dlc-reg demo --plot` draws. The others on the pages come from tools/landscape.py, with the command
beside them, and from the page's own code (frequency.png).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import dlc_reg

ROOT = Path(__file__).resolve().parent.parent
SOURCE, TARGET, INK = "#d1660f", "#1f6fb5", "#333333"
WALLS = np.array([[0, 0], [6, 0], [6, 2.2], [4.2, 2.2], [4.2, 4], [0, 4], [0, 0]], float)
SHAPE = np.array([[0.5, 0.2], [2.1, 0.2], [2.1, 0.7], [1.1, 0.7], [1.1, 1.4], [0.5, 1.4], [0.5, 0.2]])


def rigid(angle_deg: float, x: float, y: float) -> np.ndarray:
    """(3, 3), a turn and a shift of the plane."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.array([[c, -s, x], [s, c, y], [0, 0, 1]])


def moved(T: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ T[:2, :2].T + T[:2, 2]


def arrow(axes: Axes, start: np.ndarray, end: np.ndarray, color: str, **style: object) -> None:
    properties = {"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.6} | style
    axes.annotate("", end, start, arrowprops=properties)


def frame(axes: Axes, T: np.ndarray, name: str, color: str, below: float = 0.35) -> None:
    for axis, label in (([0.8, 0], "x"), ([0, 0.8], "y")):
        arrow(axes, T[:2, 2], moved(T, np.array(axis)), color, linewidth=2)
        axes.text(*moved(T, np.array(axis) * 1.22), label, color=color, ha="center", va="center", fontsize=9)
    axes.plot(*T[:2, 2], "o", color=color, markersize=5)
    axes.text(*(T[:2, 2] - [0, below]), name, color=color, ha="center", va="top", fontsize=10)


def bare(axes: Axes) -> None:
    axes.set_aspect("equal")
    axes.axis("off")


def frames() -> Figure:
    """One room, two sensors, one corner."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*WALLS.T, color="#999999", linewidth=3, solid_joinstyle="miter")
    target, source = rigid(0, 1.2, 0.9), rigid(-35, 3.2, 1.5)
    corner = WALLS[4]
    frame(axes, target, "target", TARGET)
    frame(axes, source, "source", SOURCE, below=0.62)
    for T, color in ((target, TARGET), (source, SOURCE)):
        arrow(axes, T[:2, 2], corner, color, linestyle=(0, (5, 3)))
    axes.plot(*corner, "o", color=INK, markersize=7)
    arrow(axes, target[:2, 2], source[:2, 2], INK)
    axes.text(2.3, 0.98, "t", color=INK, fontsize=12, style="italic")
    axes.text(2.5, 2.6, "p'", color=TARGET, fontsize=12, style="italic")
    axes.text(3.55, 2.85, "p", color=SOURCE, fontsize=12, style="italic", ha="right")
    axes.text(3, -0.5, "p' = R p + t,  T_target_source = (R, t)", color=INK, ha="center", fontsize=11, va="center")
    bare(axes)
    return figure


def directions() -> Figure:
    """The same small turn on either side of a pose."""
    figure = Figure(figsize=(7.6, 3.3), layout="constrained")
    pose, turn = rigid(20, 2.4, 0.7), rigid(22, 0, 0)
    names = {"left: exp(xi) T   (here)": turn @ pose, "right: T exp(xi)   (GTSAM, g2o)": pose @ turn}
    for axes, (name, other) in zip(figure.subplots(1, 2, sharex=True, sharey=True), names.items(), strict=True):
        frame(axes, np.eye(3), "target", TARGET, below=0.2)
        frame(axes, pose, "source", SOURCE, below=0.25)
        axes.fill(*moved(pose, SHAPE).T, facecolor=SOURCE, alpha=0.25, edgecolor=SOURCE)
        axes.fill(*moved(other, SHAPE).T, facecolor="none", edgecolor=INK, linestyle=(0, (4, 2)))
        centre = np.zeros(2) if name.startswith("left") else pose[:2, 2]
        corners = [moved(T, SHAPE[1]) for T in (pose, other)]
        style = {"connectionstyle": f"arc3,rad={0.2}", "linewidth": 1.2}
        arrow(axes, *corners, INK, **style)
        for corner in corners:
            axes.plot(*np.stack([centre, corner]).T, color=INK, linewidth=0.6, linestyle=":")
        axes.set_title(name, fontsize=11, color=INK)
        axes.set(xlim=(-0.5, 4.8), ylim=(-0.6, 3.8))
        bare(axes)
    return figure


def fitness() -> Figure:
    """Points of a source over a target, and which of them count."""
    figure = Figure(figsize=(7.6, 2.5), layout="constrained")
    axes = figure.subplots()
    x = np.linspace(0, 10, 26)
    target = np.column_stack([x, 0.25 * np.sin(x)])
    u = np.linspace(1.1, 11.9, 12)
    source = np.column_stack([u, 0.25 * np.sin(u) + 0.28 + 0.12 * np.sin(5 * u)])
    flat = (np.pad(points, ((0, 0), (0, 1))).astype(np.float32) for points in (source, target))
    distances, nearest = (column[:, 0] for column in dlc_reg.ops.knn(*flat))
    limit = 0.55
    inlier = distances < limit
    for point, match, ok in zip(source, target[nearest], inlier, strict=True):
        axes.plot(
            *np.stack([point, match]).T, color=INK if ok else "#bbbbbb", linewidth=1, linestyle="-" if ok else ":"
        )
    axes.plot(*target.T, "o", color=TARGET, markersize=5)
    axes.plot(*source[inlier].T, "o", color=SOURCE, markersize=7)
    axes.plot(*source[~inlier].T, "o", markerfacecolor="none", color=SOURCE, markersize=7)
    rmse = np.sqrt(np.mean(distances[inlier] ** 2))
    axes.set_title(
        f"{inlier.sum()} of {len(source)} source points within {limit}: fitness {inlier.mean():.2f}, "
        f"inlier RMSE {rmse:.2f}",
        fontsize=11, color=INK,
    )  # fmt: skip
    axes.text(-0.3, 0, "target", color=TARGET, ha="right", va="center", fontsize=10)
    axes.text(0.8, 0.75, "source", color=SOURCE, ha="right", va="center", fontsize=10)
    axes.set(xlim=(-1.4, 12.4), ylim=(-0.6, 1.0))
    bare(axes)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    out = parser.parse_args().out
    matplotlib.rcParams["svg.hashsalt"] = "dlc_reg"  # the same bytes every time
    for draw in (frames, directions, fitness):
        draw().savefig(out / f"{draw.__name__}.svg", metadata={"Date": None})
    samples = ROOT / "datasets" / "samples" / "bunny"
    dlc_reg.register(samples / "bun045.ply", samples / "bun000.ply").plot(out / "bunny.jpg")


if __name__ == "__main__":
    main()
