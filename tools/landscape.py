"""Draws a learned energy about the true pose: along rays, and on a plane of rotations, one column a model.

    python tools/landscape.py WEIGHTS [WEIGHTS ...] --data SHAPES.npz [--protocol full-0-90-noise] [--pairs 2]
        [--out landscape.png]

Rows are pairs, the same for all models. Left: E - E(truth) along rotations about 24 random axes, in red where the ray
up to there violates star-convexity. Right: E on the plane of rotation vectors (x, y, 0). Needs the extra "viz".
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlc_reg.evaluation import basin_radius, slices, violation_rate
from dlc_reg.io import replacing
from dlc_reg.protocols import PairDataset, Shapes
from dlc_reg.registration.learned.frame import RegistrationNetwork


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--protocol", default="full-0-90-noise")
    parser.add_argument("--split", default="val")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--extent", type=float, default=180.0, help="degrees")
    parser.add_argument("--out", type=Path, default=Path("landscape.png"))
    options = parser.parse_args(arguments)
    from dlc_reg.registration.learned.weights import load_model

    shapes = Shapes.load(options.data).select(split=options.split)
    pairs = PairDataset(shapes, options.protocol, options.seed, options.pairs)
    networks = {name(weights): load_model(weights) for weights in options.weights}
    draw(networks, pairs, options.out, extent=options.extent)
    print(f"wrote {options.out}")


def name(weights: str) -> str:
    """A run's folder says more than weights.safetensors."""
    path = Path(weights)
    if path.parent.name.startswith("seed-"):  # a cell of the study
        return "/".join(path.parts[-4:-1])
    return path.parent.name if path.name == "weights.safetensors" and path.parent.name else path.stem


def draw(networks: dict[str, RegistrationNetwork], pairs: PairDataset, out: Path, *, extent: float = 180.0) -> None:
    pyplot = plotter()
    size = (5.2 * len(networks), 2.7 * len(pairs) + 0.6)
    figure, axes = pyplot.subplots(
        len(pairs),
        2 * len(networks),
        figsize=size,
        squeeze=False,
        layout="constrained",
        width_ratios=[1.3, 1] * len(networks),
    )
    for column, (title, network) in enumerate(networks.items()):
        cut = slices(network, pairs, extent_deg=extent)
        rate, basin = violation_rate(network, pairs, radius_deg=60), basin_radius(network, pairs)
        for row in range(len(pairs)):
            left, right = axes[row, 2 * column : 2 * column + 2]
            draw_rays(left, cut.angles_deg, cut.rays[row], cut.violated[row])
            picture = right.contourf(cut.offsets_deg, cut.offsets_deg, cut.plane[row].T, levels=24, cmap="viridis")
            figure.colorbar(picture, ax=right, shrink=0.85)
            right.plot(0, 0, "w+", markersize=9)
            right.set_aspect("equal")
            left.set_xlabel("angle from the truth [deg]")
            right.set_xlabel("rotation about x [deg]")
            right.set_ylabel("about y [deg]")
        axes[0, 2 * column].set_title(
            f"{title}\nviolated at 60 deg: {rate:.0%} of rays, basin {basin:.0f} deg", fontsize=9, loc="left"
        )
    with replacing(out, overwrite=True) as draft:
        figure.savefig(draft, dpi=130)
    pyplot.close(figure)


def plotter() -> Any:
    """Matplotlib's pyplot, without a screen; imported where something is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw_rays(axis: Any, offsets: Tensor, values: Tensor, violated: Tensor) -> None:
    """Each ray, and in red where it violates."""
    for ray, broken in zip(values, violated, strict=True):
        axis.plot(offsets, ray, color="0.6", linewidth=0.8)
        axis.plot(offsets, torch.where(broken, ray, torch.nan), color="tab:red", linewidth=1.6)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_ylabel("E - E(truth)")


if __name__ == "__main__":
    main()
