"""What Deep Loss Convexification does to recurrent networks: columns x seeds of one recipe, trained and tested alike.

    python tools/study_sequences.py recipes/sequences/rows.toml --data mnist.npz --out study/rows [--seeds 0 1 2]
    python tools/study_sequences.py recipes/sequences/rows.toml --data mnist.npz --out study/rows --table

Columns: "none", a plain readout; "label", hinges on the moved label; "quadratic" and "mlp", energies that are descended
at test time, unrolled in training without DLC; "energy", the latter with DLC; "contrastive" and "contrastive-energy",
InfoNCE on the energy alone, and with DLC; controls: "rate-x2", "smoothing" and "margin" (of classes). They differ from
the recipe in nothing else. A cell is one process; finished ones are skipped, and an interrupted one goes on.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from cells import Cell, Study, over, parser_of, recipe_in, run
from evaluate_sequences import STARTS, figures_of
from study import spread

from dlc_reg._sequences_data import Sequences
from dlc_reg._sequences_training import SequenceRecipe
from dlc_reg.sequence import SequenceModel
from dlc_reg.training import Recipe, load_recipe

MLP = "network.head=mlp"
ALONE = ["loss.task=0.0", "loss.contrastive=1.0"]
COLUMNS: dict[str, list[str]] = {
    "none": [],
    "label": ["dlc=label", 'convexify.terms=["minimum", "chord"]'],
    "quadratic": ["network.head=quadratic"],
    "mlp": [MLP],
    "energy": [MLP, "dlc=energy"],
    "contrastive": [MLP, *ALONE],
    "contrastive-energy": [MLP, *ALONE, "dlc=energy"],
    "rate-x2": [],
    "smoothing": ["loss.smoothing=0.1"],
    "margin": ["loss.margin=1.0"],
}
OF_CLASSES = ("smoothing", "margin")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cells and prints the table."""
    return run(STUDY, parser_of(__doc__, COLUMNS), arguments)


def recipe_of(options: Namespace, column: str, seed: int) -> Recipe:
    """The recipe, as --set changes it, in this column, with this seed."""
    settings, base = list(COLUMNS[column]), load_recipe(options.recipe, options.set)
    if column == "rate-x2":
        settings.append(f"optimizer.rate={2 * base.optimizer.rate}")
    if column == "label" and base.network["outputs"] > 1:  # labels move within the simplex, as the authors have it
        settings += ["convexify.sampler=softmax", "convexify.radius=1.0"]
    return recipe_in(options, column, seed, settings)


def fits(column: str, data: Sequences) -> bool:
    """Whether the column says anything of such data."""
    return data.is_classes or column not in OF_CLASSES


def about(data: Sequences, recipe: SequenceRecipe, options: Namespace) -> Cell:
    """What a cell is measured on."""
    return {"data": data.checksum, "title": data.title}


def measure(network: SequenceModel, data: Sequences, recipe: SequenceRecipe, options: Namespace) -> Cell:
    """All figures of one network."""
    return {"figures": figures_of(network, data, recipe, "test")}


def title(cell: Cell) -> str:
    """What the table is of."""
    return str(cell["title"])


def row(cells: list[Cell]) -> list[str]:
    """Of one column, in the order of `HEADINGS`."""

    def figure(name: str, form: str, factor: float = 1.0) -> str:
        return over(cells, ("figures", name), form, factor)

    success = [figure("success", ".1f", 100), figure("loss", ".3g")]
    starts = [figure(f"start {n}", ".1f", 100) for n in STARTS]
    shape = [figure("violated", ".0f", 100), figure("basin", ".2f")]
    soon = [next(s for s, v in c["curve"] if v >= 0.9 * max(v for _, v in c["curve"])) for c in cells]
    took = over(cells, ("training", "seconds_per_step"), ".0f", 1000)
    return [*success, *starts, *shape, spread(soon, ".0f"), took]


HEADINGS = (
    *("success [%]", "loss", *(f"start {n} [%]" for n in STARTS), "violated [%]", "basin"),
    *("steps to 90% of the best", "ms a step"),
)
STUDY = Study(__file__, "sequences", "success", recipe_of, about, measure, title, HEADINGS, row, fits)

if __name__ == "__main__":
    sys.exit(main())
