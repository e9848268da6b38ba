"""Figures of registration on data with known poses.

    python tools/evaluate.py scenes FRAGMENTS.npz [--pairs 100] [--seed 0] [--viewpoints] [--num-threads 1]
    python tools/evaluate.py images --data PICTURES.npz [--method M ...] [--weights W ...] [--published GoogleMap]
    python tools/evaluate.py modelnet40 --data SHAPES.npz --protocol P --method M ... [--weights W ...] [--out DIR]

scenes: recall and trust of `dlc_reg.register` on fragments of scenes; the file's format is in `fragments.py`. Two
recalls: rotation within 15 degrees and translation within 0.3 m; and Redwood's RMSE below 0.2 m. A wrong answer that is
called aligned is gross beyond 15 degrees or 1 m, else near.

images: shares of image pairs by corner error; see `images --help`.

sequences: recurrent networks on held-out sequences; see `sequences --help`.

modelnet40: `dlc-reg evaluate` under another name: the field's table on pairs that a protocol makes of shapes.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import evaluate_images
import evaluate_sequences
import numpy as np
import torch
from fragments import BENCHMARKS, Fragments
from tqdm import tqdm

import dlc_reg
from dlc_reg.cli import main as dlc_reg_command
from dlc_reg.metrics import redwood_rmse, rotation_error, translation_error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("images", add_help=False, help="see `images --help`")
    kinds.add_parser("sequences", add_help=False, help="see `sequences --help`")
    kinds.add_parser("modelnet40", add_help=False, help="see `modelnet40 --help`")
    scenes_parser = kinds.add_parser("scenes")
    scenes_parser.add_argument("data")
    scenes_parser.add_argument("--pairs", type=int, default=100, help="of each benchmark")
    scenes_parser.add_argument("--seed", type=int, default=0, help="of the choice of pairs")
    scenes_parser.add_argument("--viewpoints", action="store_true", help="tell that the sensor stood at each origin")
    scenes_parser.add_argument("--num-threads", type=int, default=1)
    options, rest = parser.parse_known_args()
    if options.kind == "modelnet40":
        dlc_reg_command(["evaluate", *rest], prog_name="dlc-reg")
    elif options.kind == "images":
        evaluate_images.main(rest)
    elif options.kind == "sequences":
        evaluate_sequences.main(rest)
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    else:
        scenes(options)


def scenes(options: argparse.Namespace) -> None:
    """Prints a line a benchmark."""
    torch.set_num_threads(options.num_threads)
    fragments = Fragments(options.data)
    print(
        f"dlc_reg {dlc_reg.__version__}, torch {torch.__version__}, {platform.machine()}, seed {options.seed}, "
        f"{options.num_threads} threads, viewpoints {'known' if options.viewpoints else 'unknown'}"
    )
    for benchmark in BENCHMARKS:
        right, redwood, trusted, gross, seconds = [], [], [], [], []
        for task in tqdm(list(fragments.pairs(benchmark, options.pairs, np.random.default_rng(options.seed)))):
            source, target = (fragments.cloud(i, viewpoint=options.viewpoints) for i in (task.source, task.target))
            began = time.perf_counter()
            result = dlc_reg.register(source, target, num_threads=options.num_threads)
            seconds.append(time.perf_counter() - began)
            turn = np.degrees(float(rotation_error(result.transformation, task.T_target_source)))
            shift = float(translation_error(result.transformation, task.T_target_source))
            right.append(turn < 15 and shift < 0.3)
            redwood.append(float(redwood_rmse(result.transformation, task.T_target_source, task.information)) < 0.2)
            trusted.append(result.verdict == "aligned")
            gross.append(turn > 15 or shift > 1)
        r, t, g = np.array(right), np.array(trusted), np.array(gross)
        print(
            f"{benchmark}: {len(r)} pairs, recall {r.mean():.3f} (15 deg, 0.3 m), {np.mean(redwood):.3f} (Redwood); "
            f"{t[r].mean():.2f} of the right ones aligned; aligned though wrong {(t & ~r).sum()}, "
            f"grossly {(t & g).sum()}; median {statistics.median(seconds):.2f} s"
        )


if __name__ == "__main__":
    main()
