"""Iterative closest points: the classical objectives through `iterate`, from a given start, with evidence."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud
from dlc_reg.iterate import Record, Settled, Status, Termination, iterate
from dlc_reg.registration.budget import Budget
from dlc_reg.registration.constraint import FREE, Constraint
from dlc_reg.registration.frame import Evaluation, Objective, Pair
from dlc_reg.registration.result import RegistrationResult
from dlc_reg.registration.uncertainty import uncertainty

Array = NDArray[np.float64]
Callback = Callable[[Record], bool | None]

_NORMALS_FROM = 20  # neighbours of a normal that coarse_to_fine has to estimate
_LEVELS_KEPT = 8  # enough for one registration's levels, whatever its objective, and some of another voxel size


@dataclass(frozen=True)
class Convergence:
    """Open3D's test: both |change of fitness| < `fitness` and |change of inlier RMSE| < `rmse` (the points' unit)."""

    fitness: float = 1e-6
    rmse: float = 1e-6
    max_iterations: int = 30


class ClosestPoints:
    """The update rule of ICP: step with the sums at hand, then search and sum again at the new pose.

    So n iterations cost n + 1 searches, and the record of an iteration describes the pose that it returned.
    `evaluation` is the last one.
    """

    evaluation: Evaluation

    def init(self, objective: Objective, omega: Tensor, data: Pair) -> tuple[Evaluation, Record]:
        self.evaluation = objective.evaluate(omega, data)
        if not self.evaluation.count:
            return self.evaluation, {**self.evaluation.record, "status": Status.NO_CORRESPONDENCES}
        return self.evaluation, self.evaluation.record

    def step(
        self, objective: Objective, omega: Tensor, data: Pair, state: Evaluation
    ) -> tuple[Tensor, Evaluation, Record]:
        omega = objective.step(omega, state)
        if not torch.isfinite(omega).all():
            return omega, state, {**state.record, "status": Status.DIVERGED}
        self.evaluation = objective.evaluate(omega, data)
        return omega, self.evaluation, self.evaluation.record


def icp(
    source: PointCloud,
    target: PointCloud,
    objective: Objective,
    T_init: Array | None = None,
    *,
    max_distance: float,
    convergence: Convergence | None = None,
    callback: Callback | None = None,
    index: ops.SearchIndex | None = None,
    constraint: Constraint = FREE,
    num_threads: int | None = None,
) -> RegistrationResult:
    """Registers `source` to `target` from `T_init` (4, 4), T_target_source absolute; None is identity.

    Args:
        objective: one of `registration.objectives`, or another `registration.frame.Objective`.
        max_distance: pairs further apart are ignored, in the points' unit; inf is allowed.
        convergence: when to stop; by default 30 iterations or changes below 1e-6 in fitness and in RMSE over extent.
        callback: as for `dlc_reg.iterate`.
        index: `ops.SearchIndex(target.points)` if it exists already.
        constraint: which motions a step may be; `T_init` has to keep to it.
        num_threads: None for all cores; the result is the same to the bit for any number.

    Returns:
        the pose with fitness, inlier RMSE and correspondences at that pose; `information` (6, 6) is the objective's
        Gauss-Newton Hessian about `settings["information_origin"]`, `covariance` a multiple of its inverse: see
        `uncertainty`. It is None where a motion is free: `settings["free_motions"]` names it; and zero for motions that
        `constraint` holds.

    Raises:
        InputError: missing normals, covariances or colors, bad distance or start.
    """
    if convergence is None:
        convergence = Convergence(rmse=1e-6 * target.extent)
    began = time.perf_counter()
    pair = Pair.prepare(
        source,
        target,
        objective,
        max_distance=max_distance,
        index=index,
        constraint=constraint,
        num_threads=num_threads,
    )
    prepared = time.perf_counter() - began
    result = icp_pair(pair, objective, T_init, convergence=convergence, callback=callback)
    result.timings = {"prepare": prepared, **result.timings}
    result.clouds = (source, target)
    return result


def icp_pair(
    pair: Pair,
    objective: Objective,
    T_init: Array | None = None,
    *,
    convergence: Convergence,
    callback: Callback | None = None,
) -> RegistrationResult:
    """`icp` on a pair that is prepared already: several starts share its sorting and its search tree."""
    start = np.eye(4) if T_init is None else _checked_pose(T_init)
    began = time.perf_counter()
    update = ClosestPoints()
    settled = Settled({"fitness": convergence.fitness, "inlier_rmse": convergence.rmse})
    termination = Termination(convergence.max_iterations, settled)
    solution = iterate(objective, update, pair.to_omega(start), pair, termination=termination, callback=callback)
    evaluation = update.evaluation
    searched = time.perf_counter()
    known = uncertainty(objective, solution.omega, evaluation)
    origin = pair.target_origin
    return RegistrationResult(
        transformation=start if solution.iterations == 0 else pair.to_absolute(solution.omega),
        fitness=evaluation.fitness,
        inlier_rmse=evaluation.inlier_rmse,
        correspondence_set=evaluation.correspondence_set(),
        information=known.information,
        covariance=known.covariance,
        iterations=solution.iterations,
        status=solution.status if evaluation.count else Status.NO_CORRESPONDENCES,
        history=solution.history,
        verdict_reasons=[f"the matched surface {motion.text}" for motion in known.free],
        settings={
            "objective": objective.kind,
            "kernel": objective.kernel,
            "kernel_parameter": objective.kernel_parameter,
            **objective.parameters(),
            "max_correspondence_distance": pair.max_distance,
            "convergence_fitness": convergence.fitness,
            "convergence_rmse": convergence.rmse,
            "max_iterations": convergence.max_iterations,
            "information_origin": origin.tolist(),
            "update_pivot": (origin + pair.pivot).tolist(),
            "residual_sigma": known.sigma,
            "matches_per_target_point": known.shared,
            "stiffness": known.stiffness,
            "free_motions": [motion.text for motion in known.free],
            "free_twists": [motion.about(origin).tolist() for motion in known.free],
        },
        timings={"iterate": searched - began, "uncertainty": time.perf_counter() - searched},
    )


class Levels:
    """A cloud at the levels of `coarse_to_fine`, each made when it is first asked for; the latest are kept.

    `needs`: which of "normals", "covariances" and "colors" the objective wants of the cloud. Threads may share one.
    """

    def __init__(self, cloud: PointCloud, needs: set[str], num_threads: int | None = None) -> None:
        self.cloud = cloud
        # partials hold no reference to self: a cycle would keep large clouds until the garbage collector comes round
        self.thinned = lru_cache(_LEVELS_KEPT)(partial(_thinned, cloud, needs=needs, num_threads=num_threads))
        self.whole = lru_cache(1)(partial(_with_normals_of, self.thinned, cloud))


def coarse_to_fine(
    source: PointCloud,
    target: PointCloud | Levels,
    objective: Objective,
    T_init: Array | None = None,
    *,
    voxel_sizes: Sequence[float],
    max_distances: Sequence[float],
    iterations: Sequence[int] | int = 30,
    convergence: Convergence | None = None,
    callback: Callback | None = None,
    constraint: Constraint = FREE,
    budget: Budget | None = None,
    num_threads: int | None = None,
) -> RegistrationResult:
    """`icp` on ever finer clouds, each level from the pose of the one before.

    `voxel_sizes`: strictly decreasing, in the points' unit; 0 at the end means the clouds as they are. Normals that the
    objective needs and a cloud lacks are estimated. `history` has every level's iterations, each from its start, with
    "level" and "voxel_size". The evidence (fitness, correspondences, information) is of the clouds given, at the last
    distance; where these were never registered, each of their points has the normal of its voxel in the last level.
    A target that is used again is given as its `Levels`. When `budget` is spent, the levels and iterations left are
    skipped; the evidence is then of the pose reached.
    """
    counts = [iterations] * len(voxel_sizes) if isinstance(iterations, int) else list(iterations)
    _check_levels(voxel_sizes, max_distances, counts)
    moving = Levels(source, objective.needs_of("source"), num_threads)
    fixed = target if isinstance(target, Levels) else Levels(target, objective.needs_of("target"), num_threads)
    for name, levels in (("source", moving), ("target", fixed)):
        if "colors" in objective.needs_of(name):
            objective.require("colors", name, levels.cloud)
    result = RegistrationResult(transformation=np.eye(4) if T_init is None else np.asarray(T_init, dtype=np.float64))
    base = convergence or Convergence(rmse=1e-6 * fixed.cloud.extent)
    history: list[Record] = []
    timings: dict[str, float] = {}
    budget = budget or Budget()
    voxel, done = voxel_sizes[0], 0
    for level, (size, distance, count) in enumerate(zip(voxel_sizes, max_distances, counts, strict=True)):
        if budget.skips(f"refinement from level {level + 1} of {len(counts)} on"):
            result.status = Status.OUT_OF_TIME
            break
        voxel, done = size, level + 1
        began = time.perf_counter()
        result = icp(
            moving.thinned(voxel),
            fixed.thinned(voxel),
            objective,
            result.transformation,
            max_distance=distance,
            convergence=replace(base, max_iterations=count),
            callback=callback if budget.seconds is None else partial(_asked, budget, callback),
            constraint=constraint,
            num_threads=num_threads,
        )
        history += [{"level": level, "voxel_size": voxel, **record} for record in result.history]
        timings[f"level_{level}"] = time.perf_counter() - began
        if result.status is Status.STOPPED:
            if budget.skips(f"refinement within level {level + 1} of {len(counts)}"):
                result.status = Status.OUT_OF_TIME
            break
    if voxel > 0 or not done:
        status, distance = result.status, max_distances[-1]
        result = icp(
            moving.whole(voxel) if voxel > 0 else moving.thinned(voxel),
            fixed.whole(voxel) if voxel > 0 else fixed.thinned(voxel),
            objective,
            result.transformation,
            max_distance=distance,
            convergence=Convergence(max_iterations=0),
            constraint=constraint,
            num_threads=num_threads,
        )
        if len(result.correspondence_set):
            result.status = status
    result.history, result.timings = history, timings
    result.iterations = len(history) - done
    result.settings |= {
        "voxel_sizes": list(voxel_sizes),
        "max_correspondence_distances": list(max_distances),
        "max_iterations": counts,
    }
    result.clouds = (source, fixed.cloud)
    return result


def estimate_update(objective: Objective, pair: Pair, pairs: NDArray[np.int64]) -> Array:
    """One step (4, 4), absolute, from identity, with the given correspondences (m, 2) instead of a search."""
    fixed = pair.with_correspondences(pairs)
    omega = fixed.to_omega(np.eye(4))
    return fixed.to_absolute(objective.step(omega, objective.evaluate(omega, fixed)))


def _thinned(cloud: PointCloud, voxel: float, needs: set[str], num_threads: int | None) -> PointCloud:
    if voxel > 0:
        # the covariances of the thick cloud describe another neighbourhood
        cloud = replace(cloud.voxel_downsample(voxel), covariances=None)
    if any(getattr(cloud, what) is None for what in needs):
        cloud = cloud.with_normals(_NORMALS_FROM, num_threads=num_threads)
    return cloud


def _with_normals_of(thinned: Callable[[float], PointCloud], cloud: PointCloud, voxel: float) -> PointCloud:
    thin = thinned(voxel)
    if thin.normals is None or cloud.normals is not None:
        return cloud
    return cloud.attach(normals=thin.normals[ops.voxel_groups(cloud.points, voxel)[1]])


def _asked(budget: Budget, callback: Callback | None, record: Record) -> bool:
    """Whether the budget or the user's callback stops the iteration."""
    return bool(callback is not None and callback(record)) or budget.spent


def _check_levels(voxel_sizes: Sequence[float], max_distances: Sequence[float], counts: Sequence[int]) -> None:
    if not len(voxel_sizes) == len(max_distances) == len(counts) > 0:
        raise InputError(
            "voxel_sizes, max_distances, iterations",
            f"lengths {len(voxel_sizes)}, {len(max_distances)}, {len(counts)}",
            "one entry a level in each, and at least one level",
        )
    if any(b >= a for a, b in pairwise(voxel_sizes)) or min(voxel_sizes) < 0:
        raise InputError("voxel_sizes", str(list(voxel_sizes)), "strictly decreasing sizes, none below 0")


def _checked_pose(pose: Any) -> Array:
    matrix = np.array(pose, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise InputError("T_init", f"shape {matrix.shape}, or entries that are not finite", "a finite (4, 4) matrix")
    return matrix
