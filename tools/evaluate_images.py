"""`python tools/evaluate.py images`: shares of image pairs by corner error, beside peers and published values."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

import dlc_reg
from dlc_reg._image_evaluation import PUBLISHED, describe, evaluate_images, image_method, image_table, names
from dlc_reg._image_pairs import ImagePairs, Pictures
from dlc_reg.errors import InputError
from dlc_reg.io import replacing


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="evaluate.py images", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="an npz that datasets/images.py prepared")
    parser.add_argument("--split", choices=["train", "val", "test"], default="val")
    parser.add_argument("--method", action="append", default=[], help="middle, ecc, sift, auto, gradients, ...")
    parser.add_argument("--weights", action="append", default=[], help="of learned features: a file")
    parser.add_argument("--pairs", type=int, help="default: one a picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=192, help="of the input in pixels; the template has 2/3 of it")
    parser.add_argument("--zoom", type=float, default=1.0, help="pixels of the picture that one of the pair stands for")
    parser.add_argument("--reach", type=float, default=1.0, help="share of the protocol's 32 pixels")
    parser.add_argument("--photometric", type=float, default=1.0, help="strength of the change of tones")
    parser.add_argument("--unrelated", action="store_true", help="pairs of two pictures: none may be trusted")
    parser.add_argument("--published", choices=sorted(PUBLISHED), help="the papers' table to stand beside")
    parser.add_argument("--out", type=Path, help="a JSON file with every pair's error")
    parser.add_argument("--num-threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.num_threads)
    try:
        if options.out is not None and options.out.exists():
            raise InputError("--out", f"'{options.out}', which exists", "a new file")
        pictures = Pictures.load(options.data).select(options.split)
        pairs = ImagePairs(
            pictures,
            options.seed,
            options.pairs,
            size=options.size,
            zoom=options.zoom,
            reach=options.reach,
            photometric=options.photometric,
        )
        methods = {name: image_method(name) for name in names(options.method, options.weights)}
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    about = {"dlc_reg": dlc_reg.__version__, "split": options.split, **describe(pairs), "unrelated": options.unrelated}
    print(", ".join(f"{key} {value}" for key, value in about.items()) + "\n")
    figures = evaluate_images(pairs, methods, unrelated=options.unrelated, progress=sys.stderr.isatty())
    print(image_table(figures, options.published))
    if options.out is not None:
        rows = {name: {"errors": f.errors.tolist(), "verdicts": f.verdicts} for name, f in figures.items()}
        with replacing(options.out, overwrite=False) as draft:
            draft.write_text(json.dumps({"about": about, "methods": rows}, indent=1) + "\n", encoding="utf-8")
