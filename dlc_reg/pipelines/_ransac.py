"""Random sample consensus over given or feature correspondences, by the names and with the defaults of Open3D 0.20.

As there: a sample of `ransac_n` correspondences gives a pose, the checkers throw out most, and the best pose is the one
under which most of the **whole** source lies within the distance of the target. Otherwise than there samples are looked
at in batches, hold no correspondence twice, and are the same for the same `seed`; and a pose is tried on a thousand
points of the source before it is tried on all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlc_reg.errors import InputError
from dlc_reg.pipelines._checkers import CorrespondenceChecker, Samples, as_checkers
from dlc_reg.pipelines._clouds import Cloud, check_finite, prepare_pair, read_cloud, read_correspondences
from dlc_reg.pipelines._colored import TransformationEstimationForColoredICP
from dlc_reg.pipelines._estimation import (
    TransformationEstimation,
    TransformationEstimationPointToPoint,
    _as_float,
    _as_int,
)
from dlc_reg.pipelines._features import correspondences_from_features
from dlc_reg.pipelines._run import (
    POINT_TO_POINT,
    RegistrationResult,
    as_distance,
    as_estimation,
    evaluate,
    nothing,
    wrong,
)
from dlc_reg.registration.assignment import polar_rotation
from dlc_reg.registration.objectives import PointToPoint

Array = NDArray[np.float64]

_FIRST_BATCH = 256
_BATCH = 4096
_TRIED = 1024  # poses tried at once, which bounds the memory
_TRIAL_POINTS = 1000  # of the source, on which a pose is tried first
_DOUBT = 3.0  # standard deviations by which the share of these may fall short of the best pose's


class RANSACConvergenceCriteria:
    """At most `max_iteration` samples; fewer as soon as a good one has been drawn with probability `confidence`.

    That is after log(1 - confidence) / log(1 - w^ransac_n) samples, w the share of the correspondences that the best
    pose so far explains. 1: all `max_iteration`.
    """

    max_iteration: int
    confidence: float

    def __init__(self, max_iteration: Any = 100000, confidence: Any = 0.999) -> None:
        if hasattr(max_iteration, "confidence"):
            max_iteration, confidence = max_iteration.max_iteration, max_iteration.confidence
        self.max_iteration, self.confidence = max_iteration, confidence

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("max_iteration", "confidence"):
            raise AttributeError(f"RANSACConvergenceCriteria has no attribute {name!r}")
        if name == "confidence":  # Open3D clamps it without a word
            value = min(max(_as_float(name, value), 0.0), 1.0)
        super().__setattr__(name, _as_int(name, value) if name == "max_iteration" else value)

    def __repr__(self) -> str:
        return f"RANSACConvergenceCriteria(max_iteration={self.max_iteration}, confidence={self.confidence:e})"


_CRITERIA = RANSACConvergenceCriteria()


def registration_ransac_based_on_correspondence(
    source: Any,
    target: Any,
    corres: Any,
    max_correspondence_distance: float,
    estimation_method: TransformationEstimation = POINT_TO_POINT,
    ransac_n: int = 3,
    checkers: Sequence[CorrespondenceChecker] = (),
    criteria: RANSACConvergenceCriteria = _CRITERIA,
    *,
    seed: int = 0,
    num_threads: int | None = None,
) -> RegistrationResult:
    """RANSAC over correspondences `corres` (m, 2), rows (source index, target index).

    Args:
        source, target: clouds (see the module).
        max_correspondence_distance: within it a moved source point counts as explained, in the points' unit.
        estimation_method: makes a pose of a sample; point-to-point without a scale is by far the fastest.
        ransac_n: correspondences in a sample, at least 3.
        checkers: what a sample has to pass before its pose is tried.
        criteria: how many samples.
        seed, num_threads: Open3D has neither. The same seed gives the same bytes, whatever the number of threads.

    The result's fitness, RMSE and correspondences are those of `evaluate_registration` at the pose found; `iterations`
    is the number of samples drawn. With fewer than `ransac_n` correspondences, or where no sample passes, it is empty
    and `status` says so.

    Raises:
        InputError: ransac_n < 3, a distance that is not positive, indices that a cloud has not, non-finite points.
        TypeError: anything that is not a cloud, correspondences, an estimation method, checkers or criteria.
    """
    estimation, distance = as_estimation(estimation_method), as_distance(max_correspondence_distance)
    if _as_int("ransac_n", ransac_n) < 3:
        raise InputError("ransac_n", str(ransac_n), "at least 3")
    if not distance > 0:
        raise InputError("max_correspondence_distance", f"{distance:g}", "a distance above 0")
    criteria, checks = _as_ransac_criteria(criteria), as_checkers(checkers)
    s, t = read_cloud(source, "source"), read_cloud(target, "target")
    for name, cloud in (("source", s), ("target", t)):
        check_finite(cloud, name)
    s, t = estimation._complete(s, t)
    if isinstance(estimation, TransformationEstimationForColoredICP):
        raise InputError("estimation_method", "colored ICP", "one that a few points determine: colours need a surface")
    pairs = read_correspondences(corres, len(s.points), len(t.points))
    if len(pairs) < ransac_n:
        return nothing()
    search = _Search(s, t, pairs, distance, num_threads)
    rng = np.random.default_rng(seed)
    drawn, enough, size = 0, criteria.max_iteration, _FIRST_BATCH
    while drawn < enough:
        count = min(size, enough - drawn)
        rows = _draw(rng, len(pairs), count, ransac_n)
        search.consider(_poses(Samples(s, t, pairs[rows]), estimation, checks))
        drawn, size = drawn + count, min(2 * size, _BATCH)
        enough = _enough(search.explained, ransac_n, criteria)
    result = nothing() if search.pose is None else evaluate(s, t, distance, search.pose, num_threads)
    result.iterations = drawn
    result.settings |= {"ransac_n": ransac_n, "seed": seed, "confidence": criteria.confidence}
    return result


def registration_ransac_based_on_feature_matching(
    source: Any,
    target: Any,
    source_feature: Any,
    target_feature: Any,
    mutual_filter: bool,
    max_correspondence_distance: float,
    estimation_method: TransformationEstimation = POINT_TO_POINT,
    ransac_n: int = 3,
    checkers: Sequence[CorrespondenceChecker] = (),
    criteria: RANSACConvergenceCriteria = _CRITERIA,
    *,
    seed: int = 0,
    num_threads: int | None = None,
) -> RegistrationResult:
    """RANSAC over `correspondences_from_features(source_feature, target_feature, mutual_filter)`; otherwise as
    `registration_ransac_based_on_correspondence`. Features are `Feature`s, one column a point of their cloud."""
    corres = correspondences_from_features(source_feature, target_feature, mutual_filter, num_threads=num_threads)
    return registration_ransac_based_on_correspondence(
        source,
        target,
        corres,
        max_correspondence_distance,
        estimation_method,
        ransac_n,
        checkers,
        criteria,
        seed=seed,
        num_threads=num_threads,
    )


class _Search:
    """The best pose so far, (4, 4) absolute: most source points within the distance, then the lowest RMSE."""

    def __init__(
        self, source: Cloud, target: Cloud, pairs: NDArray[np.int64], distance: float, num_threads: int | None
    ) -> None:
        self.matched = source.points[pairs[:, 0]], target.points[pairs[:, 1]]
        self.objective = PointToPoint()
        self.pair = prepare_pair(
            Cloud(source.points), Cloud(target.points), self.objective, max_distance=distance, num_threads=num_threads
        )
        self.trial = self.pair.source[:: max(1, len(source.points) // _TRIAL_POINTS)].double()
        self.pose: Array | None = None
        self.score = (0.0, 0.0)  # fitness, -RMSE
        self.explained = 0.0  # share of the correspondences

    def consider(self, poses: Array) -> None:
        parts = [self._shares(poses[first : first + _TRIED]) for first in range(0, len(poses), _TRIED)]
        shares = np.concatenate([np.zeros(0), *parts])
        doubt = _DOUBT / math.sqrt(len(self.trial)) if len(self.trial) < len(self.pair.source) else 0.0
        for k in np.argsort(-shares, kind="stable").tolist():
            fitness = self.score[0]
            if shares[k] <= 0 or shares[k] + doubt * math.sqrt(fitness * (1 - fitness)) < fitness:
                break
            evaluation = self.objective.evaluate(self.pair.to_omega(poses[k]), self.pair)
            score = evaluation.fitness, -evaluation.inlier_rmse
            if score > self.score:
                self.pose, self.score = poses[k], score
                p, q = self.matched
                gaps = np.linalg.norm(p @ self.pose[:3, :3].T + self.pose[:3, 3] - q, axis=1)
                self.explained = float((gaps < self.pair.max_distance).mean())

    def _shares(self, poses: Array) -> Array:
        """(K,): the share of the trial points that each pose brings within the distance of the target."""
        pair = self.pair
        rotations = torch.from_numpy(poses[:, :3, :3])
        shifts = poses[:, :3, 3] + poses[:, :3, :3] @ pair.source_origin - pair.target_origin
        moved = self.trial @ rotations.mT + torch.from_numpy(shifts)[:, None]
        distances, _ = pair.target.knn(moved.reshape(-1, 3).float(), 1, pair.max_distance, num_threads=pair.num_threads)
        shares: Array = torch.isfinite(distances).view(len(poses), len(self.trial)).double().mean(1).numpy()
        return shares


def _draw(rng: np.random.Generator, total: int, count: int, size: int) -> NDArray[np.int64]:
    """(count, size) different numbers below `total` in each row, every set as likely."""
    rows = rng.integers(0, total - np.arange(size), (count, size))
    for j in range(1, size):
        for taken in np.sort(rows[:, :j], axis=1).T:
            rows[:, j] += rows[:, j] >= taken
    return rows


def _poses(samples: Samples, estimation: TransformationEstimation, checkers: list[CorrespondenceChecker]) -> Array:
    """(K, 4, 4): of the samples that pass every checker."""
    for checker in checkers:
        if checker._before_pose:
            samples = samples[checker._passes(samples, np.broadcast_to(np.eye(4), (len(samples), 4, 4)))]
    poses = _fit(samples, estimation)
    finite = np.isfinite(poses).all(axis=(1, 2))
    samples, poses = samples[finite], poses[finite]
    for checker in checkers:
        if not checker._before_pose and len(poses):
            passed = checker._passes(samples, poses)
            samples, poses = samples[passed], poses[passed]
    return poses


def _fit(samples: Samples, estimation: TransformationEstimation) -> Array:
    """(B, 4, 4): the estimation's pose for each sample; point-to-point's all at once (Umeyama, PAMI 1991)."""
    if not isinstance(estimation, TransformationEstimationPointToPoint):
        return np.array([_fit_one(samples, pairs, estimation) for pairs in samples.pairs]).reshape(-1, 4, 4)
    p, q = samples.p, samples.q
    mean_p, mean_q = p.mean(axis=1, keepdims=True), q.mean(axis=1, keepdims=True)
    p, q = p - mean_p, q - mean_q
    linear = polar_rotation(torch.from_numpy(np.einsum("bni,bnj->bij", q, p))).numpy()
    if estimation.with_scaling:
        spread = np.square(p).sum(axis=(1, 2))
        scale = np.einsum("bni,bij,bnj->b", q, linear, p) / np.where(spread > 0, spread, 1.0)
        linear = linear * np.where(spread > 0, scale, 1.0)[:, None, None]
    poses = np.tile(np.eye(4), (len(p), 1, 1))
    poses[:, :3, :3] = linear
    poses[:, :3, 3] = mean_q[:, 0] - np.einsum("bij,bj->bi", linear, mean_p[:, 0])
    return poses


def _fit_one(samples: Samples, pairs: NDArray[np.int64], estimation: TransformationEstimation) -> Array:
    s, t = (cloud.take(rows) for cloud, rows in zip((samples.source, samples.target), pairs.T, strict=True))
    return estimation.compute_transformation(s, t, np.arange(len(pairs)).repeat(2).reshape(-1, 2))


def _enough(explained: float, size: int, criteria: RANSACConvergenceCriteria) -> int:
    """The samples after which a good one has been drawn with the confidence asked for."""
    good = explained**size
    if criteria.confidence >= 1 or good <= 0:
        return criteria.max_iteration
    if good >= 1:
        return 1
    wanted = math.log1p(-criteria.confidence) / math.log1p(-good)
    return min(criteria.max_iteration, math.ceil(wanted))


def _as_ransac_criteria(value: Any) -> RANSACConvergenceCriteria:
    if isinstance(value, RANSACConvergenceCriteria):
        return value
    if type(value).__name__ == "RANSACConvergenceCriteria":
        return RANSACConvergenceCriteria(value)
    raise TypeError(wrong("criteria", value, "RANSACConvergenceCriteria"))
