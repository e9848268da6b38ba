"""Trains a network from a recipe: weights.safetensors and card.json, with a log and a checkpoint.

    python tools/train.py RECIPE.toml --data DATA.npz [--out DIR] [--resume | --overwrite] [--set table.key=value ...]
    torchrun --nproc-per-node 4 tools/train.py RECIPE.toml --data DATA.npz    # the batch shared by four processes

DATA.npz is what the scripts in datasets/ prepare. A run that was interrupted goes on with --resume, to the same bits.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch

from dlc_reg.errors import InputError
from dlc_reg.evaluation import licences, provenance
from dlc_reg.io import replacing
from dlc_reg.registration.result import strict_json
from dlc_reg.training import CHECKPOINT, LOG, Trained, load_recipe, task_of, train

WEIGHTS, CARD = "weights.safetensors", "card.json"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="an npz that a script in datasets/ prepared")
    parser.add_argument("--out", type=Path, help="a folder; default: runs/ and the recipe's file name")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="remove what an earlier run left in the folder")
    parser.add_argument("--set", action="append", default=[], metavar="table.key=value", help="changes the recipe")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU if there is one")
    parser.add_argument("--threads", type=int, help="of this process; default: torch's choice")
    parser.add_argument("--tensorboard", action="store_true", help="log for TensorBoard too")
    options = parser.parse_args(arguments)
    try:
        run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 64
    return 0


def run(options: argparse.Namespace) -> None:
    recipe = load_recipe(options.recipe, options.set)
    out = options.out or Path("runs") / options.recipe.stem
    first = os.environ.get("RANK", "0") == "0"
    if first:
        prepare_folder(out, options.resume, options.overwrite)
    if options.threads:
        torch.set_num_threads(options.threads)
    task = task_of(recipe)
    data = task.load(options.data, recipe, cache=out.parent, progress=first and sys.stderr.isatty())
    trained = train(
        recipe,
        data,
        out,
        resume=options.resume or not first,
        device=options.device,
        tensorboard=options.tensorboard,
        progress=sys.stderr.isatty(),
    )
    if not first:
        return
    for name, cost in trained.costs.items():
        print(f"cost  {name:<12} {1000 * cost['seconds']:8.1f} ms a step, {cost['passes']:5.1f} forward passes")
    card = describe(trained, data, options)
    task.save(out / WEIGHTS, trained.network, card)
    with replacing(out / CARD, overwrite=True) as draft:
        draft.write_text(strict_json(card, indent=2) + "\n", encoding="utf-8")
    figures = ", ".join(f"{name} {value:.4g}" for name, value in trained.figures.items())
    print(f"best on validation: {figures}\nwrote {out / WEIGHTS}")


def prepare_folder(out: Path, resume: bool, overwrite: bool) -> None:
    """An earlier run is touched only when asked for."""
    found = [out / name for name in (CHECKPOINT, LOG, WEIGHTS, CARD) if (out / name).exists()]
    if found and not resume:
        if not overwrite:
            raise InputError("--out", f"'{out}', which holds a run", "a new folder, --resume or --overwrite")
        for path in found:
            path.unlink()


def describe(trained: Trained, data: Any, options: argparse.Namespace) -> dict[str, object]:
    """The model card: everything that is needed to make the same weights again, and what they are good for."""
    recipe = trained.recipe
    return {
        "recipe": recipe.to_dict(),
        "seed": recipe.seed,
        "data": {
            "file": options.data.name,
            "checksum": data.checksum,
            "items": len(data),
            "licences": licences(options.data),
        },
        "figures": {"validation": trained.figures, "parameters": trained.parameters},
        "seconds_per_step": trained.seconds_per_step,
        "costs": trained.costs,
        "command": "python " + " ".join(sys.argv),
        **provenance(),
    }


if __name__ == "__main__":
    sys.exit(main())
