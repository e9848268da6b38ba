"""Figures of registration on data with known poses.

    python tools/evaluate.py 3dmatch|3dlomatch|kitti|eth FRAGMENTS.npz [--pairs 100] [--method M ...] [--out DIR]
    python tools/evaluate.py pairs PAIRS.csv [--method M ...] [--out DIR]
    python tools/evaluate.py modelnet40 --data SHAPES.npz --protocol P --method M ... [--weights W ...] [--out DIR]
    python tools/evaluate.py images --data PICTURES.npz [--method M ...] [--weights W ...] [--published GoogleMap]
    python tools/evaluate.py sequences --data DATA.npz --weights W ...

3dmatch, 3dlomatch, kitti, eth: recall, errors and trust of `register` and its peers on fragments of scenes.

pairs: the same on pairs of one's own, which a CSV file lists, with their true poses or without.

modelnet40: `dlc-reg evaluate` under another name: the field's table on pairs that a protocol makes of shapes.

images: shares of image pairs by corner error. sequences: recurrent networks on held-out sequences.

Each says more with --help.
"""

from __future__ import annotations

import argparse
import sys

import evaluate_images
import evaluate_pairs
import evaluate_scenes
import evaluate_sequences

from dlc_reg.cli import main as dlc_reg_command

KINDS = (*evaluate_scenes.PROTOCOLS, "pairs", "modelnet40", "images", "sequences")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    kind, rest = parser.parse_args(sys.argv[1:2]).kind, sys.argv[2:]
    if kind == "modelnet40":
        dlc_reg_command(["evaluate", *rest], prog_name="dlc-reg")
    elif kind == "images":
        evaluate_images.main(rest)
    elif kind == "sequences":
        evaluate_sequences.main(rest)
    elif kind == "pairs":
        evaluate_pairs.main(rest)
    else:
        evaluate_scenes.main(kind, rest)


if __name__ == "__main__":
    main()
