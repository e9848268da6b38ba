"""Figures of recurrent networks on held-out sequences.

    python tools/evaluate.py sequences --data DATA.npz --weights runs/rows/weights.safetensors ... [--split test]
        [--published pixel-MNIST] [--iterations 1 8 32]

Success: share of classes that are right, or of the values' variance that is explained. "start 0.5", "start 1.5": the
same from starts with normal noise of that deviation. Violated: share of rays of the length of the recipe's radius that
are not star-convex; basin: the radius up to which fewer than 5% are. Published values are of the papers' data and
training, and are marked; ours of stand-ins are not comparable with them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlc_reg import convexify
from dlc_reg._sequences_data import Sequences, collate
from dlc_reg._sequences_training import SequenceRecipe, held_out_items, validate
from dlc_reg.evaluation import markdown
from dlc_reg.networks.files import load_network
from dlc_reg.sequence import ARCHITECTURES, SequenceModel
from dlc_reg.training import make_recipe

# accuracy in per cent, as published (SBO-RNN's tables, NeurIPS 2021)
PUBLISHED: dict[str, dict[str, float]] = {
    "pixel-MNIST": {
        "RNN": 94.1, "FastRNN": 96.4, "LSTM": 97.8, "iRNN": 98.1, "FastGRNN": 98.7, "SBO-RNN": 98.9, "IndRNN": 99.0,
        "MomentumRNN": 99.1,
    },
    "HAR-2": {"RNN": 91.3, "LSTM": 93.7, "FastRNN": 94.5, "SBO-RNN": 95.6, "iRNN": 96.3, "IndRNN": 96.4},
}  # fmt: skip
STARTS = (0.5, 1.5)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", nargs="+", type=Path, default=[])
    parser.add_argument("--split", default="test")
    parser.add_argument("--published", choices=list(PUBLISHED), help="show these values too")
    parser.add_argument("--iterations", nargs="+", type=int, default=[], help="success after so many steps, too")
    options = parser.parse_args(arguments)
    data = Sequences.load(options.data)
    rows = []
    for path in options.weights:
        network = load_network(path, ARCHITECTURES)
        assert isinstance(network, SequenceModel)
        recipe = make_recipe(network.card["recipe"])
        assert isinstance(recipe, SequenceRecipe)
        rows.append([str(path), *row(figures_of(network, data, recipe, options.split, options.iterations))])
    rows += [[f"{name} (published)", f"{value:.1f}"] for name, value in PUBLISHED.get(options.published, {}).items()]
    wide = headings(options.iterations)
    rows = [[*cells, *[""] * (1 + len(wide) - len(cells))] for cells in rows]
    count = int((data.split == options.split).sum())
    print(f"- {data.title}, {count} sequences of the split {options.split}, data {data.checksum[:12]}")
    if options.published and options.published.split("-")[-1] not in data.title:
        print(f"- published values are of {options.published}: not comparable with figures of {data.title}")
    print(markdown(["", *wide], rows))


def figures_of(
    network: SequenceModel, data: Sequences, recipe: SequenceRecipe, split: str, iterations: Sequence[int] = ()
) -> dict[str, float]:
    """All figures of one network."""
    items = held_out_items(data.take(np.flatnonzero(data.split == split)), recipe)
    found = validate(network, items)
    for noise in STARTS:
        found[f"start {noise}"] = validate(network, items, start_noise=noise)["success"]
    for count in iterations:
        found[f"{count} steps"] = validate(network, items, iterations=count)["success"]
    return {**found, **landscape_of(network, items, recipe)}


def landscape_of(network: SequenceModel, items: Any, recipe: SequenceRecipe, count: int = 200) -> dict[str, float]:
    """How star-convex the energy is about the truth; NaN of a plain readout, whose energy nothing can change."""
    if network.head.iterations == 1:
        return {"violated": float("nan"), "basin": float("nan")}
    given = collate([items[i] for i in range(min(count, len(items)))])
    network.eval()
    with torch.no_grad():
        encoded = network.encode(given.values)
    options: dict[str, Any] = {"radius": recipe.convexify.radius, "directions": 16, "steps": 16}
    generator = torch.Generator().manual_seed(0)
    lengths, shares = convexify.violation_curve(
        network, network.manifold, given.truth, encoded, generator=generator, **options
    )
    pooled = shares.mean(1)
    basin = convexify.basin_of(lengths, pooled, shortest=0.2 * recipe.convexify.radius)
    return {"violated": pooled[-1].item(), "basin": basin.item()}


def headings(iterations: Sequence[int] = ()) -> list[str]:
    return [
        "success [%]", "loss", *(f"start {n} [%]" for n in STARTS), "violated [%]", "basin",
        *(f"{count} steps [%]" for count in iterations),
    ]  # fmt: skip


def row(figures: dict[str, float]) -> list[str]:
    """Cells in the order of `headings`."""
    shares = [100 * figures[f"start {n}"] for n in STARTS]
    later = [100 * value for name, value in figures.items() if name.endswith(" steps")]
    shape = [100 * figures["violated"], figures["basin"]]
    shown = ["" if np.isnan(v) else f"{v:.{d}f}" for v, d in zip(shape, (0, 2), strict=True)]
    return [
        f"{100 * figures['success']:.1f}", f"{figures['loss']:.4g}", *(f"{v:.1f}" for v in shares), *shown,
        *(f"{v:.1f}" for v in later),
    ]  # fmt: skip
