"""Holds `result.covariance` to the scatter of repeated registrations: Monte Carlo over sampling and noise.

    python tools/check_covariance.py [--trials 200] [--points 3000] [--noise 0.1 0.5 1.5] [--method point_to_plane]
        [--cloud scan.ply ...] [--seed 0]

Each trial samples a shape twice, independently, adds independent Gaussian noise (in units of the mean spacing) and
refines from near the true pose as `register` does. Of a scan (`--cloud`) each trial takes two halves that share no
point. An error is the twist xi = (rotation xyz [rad], translation xyz), a left update of the answer about
`settings["information_origin"]` in the target's frame: exp(xi) T_found = T_true. Printed a case: for each of the six
the root mean square error over the root mean predicted variance (1 is right, above 1 over-confident); the mean of the
normalised squared error xi^T C^-1 xi over its expectation, 6, beside that of the textbook's covariance sigma^2 H^-1;
and the share of the trials whose error lies within the 95% ellipsoid of chi-square with 6 degrees of freedom.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from dlc_reg._register_parts import Lengths
from dlc_reg.geometry import PointCloud
from dlc_reg.registration.global_search import working_voxel_size
from dlc_reg.registration.icp import coarse_to_fine
from dlc_reg.registration.objectives import OBJECTIVES
from dlc_reg.registration.result import RegistrationResult

Array = NDArray[np.float64]
Sampler = Callable[[np.random.Generator, int], tuple[Array, Array]]

START = 0.3  # of the spacing: how far from the truth a trial begins


@dataclass(frozen=True)
class Scatter:
    """Of the K trials that predicted a covariance.

    `errors` (K, 6), `covariances` (K, 6, 6), and `factors` (K,) by which these exceed the textbook's.
    """

    errors: Array
    covariances: Array
    factors: Array

    @property
    def ratios(self) -> Array:
        """(6,): root mean square error over the root mean predicted variance."""
        predicted = np.diagonal(self.covariances, axis1=1, axis2=2).mean(0)
        return np.asarray(np.sqrt((self.errors**2).mean(0) / predicted))

    @property
    def normalised(self) -> Array:
        """(K,): xi^T C^-1 xi, chi-square with 6 degrees of freedom if the covariance is right."""
        solved = np.linalg.solve(self.covariances, self.errors[:, :, None])
        return np.asarray((self.errors[:, None] @ solved)[:, 0, 0])

    @property
    def textbook(self) -> Array:
        """(K,): `normalised` by the textbook's covariance."""
        return self.normalised * self.factors

    @property
    def within(self) -> float:
        """The share within the 95% ellipsoid."""
        return float((self.normalised < chi2.ppf(0.95, 6)).mean())


