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
from dlc_reg.registration.verification import Evidence, features, gather

Array = NDArray[np.float64]
WRONG_TRUSTED = 0.01
RIDGE = 1e-3


def collect(
    path: str, count: int, seed: int, viewpoints: bool
) -> tuple[list[Evidence], NDArray[np.bool_], NDArray[np.str_]]:
    """Evidence, right (N,) and scene (N,)."""
    fragments, rng = Fragments(path), np.random.default_rng(seed)
    tasks = [task for benchmark in fragments.benchmarks for task in fragments.pairs(benchmark, count, rng)]
    found, right, scenes = [], [], []
    for task in tqdm([*tasks, *fragments.strangers(count, rng)]):
        source, target = (fragments.cloud(i, viewpoint=viewpoints) for i in (task.source, task.target))
        search = GlobalSearch.prepare(source, target, working_voxel_size(source, target))
        candidates = search.candidates()
        found.append(gather(search, candidates.poses[0], candidates))
        pose, truth = globalize(candidates.poses[0].numpy(), source, target), task.T_target_source
        right.append(
            truth is not None
            and float(rotation_error(pose, truth)) < np.radians(15)
            and float(translation_error(pose, truth)) < 0.3
        )
        scenes.append(fragments.scene(task.target))
    return found, np.array(right), np.array(scenes)


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


def held_out(x: Array, y: Array, scenes: NDArray[np.str_]) -> Array:
    """Log odds (N,), each from the other scenes' fit."""
    odds = np.zeros(len(y))
    for scene in np.unique(scenes):
        w = fit(x[scenes != scene], y[scenes != scene])
        odds[scenes == scene] = x[scenes == scene] @ w[:-1] + w[-1]
    return odds


def auc(scores: Array, y: Array) -> float:
    above, below = scores[y > 0][:, None], scores[y == 0]
    return float((above > below).mean() + 0.5 * (above == below).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=101)
    parser.add_argument("--viewpoints", action="store_true", help="the sensor stood at each fragment's origin")
    options = parser.parse_args()
    found, right, scenes = collect(options.data, options.pairs, options.seed, options.viewpoints)
    x, y = np.array([features(e) for e in found]), right.astype(np.float64)
    odds = held_out(x, y, scenes)
    order = np.argsort(-odds, kind="stable")
    wrong = np.cumsum(1 - y[order]) / np.arange(1, len(y) + 1)
    trusted = int(np.flatnonzero(wrong <= WRONG_TRUSTED).max(initial=-1)) + 1
    kept = y[order][:trusted].sum() / y.sum()
    threshold = 1 / (1 + np.exp(-odds[order[trusted - 1]]))
    print(f"{len(y)} registrations, {int(y.sum())} right, seed {options.seed}, viewpoints {options.viewpoints}")
    print(f"scenes held out: AUC {auc(odds, y):.3f}; {kept:.0%} of the right trusted at {WRONG_TRUSTED:.0%} wrong")
    print("weights", np.round(fit(x, y), 3).tolist(), "threshold", round(float(threshold), 3))


if __name__ == "__main__":
    main()
