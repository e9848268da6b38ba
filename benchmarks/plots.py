"""Plots of the results: growth on logarithmic axes, and how many times as long as ours the others take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from growth import curves
from harness import OURS, Result


def draw(results: Sequence[Result], folder: Path) -> list[Path] | None:
    """SVG files, one a benchmark and number of threads; None where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "benchmarks"  # the same figures make the same file
    found = []
    for threads in sorted({r.threads for r in results}):
        for benchmark in dict.fromkeys(r.benchmark for r in results):
            mine = [r for r in results if r.threads == threads and r.benchmark == benchmark]
            path = folder / f"{benchmark}-{threads}.svg"
            if mine and (_growth if benchmark == "growth" else _ratios)(mine, path):
                found.append(path)
    return found


def _growth(results: list[Result], path: Path) -> bool:
    import matplotlib.pyplot as plt

    kinds = curves(results)
    figure, axes = plt.subplots(1, len(kinds), figsize=(3.2 * len(kinds), 3.2), squeeze=False, layout="constrained")
    for axis, (kind, contenders) in zip(axes[0], kinds.items(), strict=True):
        for name, curve in contenders.items():
            axis.loglog(
                *zip(*curve, strict=True), marker="o", markersize=3, linewidth=2 if name == OURS else 1, label=name
            )
        axis.set(title=kind, xlabel="points", ylabel="seconds")
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return True


def _ratios(results: list[Result], path: Path) -> bool:
    import matplotlib.pyplot as plt

    bars = [(f"{r.case}: {row.name}", row) for r in results for row in r.rows[1:] if row.ratio is not None]
    if not bars:
        return False
    figure, axis = plt.subplots(figsize=(9, 0.6 + 0.2 * len(bars)), layout="constrained")
    ratios = [row.ratio or 0.0 for _, row in bars]
    spreads = [row.ratio_spread or (ratio, ratio) for (_, row), ratio in zip(bars, ratios, strict=True)]
    errors = [[abs(x - s[i]) for x, s in zip(ratios, spreads, strict=True)] for i in (0, 1)]
    axis.barh(range(len(bars)), ratios, xerr=errors, log=True, error_kw={"linewidth": 0.8})
    axis.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=6)
    axis.invert_yaxis()
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.set_xlabel(f"times {OURS}")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return True
