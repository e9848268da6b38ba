"""What Deep Loss Convexification does: architectures x columns x seeds, each trained and evaluated the same way.

    python tools/study.py --data SHAPES.npz --out study [--architectures pointnetlk softicp] [--seeds 0 1 2]
    python tools/study.py --data SHAPES.npz --out study --table      # only the table of what is finished

Columns: "none", contrastive and unrolled terms without DLC; "label" and "energy", the same with DLC; "contrastive" and
"unrolled", one term alone; "contrastive-energy" and "unrolled-energy", DLC beside one. They differ from
recipes/study/ARCHITECTURE.toml in nothing else. A cell is one process, which leaves its weights, its log and cell.json;
an interrupted one goes on, and finished ones are skipped, or evaluated, from their weights, on protocols they lack.
Symmetric shapes are left out. Shapes of the split "test" are evaluated; where there are none, every second one of "val"
is, and the others validate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlc_reg.errors import InputError
from dlc_reg.evaluation import (
    BINS,
    Learned,
    Method,
    Polished,
    basin_of,
    evaluate,
    iterations_to_converge,
    keep_asymmetric,
    markdown,
    method,
    provenance,
    success_by_rotation,
    violation_curve,
    violation_rate,
)
from dlc_reg.io import replacing
from dlc_reg.protocols import PairDataset, Shapes
from dlc_reg.registration.learned.weights import load_model, save_model
from dlc_reg.registration.result import strict_json
from dlc_reg.training import Recipe, load_recipe, make_recipe, train

RECIPES = Path(__file__).resolve().parent.parent / "recipes" / "study"
ARCHITECTURES = ("pointnetlk", "prnet", "softicp", "dcp", "rpmnet")
COLUMNS: dict[str, list[str]] = {
    "none": ["dlc=none"],
    "label": ["dlc=label"],
    "energy": ["dlc=energy"],
    "contrastive": ["dlc=none", "loss.unrolled=0.0"],
    "unrolled": ["dlc=none", "loss.contrastive=0.0"],
    "contrastive-energy": ["dlc=energy", "loss.unrolled=0.0"],
    "unrolled-energy": ["dlc=energy", "loss.contrastive=0.0"],
}
PROTOCOLS = (
    *("dcp-resampled", "prnet-independent", "rpmnet-independent", "modelonet-independent"),
    *("dcp", "prnet", "rpmnet", "modelonet"),
)
BASELINES = ("identity", "icp")
CELL, WEIGHTS = "cell.json", "weights.safetensors"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("study"))
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--columns", nargs="+", default=list(COLUMNS), choices=list(COLUMNS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="table.key=value", help="changes every recipe")
    parser.add_argument("--pairs", type=int, default=100, help="a bin of rotations, and a protocol")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of what is finished, and end")
    parser.add_argument("--run-cell", nargs=3, metavar=("ARCHITECTURE", "COLUMN", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        if options.run_cell:
            architecture, column, seed = options.run_cell
            run_cell(options, architecture, column, int(seed))
            return 0
        failed = [] if options.table else run_all(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 64
    print(table(options.out, options.architectures, options.columns, options.seeds))
    return 1 if failed else 0


def run_all(options: argparse.Namespace) -> list[str]:
    """Every cell that is not finished, a process each, seed by seed; returns the names of those that failed."""
    cells = [(a, c, s) for s in options.seeds for a in options.architectures for c in options.columns]
    for cell in cells:  # before anything is run
        check(folder_of(options.out, *cell), recipe_of(options, *cell), options.pairs)
    failed = []
    for cell in [("baselines", "none", 0), *cells]:
        folder = folder_of(options.out, *cell)
        if not missing(finished(folder)):
            continue
        print(f"{'/'.join(map(str, cell))} ...", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "--data", str(options.data), "--out", str(options.out)]
        command += ["--pairs", str(options.pairs), "--threads", str(options.threads)]
        command += [part for setting in options.set for part in ("--set", setting)]
        if start([*command, "--run-cell", *map(str, cell)], folder / "output.txt"):
            failed.append("/".join(map(str, cell)))
            print(f"{failed[-1]} FAILED, see {folder / 'output.txt'}", flush=True)
    return failed


def finished(folder: Path) -> dict[str, Any] | None:
    """The cell in the folder, if it is there."""
    path = folder / CELL
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def missing(cell: dict[str, Any] | None) -> list[str]:
    """What a cell's methods have not been evaluated on: protocols, and "rotations"."""
    if cell is None:
        return ["rotations", *PROTOCOLS]
    return [p for p in PROTOCOLS if any(f"{p} rotation_mean" not in figures for figures in cell["methods"].values())]


