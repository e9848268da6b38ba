"""Fits the trust in `dlc_reg.registration.verification` on registrations with known answers.

    python tools/calibrate_verdict.py FRAGMENTS.npz [--pairs 200] [--seed 101] [--viewpoints]

The file's format is in `fragments.py`. As many pairs of 3DMatch, of 3DLoMatch and of fragments from different scenes
(which have no answer) are registered. The fit is a logistic regression; the figures printed hold each
scene out in turn. Right is within 15 degrees and 0.3 m. At the threshold, 1% of what is trusted is wrong.
"""

from __future__ import annotations

import argparse

import numpy as np
from fragments import Fragments
from numpy.typing import NDArray
from tqdm import tqdm

from dlc_reg.geometry import globalize
from dlc_reg.metrics import rotation_error, translation_error
from dlc_reg.registration.global_search import GlobalSearch, working_voxel_size
from dlc_reg.registration.verification import features, gather

Array = NDArray[np.float64]
WRONG_TRUSTED = 0.01
RIDGE = 1e-3


def collect(path: str, count: int, seed: int, viewpoints: bool) -> tuple[Array, Array, NDArray[np.str_]]:
    """Features (N, F), right (N,) and scene (N,)."""
    fragments, rng = Fragments(path), np.random.default_rng(seed)
    tasks = [task for benchmark in fragments.benchmarks for task in fragments.pairs(benchmark, count, rng)]
    rows, right, scenes = [], [], []
    for task in tqdm([*tasks, *fragments.strangers(count, rng)]):
        source, target = (fragments.cloud(i, viewpoint=viewpoints) for i in (task.source, task.target))
        search = GlobalSearch.prepare(source, target, working_voxel_size(source, target))
        candidates = search.candidates()
        rows.append(features(gather(search, candidates.poses[0], candidates)))
        found, truth = globalize(candidates.poses[0].numpy(), source, target), task.T_target_source
        right.append(
            truth is not None
            and float(rotation_error(found, truth)) < np.radians(15)
            and float(translation_error(found, truth)) < 0.3
        )
        scenes.append(fragments.scene(task.target))
    return np.array(rows), np.array(right, dtype=np.float64), np.array(scenes)


def fit(x: Array, y: Array) -> Array:
    """Logistic regression by Newton's method: weights (F + 1,), the intercept last."""
    mean, spread = x.mean(0), x.std(0) + 1e-9
    z = np.c_[(x - mean) / spread, np.ones(len(x))]
    ridge = np.diag([RIDGE * len(y)] * x.shape[1] + [0.0])
    w = np.zeros(z.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-z @ w))
        w -= np.linalg.solve(z.T @ (z * (p * (1 - p))[:, None]) + ridge, z.T @ (p - y) + ridge @ w)
    weights = w[:-1] / spread
    return np.r_[weights, w[-1] - weights @ mean]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=101)
    parser.add_argument("--viewpoints", action="store_true", help="the sensor stood at each fragment's origin")
    options = parser.parse_args()
    x, y, scenes = collect(options.data, options.pairs, options.seed, options.viewpoints)

    held_out = np.zeros(len(y))
    for scene in np.unique(scenes):
        w = fit(x[scenes != scene], y[scenes != scene])
        held_out[scenes == scene] = x[scenes == scene] @ w[:-1] + w[-1]
    order = np.argsort(-held_out, kind="stable")
    wrong = np.cumsum(1 - y[order]) / np.arange(1, len(y) + 1)
    trusted = int(np.flatnonzero(wrong <= WRONG_TRUSTED).max(initial=-1)) + 1
    kept = y[order][:trusted].sum() / y.sum()
    above, below = held_out[y > 0], held_out[y == 0]
    auc = float((above[:, None] > below).mean())
    threshold = 1 / (1 + np.exp(-held_out[order[trusted - 1]]))
    print(f"{len(y)} registrations, {int(y.sum())} right, seed {options.seed}, viewpoints {options.viewpoints}")
    print(f"scenes held out: AUC {auc:.3f}; {kept:.0%} of the right trusted at {WRONG_TRUSTED:.0%} wrong")
    print("weights", np.round(fit(x, y), 3).tolist(), "threshold", round(float(threshold), 3))


if __name__ == "__main__":
    main()