def boxes(*sides: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Sampler:
    """Even samples of the surfaces of axis-aligned boxes, each given by two corners; half of them for each cloud."""
    low, high = (np.array([side[k] for side in sides]) for k in (0, 1))
    edges = high - low
    areas = np.stack([edges[:, 1] * edges[:, 2], edges[:, 0] * edges[:, 2], edges[:, 0] * edges[:, 1]], 1)
    chances = np.tile(areas, 2).ravel() / (2 * areas.sum())

    def sample(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
        face = rng.choice(len(chances), 2 * count, p=chances)
        of, face = face // 6, face % 6
        points = low[of] + rng.uniform(size=(2 * count, 3)) * edges[of]
        rows = np.arange(2 * count)
        points[rows, face % 3] = np.where(face < 3, low[of, face % 3], high[of, face % 3])
        return points[:count], points[count:]

    return sample


def halves(points: Array) -> Sampler:
    """Two random subsets of `points` (N, 3) that share none."""

    def sample(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
        order = rng.permutation(len(points))
        count = min(count, len(points) // 2)
        return points[order[:count]], points[order[count : 2 * count]]

    return sample


SHAPES = {
    "L-shape": boxes(((0, 0, 0), (3, 1, 1)), ((0, 1, 0), (1, 2, 0.8))),
    "room": boxes(((0, 0, 0), (5, 4, 2.5)), ((0.5, 0.4, 0), (2, 1.2, 0.8)), ((3.5, 2.5, 0), (4.2, 3.7, 1.9))),
}


def scatter(sample: Sampler, count: int, noise: float, trials: int, *, method: str, seed: int) -> Scatter:
    """`trials` registrations of pairs from `sample`, `noise` in units of the spacing."""
    errors, covariances, factors = [], [], []
    for trial in range(trials):
        rng = np.random.default_rng([seed, trial])
        clouds = sample(rng, count)
        sigma = noise * PointCloud.from_any(clouds[1]).spacing
        moving, fixed = (cloud + sigma * rng.normal(size=cloud.shape) for cloud in clouds)
        truth = np.eye(4)
        truth[:3, :3] = Rotation.random(random_state=rng).as_matrix()
        truth[:3, 3] = rng.normal(size=3)
        fixed = fixed @ truth[:3, :3].T + truth[:3, 3]
        result = refined(moving, fixed, truth, method, rng)
        if result.covariance is not None:
            errors.append(error(result, truth))
            covariances.append(result.covariance)
            factors.append(result.settings["matches_per_target_point"] / result.settings["stiffness"] ** 2)
    return Scatter(np.array(errors), np.array(covariances), np.array(factors))


def refined(moving: Array, fixed: Array, truth: Array, method: str, rng: np.random.Generator) -> RegistrationResult:
    """What `register` refines to from near the truth, without its search."""
    source, target = PointCloud.from_any(moving), PointCloud.from_any(fixed)
    lengths = Lengths.derive(source, target, working=working_voxel_size(source, target), voxel_size=None, distance=None)
    shift = START * lengths.spacing
    start = np.eye(4)
    start[:3, :3] = Rotation.from_rotvec(rng.normal(size=3) * shift / target.extent).as_matrix()
    start[:3, 3] = target.origin - start[:3, :3] @ target.origin + shift * rng.normal(size=3)
    sizes, distances = lengths.levels(lengths.voxel_size / 2)
    return coarse_to_fine(
        source, target, OBJECTIVES[method], start @ truth, voxel_sizes=sizes, max_distances=distances, num_threads=1
    )


def error(result: RegistrationResult, truth: Array) -> Array:
    """The twist (6,), to first order, that carries the answer to the truth."""
    about = np.eye(4)
    about[:3, 3] = result.settings["information_origin"]
    step = np.linalg.inv(about) @ truth @ np.linalg.inv(result.transformation) @ about
    return np.concatenate([Rotation.from_matrix(step[:3, :3]).as_rotvec(), step[:3, 3]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--points", type=int, default=3000)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.1, 0.5, 1.5], help="in units of the mean spacing")
    parser.add_argument("--method", choices=list(OBJECTIVES), default="point_to_plane")
    parser.add_argument("--cloud", nargs="+", default=[], help="scans, instead of the shapes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    cases = {Path(path).name: halves(PointCloud.from_any(path).to_absolute()) for path in options.cloud} or SHAPES
    columns = ["shape", "noise / spacing", "error / predicted: rotation xyz, translation xyz", "normalised / 6"]
    print("| " + " | ".join([*columns, "textbook's", "in 95%"]) + " |")
    print("|---|---|---|---|---|---|")
    for name, sample in cases.items():
        for noise in options.noise:
            found = scatter(sample, options.points, noise, options.trials, method=options.method, seed=options.seed)
            left = options.trials - len(found.errors)
            if left == options.trials:
                print(f"| {name} | {noise:g} | none predicts a covariance | | | |")
                continue
            ratios = " ".join(f"{ratio:.1f}" for ratio in found.ratios)
            means = f"{found.normalised.mean() / 6:.1f} | {found.textbook.mean() / 6:.1f}"
            note = f" ({left} of {options.trials} predict none)" if left else ""
            print(f"| {name} | {noise:g} | {ratios} | {means} | {found.within:.0%}{note} |")


if __name__ == "__main__":
    main()