def start(command: list[str], output: Path) -> int:
    """Runs a process to its end; its exit code."""
    with output.open("a") as stream:
        return subprocess.run(command, stdout=stream, stderr=stream, check=False).returncode


def check(folder: Path, recipe: Recipe, pairs: int) -> None:
    """A finished cell must be what would be run."""
    found = finished(folder)
    if found and (make_recipe(found["recipe"]) != recipe or found["pairs"] != pairs):
        given = f"'{folder / CELL}', made by another recipe or with other pairs"
        raise InputError("--out", given, "a new folder, or the same")


def run_cell(options: argparse.Namespace, architecture: str, column: str, seed: int) -> None:
    """Trains one cell and evaluates it; a finished one is evaluated on what it lacks."""
    torch.set_num_threads(options.threads)
    training, held_out = shapes_of(options)
    folder = folder_of(options.out, architecture, column, seed)
    before = finished(folder)
    baseline = architecture == "baselines"
    recipe = recipe_of(options, options.architectures[0] if baseline else architecture, column, seed)
    if before:
        cell = before | {"completed": provenance()}
    else:
        about = {"recipe": recipe.to_dict(), "pairs": options.pairs, "data": held_out.checksum}
        cell = {**about, **provenance(), "methods": {}}
    if baseline:
        runners: list[Method] = [method(name) for name in BASELINES]
    elif before:
        runners = runners_of(load_model(folder / WEIGHTS))
    else:
        trained = train(recipe, training, folder, resume=True)
        runners = runners_of(trained.network)
        cell["training"] = {
            "validation": trained.figures,
            "seconds_per_step": trained.seconds_per_step,
            "costs": trained.costs,
            "parameters": trained.parameters,
        }
        cell["landscape"] = landscape_of(trained.network, held_out, recipe, options.pairs)
    for name, figures in methods_on(held_out, recipe, runners, options.pairs, missing(before)).items():
        cell["methods"][name] = cell["methods"].get(name, {}) | figures
    if not baseline and not before:
        save_model(folder / WEIGHTS, trained.network, cell)
    with replacing(folder / CELL, overwrite=True) as draft:
        draft.write_text(strict_json(cell, indent=1), encoding="utf-8")


def runners_of(network: Any) -> list[Method]:
    plain = Learned("learned", network)
    return [plain, Polished("polished", plain)]


def recipe_of(options: argparse.Namespace, architecture: str, column: str, seed: int) -> Recipe:
    """The architecture's recipe, as --set changes it, in this column, with this seed."""
    name = f"{architecture}-{column}-{seed}"
    return load_recipe(
        RECIPES / f"{architecture}.toml", [*options.set, *COLUMNS[column], f"seed={seed}", f"name={name}"]
    )


def folder_of(out: Path, architecture: str, column: str, seed: int) -> Path:
    return out / architecture / column / f"seed-{seed}"


def shapes_of(options: argparse.Namespace) -> tuple[Shapes, Shapes]:
    """Shapes to train and validate on, and those to evaluate on; the symmetric ones are left out."""
    shapes = keep_asymmetric(Shapes.load(options.data), cache=options.out)
    if "test" not in shapes.split:
        rows = np.flatnonzero(shapes.split == "val")[1::2]
        split = shapes.split.astype("<U5")
        split[rows] = "test"
        shapes = replace(shapes, split=split)
    return shapes, shapes.select(split="test")


