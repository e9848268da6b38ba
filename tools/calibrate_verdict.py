"""Fits the trust in `dlc_reg.registration.verification` on registrations with known answers.

    python tools/calibrate_verdict.py FRAGMENTS.npz [--pairs 200] [--seed 101 303] [--viewpoints]

The file's format is in `fragments.py`. As many pairs of 3DMatch, of 3DLoMatch and of fragments from different scenes
(which have no answer) are registered. The fits are logistic regressions, one on the quick search's answers and one on
the whole search's where the first are not certain; the figures printed hold each scene out in turn. Right is within 15
degrees and 0.3 m, gross beyond 15 degrees or 1 m. Of what is certain 1% is wrong above the threshold, and 0.25%
grossly; of what is trusted, 1.5% and 0.4%.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from fragments import Fragments
from numpy.typing import NDArray
from tqdm import tqdm

from dlc_reg.geometry import PointCloud, globalize
from dlc_reg.metrics import rotation_error, translation_error
from dlc_reg.registration.global_search import GlobalSearch, working_voxel_size
from dlc_reg.registration.verification import Evidence, features, gather

Array = NDArray[np.float64]
CERTAIN, TRUSTED = (0.01, 0.0025), (0.015, 0.004)  # at most so much is wrong, and grossly
RIDGE = 1e-3


@dataclass(frozen=True)
class Registration:
    """Its evidence, and its errors against the truth: infinite where there is none."""

    evidence: Evidence
    rotation: float  # [rad]
    translation: float  # in the clouds' unit
    scene: str

    @property
    def matching(self) -> bool:
        """Whether there is a truth."""
        return bool(np.isfinite(self.rotation))

    def within(self, degrees: float, distance: float) -> bool:
        return self.rotation < np.radians(degrees) and self.translation < distance

    @property
    def right(self) -> bool:
        return self.within(15, 0.3)

    @property
    def gross(self) -> bool:
        """Wrong, and no near miss, which is often within the doubt about the truth."""
        return not self.within(15, 1.0)


def registered(source: PointCloud, target: PointCloud, truth: Array | None, scene: str) -> list[Registration]:
    """The best of the quick search and that of the whole, which `register` takes where the first is not certain."""
    quick = GlobalSearch.prepare(source, target, working_voxel_size(source, target), quick=True)
    first = quick.candidates()
    whole = quick.widened()
    found = []
    for search, candidates in ((quick, first), (whole, whole.candidates(first.poses))):
        pose = globalize(candidates.poses[0].numpy(), source, target)
        errors = (np.inf, np.inf) if truth is None else (rotation_error(pose, truth), translation_error(pose, truth))
        evidence = gather(search, candidates.poses[0], candidates)
        found.append(Registration(evidence, float(errors[0]), float(errors[1]), scene))
    return found


def collect(path: str, count: int, seed: int, viewpoints: bool) -> tuple[list[Registration], list[Registration]]:
    """By the quick search and by the whole: `count` pairs of each benchmark in the file, and as many of two scenes."""
    fragments, rng = Fragments(path), np.random.default_rng(seed)
    tasks = [task for benchmark in fragments.benchmarks for task in fragments.pairs(benchmark, count, rng)]
    found = []
    for task in tqdm([*tasks, *fragments.strangers(count, rng)]):
        source, target = (fragments.cloud(i, viewpoint=viewpoints) for i in (task.source, task.target))
        found.append(registered(source, target, task.T_target_source, fragments.scene(task.target)))
    return [quick for quick, _ in found], [whole for _, whole in found]


def columns(found: Sequence[Registration]) -> tuple[Array, Array, NDArray[np.str_]]:
    """What the trust is made of (N, F), whether it is right, 0 or 1 (N,), and the scene (N,)."""
    x = np.array([features(r.evidence) for r in found])
    return x, np.array([float(r.right) for r in found]), np.array([r.scene for r in found])


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


def firm(odds: Array, found: Sequence[Registration], bounds: tuple[float, float]) -> float:
    """The log odds from which on at most the shares `bounds` of what is found are wrong, and grossly; inf: nowhere."""
    order = np.argsort(-odds, kind="stable")
    wrong = np.array([(not found[i].right, found[i].gross) for i in order]).cumsum(0)
    allowed = (wrong <= np.arange(1, len(odds) + 1)[:, None] * bounds).all(1)
    return float(odds[order[np.flatnonzero(allowed).max()]]) if allowed.any() else np.inf


@dataclass(frozen=True)
class Settled:
    """What `register` would answer, each by a trust that was fitted on the other scenes."""

    found: list[Registration]
    odds: Array  # log odds (N,) of the trust
    certain: NDArray[np.bool_]  # by the quick search already
    bound: float  # log odds from which on the rest is trusted

    @property
    def trusted(self) -> NDArray[np.bool_]:
        return self.certain | (self.odds >= self.bound)


def settle(quick: Sequence[Registration], whole: Sequence[Registration]) -> Settled:
    x, y, scenes = columns(quick)
    odds = held_out(x, y, scenes)
    certain = odds >= firm(odds, quick, CERTAIN)
    x, y, scenes = columns(whole)
    odds[~certain] = held_out(x[~certain], y[~certain], scenes[~certain])
    found = [a if sure else b for a, b, sure in zip(quick, whole, certain, strict=True)]
    return Settled(found, odds, certain, firm(np.where(certain, np.inf, odds), found, TRUSTED))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, nargs="+", default=[101, 303], help="as many pairs by each")
    parser.add_argument("--viewpoints", action="store_true", help="the sensor stood at each fragment's origin")
    options = parser.parse_args()
    found = [collect(options.data, options.pairs, seed, options.viewpoints) for seed in options.seed]
    quick, whole = ([*chain(*parts)] for parts in zip(*found, strict=True))
    settled = settle(quick, whole)
    later = ~settled.certain
    print(f"{len(quick)} registrations, seed {options.seed}, viewpoints {options.viewpoints}; scenes held out:")
    for name, found, rows in (("quick search", quick, later | True), ("whole search, the rest", whole, later)):
        x, y, scenes = (column[rows] for column in columns(found))
        odds = held_out(x, y, scenes)
        print(f"{name}: {y.sum():.0f} of {len(y)} right, AUC {auc(odds, y):.3f}, weights {np.round(fit(x, y), 3)}")
    odds = held_out(*columns(quick))
    bounds = [firm(odds, quick, TRUSTED), firm(odds, quick, CERTAIN), settled.bound]
    print(
        "trust for aligned and certain, quick, and for aligned, whole:",
        np.round(1 / (1 + np.exp(-np.array(bounds))), 3),
    )
    right = np.array([r.right for r in settled.found])
    print(f"both: {right.sum()} right, {right[settled.trusted].mean():.1%} of the {settled.trusted.sum()} trusted; "
          f"{settled.trusted[right].mean():.0%} of the right are trusted, {settled.certain.mean():.0%} certain at once"
    )  # fmt: skip


if __name__ == "__main__":
    main()
