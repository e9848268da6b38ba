"""Columns x seeds of one recipe: what `study_images.py` and `study_sequences.py` share.

    python tools/study_images.py RECIPE --data DATA.npz --out DIR [--columns ...] [--seeds 0 1 2] [--set ...] [--table]

A cell is one process, which leaves in DIR/COLUMN/seed-N its log, its weights and cell.json: recipe, data, figures, and
where they come from. An interrupted one goes on, and finished ones are skipped, if they were made alike.
"""

from __future__ import annotations

import argparse
import csv
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from study import CELL, WEIGHTS, finished, spread, start

from dlc_reg.errors import InputError
from dlc_reg.evaluation import markdown, provenance
from dlc_reg.io import replacing
from dlc_reg.registration.result import strict_json
from dlc_reg.training import LOG, Recipe, load_recipe, make_recipe, task_of, train

Cell = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """What a tool says of its cells."""

    file: str  # the tool, which runs a cell when asked to
    task: str  # of its recipes
    success: str  # the figure of validation whose curve is kept
    recipe_of: Callable[[Namespace, str, int], Recipe]
    about: Callable[[Any, Any, Namespace], Cell]  # data, recipe: what a cell was measured on; refuses what cannot be
    measure: Callable[[Any, Any, Any, Namespace], Cell]  # network, data, recipe: its figures
    title: Callable[[Cell], str]
    headings: Sequence[str]
    row: Callable[[list[Cell]], list[str]]  # of the cells of a column, one a seed
    fits: Callable[[str, Any], bool] = lambda column, data: True


def parser_of(about: str | None, columns: Iterable[str]) -> argparse.ArgumentParser:
    """The arguments that every study has."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--columns", nargs="+", default=list(columns), choices=list(columns))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="table.key=value", help="changes every column")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of what is finished, and end")
    parser.add_argument("--run-cell", nargs=2, metavar=("COLUMN", "SEED"), help=argparse.SUPPRESS)
    return parser


def run(study: Study, parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    """All of a tool: its cells, or one of them, and the table. The exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(given)
    try:
        if options.run_cell:
            run_cell(study, options, options.run_cell[0], int(options.run_cell[1]))
            return 0
        failed = [] if options.table else run_all(study, options, given)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 64
    print(table(study, options))
    return 1 if failed else 0


def run_all(study: Study, options: Namespace, given: Sequence[str]) -> list[str]:
    """Every cell that is not finished, a process each, seed by seed; returns the names of those that failed."""
    failed = []
    for column, seed in planned(study, options):
        folder = folder_of(options.out, column, seed)
        if finished(folder):
            continue
        print(f"{column}/{seed} ...", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        if start([sys.executable, study.file, *given, "--run-cell", column, str(seed)], folder / "output.txt"):
            failed.append(f"{column}/{seed}")
            print(f"{failed[-1]} FAILED, see {folder / 'output.txt'}", flush=True)
    return failed


def planned(study: Study, options: Namespace) -> list[tuple[str, int]]:
    """The cells that fit the data. None is run before all could be, and finished ones are what would be run."""
    base = load_recipe(options.recipe, options.set)
    if base.task != study.task:
        raise InputError("recipe", f"'{options.recipe}', for {base.task}", f"one for {study.task}")
    data = task_of(base).load(options.data, base, options.out, False)
    cells = [(c, s) for s in options.seeds for c in options.columns if study.fits(c, data)]
    for column, seed in cells:
        folder, recipe = folder_of(options.out, column, seed), study.recipe_of(options, column, seed)
        about, found = study.about(data, recipe, options), finished(folder)
        alike = found is None or (make_recipe(found["recipe"]) == recipe and found.items() >= about.items())
        if not alike:
            given = f"'{folder / CELL}', made by another recipe, or measured on other data"
            raise InputError("--out", given, "a new folder, or the same")
    return cells


def run_cell(study: Study, options: Namespace, column: str, seed: int) -> None:
    """Trains one cell and measures it."""
    torch.set_num_threads(options.threads)
    recipe, folder = study.recipe_of(options, column, seed), folder_of(options.out, column, seed)
    data = task_of(recipe).load(options.data, recipe, options.out, False)
    trained = train(recipe, data, folder, resume=True)
    cell = {
        "recipe": recipe.to_dict(),
        **study.about(data, recipe, options),
        **provenance(),
        **study.measure(trained.network, data, recipe, options),
        "curve": curve(folder / LOG, study.success),
        "training": {
            "validation": trained.figures,
            "seconds_per_step": trained.seconds_per_step,
            "costs": trained.costs,
            "parameters": trained.parameters,
        },
    }
    task_of(recipe).save(folder / WEIGHTS, trained.network, cell)
    with replacing(folder / CELL, overwrite=True) as draft:
        draft.write_text(strict_json(cell, indent=1), encoding="utf-8")


def recipe_in(options: Namespace, column: str, seed: int, settings: Sequence[str]) -> Recipe:
    """The recipe, as --set changes it, then the column's settings, with this seed."""
    name = f"name={options.recipe.stem}-{column}-{seed}"
    return load_recipe(options.recipe, [*options.set, *settings, f"seed={seed}", name])


def folder_of(out: Path, column: str, seed: int) -> Path:
    """Where a cell is."""
    return out / column / f"seed-{seed}"


def curve(log: Path, figure: str) -> list[tuple[int, float]]:
    """(step, figure on validation), of a log."""
    with log.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row[f"validation_{figure}"]]
    return [(int(row["step"]), float(row[f"validation_{figure}"])) for row in rows]


def table(study: Study, options: Namespace) -> str:
    """Markdown: mean and standard deviation over the seeds that are finished."""
    seeds = {c: [finished(folder_of(options.out, c, s)) for s in options.seeds] for c in options.columns}
    read = {column: kept for column, cells in seeds.items() if (kept := [cell for cell in cells if cell])}
    if not read:
        return "No cell is finished."
    first = next(iter(read.values()))[0]
    steps, processor = first["recipe"]["optimizer"]["steps"], first["hardware"]["processor"]
    head = f"- {study.title(first)}, {steps} steps, {processor}; mean ± deviation over seeds"
    rows = [[f"{column} ({len(cells)})", *study.row(cells)] for column, cells in read.items()]
    return f"{head}\n\n" + markdown(["column (seeds)", *study.headings], rows)


def over(cells: list[Cell], place: Sequence[str], form: str, factor: float = 1.0) -> str:
    """Mean and deviation of the figure at a place, a key in a table each, over the cells that have it."""
    found: list[Any] = list(cells)
    for key in place:
        found = [inside[key] for inside in found if inside.get(key) is not None]
    return spread([factor * value for value in found], form)
