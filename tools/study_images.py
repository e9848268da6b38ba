"""What Deep Loss Convexification does to features for image alignment: columns x seeds of one recipe, measured alike.

    python tools/study_images.py recipes/images/photographs.toml --data photographs.npz --out study/photographs
    python tools/study_images.py recipes/images/photographs.toml --data photographs.npz --out study/photographs --table

Columns: "none", contrastive and unrolled terms without DLC; "label" and "energy", the same with DLC; "contrastive" and
"unrolled", one term alone; "contrastive-energy" and "unrolled-energy", DLC beside one. They differ from the recipe in
nothing else. A cell is one process; finished ones are skipped, and an interrupted one goes on.

Pairs are of the split "test", or where there is none of "val", and the same for all cells. From the middle: without a
search, as in training, at the recipe's size. Searched: by `align_images`, at --size. Errors are in pixels of 192.
Violated: share of rays about the truth on which E is above the chord somewhere, the corners moved by up to 0.25 (at the
level of 1/2) and 0.5 (of 1/4, the protocol's reach) of half the template's side, as where DLC trains; basin: the reach
up to which fewer than 5% do.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from cells import Cell, Study, over, parser_of, recipe_in, run
from numpy.typing import NDArray
from study import COLUMNS
from torch import Tensor

from dlc_reg import convexify
from dlc_reg._alignment_objective import Level
from dlc_reg._image_evaluation import aligned_by, evaluate_images
from dlc_reg._image_pairs import ImagePairs, Pictures, collate_images
from dlc_reg._images_losses import MANIFOLD, OBJECTIVE, CornerBox, encode_pairs
from dlc_reg._images_recipe import ImageRecipe
from dlc_reg._images_training import errors_from_the_middle
from dlc_reg.networks.images import FeatureEncoder
from dlc_reg.training import Recipe

ITERATIONS = (1, 2, 5, 10)  # a level, of the curve of convergence
FULL = {"1/2": (1, 0.25), "1/4": (2, 0.5)}  # the level's number and the full reach there
REACHES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0)
RAYS = 16  # a pair
FRACTIONS = 11  # of a ray, from 0 to 1
SHARES = ("below_1", "below_3", "below_10", "beyond_20")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cells and prints the table."""
    parser = parser_of(__doc__, COLUMNS)
    parser.add_argument("--pairs", type=int, default=60, help="that are measured on")
    parser.add_argument("--pair-seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=192, help="of the inputs that are searched, in pixels")
    return run(STUDY, parser, arguments)


def recipe_of(options: Namespace, column: str, seed: int) -> Recipe:
    """The recipe, as --set changes it, in this column, with this seed."""
    return recipe_in(options, column, seed, COLUMNS[column])


def about(data: Pictures, recipe: ImageRecipe, options: Namespace) -> Cell:
    """What a cell is measured on."""
    pairs_of(data, recipe, options)  # what cannot be made is refused before hours of training
    asked = {"split": split_of(data), "pairs": options.pairs, "pair_seed": options.pair_seed, "size": options.size}
    return {"data": data.checksum, "licences": data.licences, **asked}


def split_of(data: Pictures) -> str:
    """The split that is measured on."""
    return "test" if "test" in data.split else "val"


def pairs_of(data: Pictures, recipe: ImageRecipe, options: Namespace) -> tuple[ImagePairs, ImagePairs]:
    """Pairs at the recipe's size and zoom, and at --size as `evaluate.py images` makes them."""
    settings = recipe.data
    held_out, count, seed = data.select(split_of(data)), options.pairs, options.pair_seed
    both: dict[str, Any] = {"reach": settings.reach, "photometric": settings.photometric}
    small = ImagePairs(held_out, seed, count, size=settings.size, zoom=settings.zoom, **both)
    return small, ImagePairs(held_out, seed, count, size=options.size, **both)


def measure(network: FeatureEncoder, data: Pictures, recipe: ImageRecipe, options: Namespace) -> Cell:
    """All figures of one network."""
    small, large = pairs_of(data, recipe, options)
    most = recipe.validation.iterations
    errors = {count: errors_from_the_middle(network, small, count).numpy() for count in (*ITERATIONS, most)}
    return {
        "middle": {"iterations": most, **shares_of(errors[most])},
        "convergence": {str(count): min(float(np.median(errors[count])), 1e3) for count in ITERATIONS},
        "searched": searched(network, large),
        "landscape": landscape_of(network, small, options.pair_seed),
    }


def searched(network: FeatureEncoder, pairs: ImagePairs) -> dict[str, float]:
    """Figures of `align_images`: shares by corner error, the share trusted, and how many of these are wrong."""
    found = evaluate_images(pairs, {"ours": aligned_by(network)})["ours"]
    trust = {"trusted": float(found.trusted.mean()), "wrong": int(found.wrong.sum())}
    return {**shares_of(found.errors), **trust, "seconds": found.seconds}


def shares_of(errors: NDArray[np.float64]) -> dict[str, float]:
    """Shares of pairs by corner error."""
    below = {limit: float((errors < limit).mean()) for limit in (1, 3, 10, 20)}
    return dict(zip(SHARES, [below[1], below[3], below[10], 1 - below[20]], strict=True))


@torch.no_grad()
def landscape_of(network: FeatureEncoder, pairs: ImagePairs, seed: int) -> dict[str, Any]:
    """By level: the share of rays that violate at full reach, the basin, and the shares at all `REACHES`."""
    generator = torch.Generator().manual_seed(seed)
    shares: dict[str, list[Tensor]] = {level: [] for level in FULL}
    for k in range(len(pairs)):
        encoded = encode_pairs(network, collate_images([pairs[k]]))
        near = convexify.Neighbourhood(encoded.truth, MANIFOLD, torch.ones(MANIFOLD.dof), generator)
        rays = CornerBox(1.0)(RAYS, near)
        for level, (number, _) in FULL.items():
            of_reach = [violated(encoded.levels[number], encoded.truth, reach * rays) for reach in REACHES]
            shares[level].append(torch.stack(of_reach).double().mean((1, 2)))
    found: dict[str, Any] = {"reaches": list(REACHES)}
    for level, (_, full) in FULL.items():
        pooled = torch.stack(shares[level]).mean(0)
        basin = float(convexify.basin_of(torch.tensor(REACHES, dtype=torch.float64), pooled))
        found[level] = {"violated": float(pooled[REACHES.index(full)]), "basin": basin, "shares": pooled.tolist()}
    return found


def violated(level: Level, truth: Tensor, rays: Tensor) -> Tensor:
    """(R, B): whether E is above the chord, by more than rounding, along rays (R, B, 8) from truths (B, 3, 3)."""
    values, violation = convexify.landscape(OBJECTIVE, MANIFOLD, truth, level, directions=rays, steps=FRACTIONS)[1:]
    assert violation is not None
    rounding = 16 * torch.finfo(values.dtype).eps * values.abs().amax(1)
    return violation[:, :-1].amax(1) > rounding  # the last is not the chord's: it says whether the end is lower


def title(cell: Cell) -> str:
    """What the table is of."""
    return f"pictures {cell['data'][:12]}, {cell['pairs']} pairs of the split {cell['split']}"


def row(cells: list[Cell]) -> list[str]:
    """Of one column, in the order of `HEADINGS`; empty where no cell has all of it."""

    def joined(parts: Sequence[str]) -> str:
        return " / ".join(parts) if all(parts) else ""

    start, end = (joined([over(cells, (kind, s), ".0f", 100) for s in SHARES]) for kind in ("middle", "searched"))
    trusted, wrong = over(cells, ("searched", "trusted"), ".0f", 100), over(cells, ("searched", "wrong"), ".1f")
    shape = [joined([over(cells, ("landscape", level, "violated"), ".1f", 100) for level in FULL])]
    shape.append(joined([over(cells, ("landscape", level, "basin"), ".2f") for level in FULL]))
    took = over(cells, ("training", "seconds_per_step"), ".0f", 1000)
    return [start, end, trusted and f"{trusted} ({wrong})", *shape, took]


LIMITS = "< 1 / < 3 / < 10 / > 20 px [%]"
HEADINGS = (
    *(f"from the middle {LIMITS}", f"searched {LIMITS}", "trusted [%] (wrong)"),
    *("violated at 1/2 / 1/4 [%]", "basin at 1/2 / 1/4", "ms a step"),
)
STUDY = Study(__file__, "images", "below_3", recipe_of, about, measure, title, HEADINGS, row)

if __name__ == "__main__":
    sys.exit(main())