def methods_on(
    shapes: Shapes, recipe: Recipe, runners: list[Method], pairs: int, wanted: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Of each method success by initial rotation ("rotations"), and errors on protocols, at the recipe's size."""
    points, noise = recipe.data.points or None, recipe.data.protocol.endswith("-noise")
    figures: dict[str, dict[str, float]] = {runner.name: {} for runner in runners}
    if "rotations" in wanted:
        bins = success_by_rotation(shapes, runners, bins=BINS, pairs=pairs, points=points, noise=noise)
        for name, of_bins in bins.items():
            for (low, high), shares in of_bins.items():
                figures[name] |= {f"{low}-{high} {key}": share for key, share in shares.items()}
    for protocol in [p for p in PROTOCOLS if p in wanted]:
        results = evaluate(shapes, recipe.data.make(protocol), runners, pairs=pairs, chamfer=False)
        for name, values in results.figures().items():
            kept = ("rotation_mean", "rotation_median", "translation_mean", "recall_5", "recall_10")
            figures[name] |= {f"{protocol} {key}": values[key] for key in kept}
    return figures


def landscape_of(network: Any, shapes: Shapes, recipe: Recipe, pairs: int) -> dict[str, Any]:
    """How star-convex the energy is, and how many steps the update takes, on pairs as in training."""
    given = PairDataset(shapes, recipe.data.make(), 7, min(pairs, 40))
    counts = iterations_to_converge(network, given)
    angles, shares = violation_curve(network, given)
    return {
        "violation_rate_60": violation_rate(network, given, radius_deg=60.0),
        "basin_radius": basin_of(angles, shares),
        "iterations": float(counts.double().mean()),
        "curve": {"angles_deg": angles, "shares": shares},
    }


def table(out: Path, architectures: Sequence[str], columns: Sequence[str], seeds: Sequence[int]) -> str:
    """Markdown: mean +- standard deviation over the seeds that are finished, in per cent where there is no unit."""
    parts = [header_of(out)]
    for architecture in architectures:
        cells = {c: found for c in columns if (found := read(out, architecture, c, seeds))}
        if not cells:
            continue
        baselines = read(out, "baselines", "none", [0])
        parts.append(f"### {architecture}")
        landscape = ["violated", "basin [deg]", "steps"]
        for title, headings, row in (
            ("Success by initial rotation, and the landscape", [*(f"{a}-{b}" for a, b in BINS), *landscape], success),
            ("Accuracy", list(PROTOCOLS), accuracy),
        ):
            for name in ("learned", "polished"):
                rows = [[f"{column} ({len(found)})", *row(found, name)] for column, found in cells.items()]
                rows += [[baseline, *row(baselines, baseline)] for baseline in BASELINES]
                heading = title + (", then polished by ICP" if name == "polished" else "")
                parts.append(f"**{heading}**\n\n" + markdown(["column (seeds)", *headings], rows))
    return "\n\n".join(parts)


def header_of(out: Path) -> str:
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob(f"*/*/*/{CELL}"))]
    if not cells:
        return "No cell is finished."
    seconds = [c["training"]["seconds_per_step"] for c in cells if "training" in c]
    pairs, data = sorted({c["pairs"] for c in cells}), sorted({c["data"][:12] for c in cells})
    lines = [
        f"{len(cells)} cells; pairs a figure: {pairs}; shapes {', '.join(data)}; {cells[0]['hardware']['processor']}",
        *([f"{min(seconds):.2f} to {max(seconds):.2f} s a step"] if seconds else []),
        "success within 5 / 10 degrees by initial rotation [%]",
        "violated: share of rays that are not star-convex at 60 degrees [%]",
        "accuracy: mean rotation error [deg] / mean translation error; spread: standard deviation over seeds",
    ]
    return "\n".join(f"- {line}" for line in lines)


def success(cells: list[dict[str, Any]], name: str) -> list[str]:
    """By initial rotation, and what the landscape is like, which no polish changes."""
    shares = [
        " / ".join(spread(values(cells, name, f"{low}-{high} within_{d}", 100), ".0f") for d in (5, 10))
        for low, high in BINS
    ]
    shape = [c["landscape"] for c in cells if "landscape" in c and name == "learned"]
    return [
        *shares,
        spread([100 * s["violation_rate_60"] for s in shape], ".0f"),
        spread([s["basin_radius"] for s in shape], ".0f"),
        spread([s["iterations"] for s in shape], ".1f"),
    ]


def accuracy(cells: list[dict[str, Any]], name: str) -> list[str]:
    """On each protocol."""
    figures = [
        [
            spread(values(cells, name, f"{protocol} {what}_mean"), form)
            for what, form in (("rotation", ".1f"), ("translation", ".3f"))
        ]
        for protocol in PROTOCOLS
    ]
    return [" / ".join(pair) if all(pair) else "" for pair in figures]


def values(cells: list[dict[str, Any]], name: str, key: str, scale: float = 1) -> list[float]:
    """One figure of a method, of the seeds that have it."""
    found = [cell["methods"].get(name, {}) for cell in cells]
    return [scale * figures[key] for figures in found if key in figures]


def spread(values: list[float], form: str) -> str:
    """Mean +- standard deviation; the mean alone of one value."""
    if not values:
        return ""
    mean = format(statistics.mean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {format(statistics.stdev(values), form)}"


def read(out: Path, architecture: str, column: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The finished cells of these seeds."""
    cells = (finished(folder_of(out, architecture, column, seed)) for seed in seeds)
    return [cell for cell in cells if cell]


if __name__ == "__main__":
    sys.exit(main())
