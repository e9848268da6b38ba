"""Draws a study of images or sequences: how training and descents go, and the energies about the truth.

    python tools/study_pictures.py STUDY --data DATA.npz [--columns none energy] [--out pictures]

writes pictures/curves.png, the mean over seeds of what validation said in training and, of images, of the median corner
error by the iterations a level; and pictures/landscape.png, E - E(truth) along 24 random rays, one row for each of two
held-out items and one column a network, of each column's first seed. Red: beyond where E is above the chord.
Images: at the level of 1/4, the corners moved by half of the template's half side. Sequences: rays of the recipe's
radius. Needs the extra "viz".
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from cells import Cell
from landscape import draw_rays, plotter
from study import CELL, WEIGHTS
from study_images import FULL, pairs_of, split_of
from torch import Tensor

from dlc_reg import convexify
from dlc_reg._image_pairs import Pictures, collate_images
from dlc_reg._images_losses import MANIFOLD, OBJECTIVE, CornerBox, encode_pairs
from dlc_reg._sequences_data import Sequences, collate
from dlc_reg._sequences_training import held_out_items
from dlc_reg.errors import InputError
from dlc_reg.networks.files import load_network
from dlc_reg.networks.images import FeatureEncoder
from dlc_reg.sequence import ARCHITECTURES
from dlc_reg.training import make_recipe

RAYS, STEPS, ITEMS = 24, 41, 2


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--columns", nargs="+", help="of the landscape; all, if not given")
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    options = parser.parse_args(arguments)
    cells = cells_of(options.study)
    options.out.mkdir(parents=True, exist_ok=True)
    draw_curves(cells, options.out / "curves.png")
    draw_landscapes(options, cells, options.out / "landscape.png")
    print(f"wrote {options.out / 'curves.png'} and {options.out / 'landscape.png'}")


def cells_of(study: Path) -> dict[str, dict[Path, Cell]]:
    """Finished cells by column, and by the folders that they are in."""
    found: dict[str, dict[Path, Cell]] = {}
    for path in sorted(study.glob(f"*/seed-*/{CELL}")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(path.parent.parent.name, {})[path.parent] = cell
    if not found:
        raise InputError(
            "study", f"'{study}', without a {CELL}", "a folder that study_images or study_sequences filled"
        )
    return found


def draw_curves(cells: dict[str, dict[Path, Cell]], out: Path) -> None:
    """Mean over seeds, and from the least to the most."""
    panels = {"steps of training": ("success in validation", lambda cell: cell["curve"])}
    if all("convergence" in cell for group in cells.values() for cell in group.values()):
        descent = "median corner error [pixels of 192]"
        panels["iterations a level"] = (descent, lambda cell: [(int(n), e) for n, e in cell["convergence"].items()])
    pyplot = plotter()
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(5.5 * len(panels), 3.6), squeeze=False, layout="constrained"
    )
    for axis, (below, (beside, points)) in zip(axes[0], panels.items(), strict=True):
        for column, group in cells.items():
            x, _ = np.array(points(next(iter(group.values())))).T
            y = np.array([[value for _, value in points(cell)] for cell in group.values()])
            (line,) = axis.plot(x, y.mean(0), marker=".", label=f"{column} ({len(y)})")
            axis.fill_between(x, y.min(0), y.max(0), color=line.get_color(), alpha=0.12)
        axis.set_xlabel(below)
        axis.set_ylabel(beside)
        if below.startswith("iterations"):
            axis.set_xscale("log")
    lines, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside right upper", fontsize=7, title="column (seeds)", title_fontsize=7)
    figure.savefig(out, dpi=130)
    pyplot.close(figure)


def draw_landscapes(options: argparse.Namespace, cells: dict[str, dict[Path, Cell]], out: Path) -> None:
    """Networks without an energy that is descended are left out."""
    drawn = {}
    for column in options.columns or list(cells):
        if column not in cells:
            raise InputError("--columns", repr(column), f"some of {', '.join(cells)}")
        folder, cell = next(iter(cells[column].items()))
        if (found := rays_of(folder, cell, options.data)) is not None:
            drawn[column] = found
    if not drawn:
        raise InputError("--columns", ", ".join(options.columns or cells), "some whose networks descend an energy")
    pyplot = plotter()
    size = (3.6 * len(drawn), 2.6 * ITEMS + 0.3)
    figure, axes = pyplot.subplots(ITEMS, len(drawn), figsize=size, squeeze=False, sharex=True, layout="constrained")
    for k, (column, (far, values, violation)) in enumerate(drawn.items()):
        for item in range(ITEMS):
            axis, ray = axes[item, k], values[:, :, item]
            worst = violation[:, :, item].cummax(1).values
            draw_rays(axis, torch.linspace(0, far, STEPS), ray - ray[:, :1], worst > 1e-5)
            axis.set_xlabel("share of the template's half side" if "size" in cell else "distance from the truth")
        axes[0, k].set_title(column, fontsize=9, loc="left")
    figure.savefig(out, dpi=130)
    pyplot.close(figure)


@torch.no_grad()
def rays_of(folder: Path, cell: Cell, data: Path) -> tuple[float, Tensor, Tensor] | None:
    """How far rays reach, E along them (rays, steps, items), and by how much it is above the chord."""
    recipe = make_recipe(cell["recipe"])
    generator = torch.Generator().manual_seed(0)
    if recipe.task == "images":
        network = load_network(folder / WEIGHTS, {"features": FeatureEncoder})
        pictures = Pictures.load(data)
        pairs, _ = pairs_of(
            pictures, recipe, argparse.Namespace(**{k: cell[k] for k in ("pairs", "pair_seed", "size")})
        )
        assert split_of(pictures) == cell["split"]
        encoded = encode_pairs(network, collate_images([pairs[k] for k in range(ITEMS)]))
        number, far = FULL["1/4"]
        near = convexify.Neighbourhood(encoded.truth, MANIFOLD, torch.ones(MANIFOLD.dof), generator)
        rays = far * CornerBox(1.0)(RAYS, near)
        drawn = convexify.landscape(
            OBJECTIVE, MANIFOLD, encoded.truth, encoded.levels[number], directions=rays, steps=STEPS
        )
    else:
        network = load_network(folder / WEIGHTS, ARCHITECTURES)
        if network.head.iterations == 1:
            return None
        sequences = Sequences.load(data)
        items = held_out_items(sequences.take(np.flatnonzero(sequences.split == "test")), recipe)
        given = collate([items[k] for k in range(ITEMS)])
        network.eval()
        far = recipe.convexify.radius
        rays = torch.randn(RAYS, network.manifold.dof, generator=generator)
        rays = far * rays / rays.norm(dim=1, keepdim=True)
        encoded = network.encode(given.values)
        drawn = convexify.landscape(network, network.manifold, given.truth, encoded, directions=rays, steps=STEPS)
    assert drawn.violation is not None
    return far, drawn.values, drawn.violation


if __name__ == "__main__":
    main()
