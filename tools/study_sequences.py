"""What Deep Loss Convexification does to recurrent networks: columns x seeds of one recipe, trained and tested alike.

    python tools/study_sequences.py recipes/sequences/rows.toml --data mnist.npz --out study/rows [--seeds 0 1 2]
    python tools/study_sequences.py recipes/sequences/rows.toml --data mnist.npz --out study/rows --table

Columns: "none", a plain readout; "label", hinges on the moved label; "quadratic" and "mlp", energies that are descended
at test time, unrolled in training without DLC; "energy", the latter with DLC; "contrastive" and "contrastive-energy",
InfoNCE on the energy alone, and with DLC; controls: "rate-x2", "smoothing" and "margin" (of classes). They differ from
the recipe in nothing else. A cell is one process; finished ones are skipped, and an interrupted one goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from evaluate_sequences import STARTS, figures_of
from study import CELL, spread, start

from dlc_reg._sequences_data import Sequences
from dlc_reg.errors import InputError
from dlc_reg.evaluation import markdown, provenance
from dlc_reg.io import replacing
from dlc_reg.registration.result import strict_json
from dlc_reg.training import LOG, Recipe, load_recipe, make_recipe, task_of, train

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--columns", nargs="+", default=list(COLUMNS), choices=list(COLUMNS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="table.key=value", help="changes every column")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of what is finished, and end")
    parser.add_argument("--run-cell", nargs=2, metavar=("COLUMN", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        if options.run_cell:
            run_cell(options, options.run_cell[0], int(options.run_cell[1]))
            return 0
        failed = [] if options.table else run_all(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 64
    print(table(options.out, options.columns, options.seeds))
    return 1 if failed else 0


def run_all(options: argparse.Namespace) -> list[str]:
    """Every cell that is not finished, a process each, seed by seed; returns the names of those that failed."""
    data, failed = Sequences.load(options.data), []
    cells = [(c, s) for s in options.seeds for c in options.columns if data.is_classes or c not in OF_CLASSES]
    for column, seed in cells:  # before anything is run
        path = folder_of(options.out, column, seed) / CELL
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if found and make_recipe(found["recipe"]) != recipe_of(options, column, seed):
            raise InputError("--out", f"'{path}', made by another recipe", "a new folder, or the same recipe")
    for column, seed in cells:
        folder = folder_of(options.out, column, seed)
        if (folder / CELL).exists():
            continue
        print(f"{column}/{seed} ...", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, str(options.recipe), "--data", str(options.data)]
        command += ["--out", str(options.out), "--threads", str(options.threads)]
        command += [part for setting in options.set for part in ("--set", setting)]
        if start([*command, "--run-cell", column, str(seed)], folder / "output.txt"):
            failed.append(f"{column}/{seed}")
            print(f"{failed[-1]} FAILED, see {folder / 'output.txt'}", flush=True)
    return failed


def run_cell(options: argparse.Namespace, column: str, seed: int) -> None:
    """Trains one cell and tests it."""
    torch.set_num_threads(options.threads)
    data, recipe = Sequences.load(options.data), recipe_of(options, column, seed)
    folder = folder_of(options.out, column, seed)
    trained = train(recipe, data, folder, resume=True)
    found = {
        "figures": figures_of(trained.network, data, recipe, "test"),
        "curve": curve(folder / LOG),
        "training": {
            "validation": trained.figures,
            "seconds_per_step": trained.seconds_per_step,
            "costs": trained.costs,
            "parameters": trained.parameters,
        },
    }
    about = {"recipe": recipe.to_dict(), "data": data.checksum, "title": data.title, **provenance()}
    task_of(recipe).save(folder / "weights.safetensors", trained.network, {**about, **found})
    with replacing(folder / CELL, overwrite=True) as draft:
        draft.write_text(strict_json({**about, **found}, indent=1), encoding="utf-8")


def curve(log: Path) -> list[tuple[int, float]]:
    """(step, success on validation), of a log."""
    with log.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["validation_success"]]
    return [(int(row["step"]), float(row["validation_success"])) for row in rows]


def recipe_of(options: argparse.Namespace, column: str, seed: int) -> Recipe:
    """The recipe, as --set changes it, in this column, with this seed."""
    settings = [*options.set, *COLUMNS[column], f"seed={seed}"]
    base = load_recipe(options.recipe, options.set)
    if column == "rate-x2":
        settings.append(f"optimizer.rate={2 * base.optimizer.rate}")
    if column == "label" and base.network["outputs"] > 1:  # labels move within the simplex, as the authors have it
        settings += ["convexify.sampler=softmax", "convexify.radius=1.0"]
    return load_recipe(options.recipe, [*settings, f"name={options.recipe.stem}-{column}-{seed}"])


def folder_of(out: Path, column: str, seed: int) -> Path:
    return out / column / f"seed-{seed}"


def table(out: Path, columns: Sequence[str], seeds: Sequence[int]) -> str:
    """Markdown: mean and standard deviation over the seeds that are finished."""
    cells = {c: [p for s in seeds if (p := folder_of(out, c, s) / CELL).exists()] for c in columns}
    read = {c: [json.loads(p.read_text(encoding="utf-8")) for p in paths] for c, paths in cells.items() if paths}
    if not read:
        return "No cell is finished."
    first = next(iter(read.values()))[0]
    steps = first["recipe"]["optimizer"]["steps"]
    head = f"{first['title']}, {steps} steps, {first['hardware']['processor']}; mean ± deviation over seeds"
    headings = ["column (seeds)", "success [%]", "loss", *(f"start {n} [%]" for n in STARTS), "violated [%]", "basin",
                "steps to 90% of the best", "ms a step"]  # fmt: skip
    return f"- {head}\n\n" + markdown(headings, [[f"{c} ({len(f)})", *row(f)] for c, f in read.items()])


def row(cells: list[dict[str, Any]]) -> list[str]:
    def over(name: str, form: str, factor: float = 1.0) -> str:
        values = [c["figures"][name] for c in cells]
        return spread([factor * v for v in values if v is not None], form)

    starts = [over(f"start {n}", ".1f", 100) for n in STARTS]
    shape = [over("violated", ".0f", 100), over("basin", ".2f")]
    soon = [next(s for s, v in c["curve"] if v >= 0.9 * max(v for _, v in c["curve"])) for c in cells]
    took = [1000 * c["training"]["seconds_per_step"] for c in cells]
    return [over("success", ".1f", 100), over("loss", ".3g"), *starts, *shape, spread(soon, ".0f"), spread(took, ".0f")]


if __name__ == "__main__":
    sys.exit(main())
