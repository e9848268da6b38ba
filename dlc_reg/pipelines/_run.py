"""From clouds as read to a result: what every registration of this face shares, and the checks of its arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dlc_reg.errors import InputError
from dlc_reg.iterate import Record, Status
from dlc_reg.pipelines._clouds import Cloud, as_array, check_finite, drop_non_finite, prepare_pair
from dlc_reg.pipelines._colored import TransformationEstimationForColoredICP
from dlc_reg.pipelines._estimation import (
    ICPConvergenceCriteria,
    TransformationEstimation,
    TransformationEstimationForGeneralizedICP,
    TransformationEstimationPointToPlane,
    TransformationEstimationPointToPoint,
    TransformationEstimationSymmetric,
    _as_float,
)
from dlc_reg.registration import result as _result
from dlc_reg.registration.frame import Evaluation, Objective, Pair
from dlc_reg.registration.icp import Convergence, icp_pair

Array = NDArray[np.float64]

IDENTITY = np.eye(4)
IDENTITY.setflags(write=False)
POINT_TO_POINT = TransformationEstimationPointToPoint()


class RegistrationResult(_result.RegistrationResult):
    """Open3D's result (`transformation`, `fitness`, `inlier_rmse`, `correspondence_set`) with dlc_reg's evidence.

    `RegistrationResult()` is empty, `RegistrationResult(other)` a copy.
    """

    def __init__(self, other: _result.RegistrationResult | None = None) -> None:
        super().__init__()
        if other is not None:
            for item in fields(_result.RegistrationResult):
                value = getattr(other, item.name)
                setattr(self, item.name, value.copy() if isinstance(value, (np.ndarray, list, dict)) else value)

    def __repr__(self) -> str:
        return (
            f"RegistrationResult with fitness={self.fitness:e}, inlier_rmse={self.inlier_rmse:e}, "
            f"and correspondence_set size of {len(self.correspondence_set)}\n"
            "Access transformation to get result."
        )

    __str__ = __repr__


def nothing(transformation: Array = IDENTITY) -> RegistrationResult:
    """The answer where no correspondences are: `transformation` (4, 4) as it is, and a status that says so."""
    empty = RegistrationResult()
    empty.transformation, empty.status = transformation.copy(), Status.NO_CORRESPONDENCES
    return empty


def run(
    source: Cloud,
    target: Cloud,
    distance: float,
    start: Array,
    estimation: TransformationEstimation,
    convergence: Convergence,
    num_threads: int | None = None,
    watch: Callable[[Record, Array], None] | None = None,
) -> RegistrationResult:
    """ICP of complete clouds, of a finite target; `watch` sees the record of each step, and the pose (4, 4) after it.

    Non-finite source points are dropped; they count in the fitness, and correspondences are rows of the cloud given.
    """
    total = len(source.points)
    source, kept = drop_non_finite(source)
    check_finite(source, "source")
    if not len(source.points) or not len(target.points) or not distance > 0:
        return nothing(start)
    start = estimation._start(source, target, start)
    objective, callback = estimation._objective_of(source), None
    pair = prepare_pair(source, target, objective, max_distance=distance, source_count=total, num_threads=num_threads)
    if watch is not None:
        objective, callback = _watched(objective, pair, watch)
    result = RegistrationResult(icp_pair(pair, objective, start, convergence=convergence, callback=callback))
    if kept is not None:
        result.correspondence_set[:, 0] = kept[result.correspondence_set[:, 0]]
    return result


class _Watched:
    """An objective that remembers the pose it was last evaluated at."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def evaluate(self, omega: Tensor, data: Pair) -> Evaluation:
        self.omega = omega
        return self.objective.evaluate(omega, data)


def _watched(
    objective: Objective, pair: Pair, watch: Callable[[Record, Array], None]
) -> tuple[Objective, Callable[[Record], None]]:
    watched = _Watched(objective)

    def callback(record: Record) -> None:
        if record["iteration"]:
            watch(record, pair.to_absolute(watched.omega))

    return cast(Objective, watched), callback


def evaluate(
    source: Cloud, target: Cloud, distance: float, transformation: Array, num_threads: int | None = None
) -> RegistrationResult:
    """What `transformation` (4, 4) achieves; empty for a distance <= 0. Raises `InputError` for non-finite targets."""
    check_finite(target, "target")
    s, t = Cloud(source.points), Cloud(target.points, target.normals)
    return run(s, t, distance, transformation, POINT_TO_POINT, Convergence(max_iterations=0), num_threads)


def as_transformation(name: str, value: Any) -> Array:
    try:
        matrix = np.array(as_array(value), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(wrong(name, value, "a matrix of shape (4, 4)")) from error
    if matrix.shape != (4, 4):
        raise TypeError(f"{name}: got shape {matrix.shape}; expected (4, 4)")
    if not np.isfinite(matrix).all():
        raise InputError(name, f"{int((~np.isfinite(matrix)).sum())} non-finite entries", "a finite matrix")
    if np.abs(matrix[3] - (0, 0, 0, 1)).max() > 1e-9:
        raise InputError(name, f"last row {matrix[3].tolist()}", "an affine matrix, last row (0, 0, 0, 1)")
    return matrix


def as_distance(value: Any) -> float:
    distance = _as_float("max_correspondence_distance", value)
    if math.isnan(distance):
        raise InputError("max_correspondence_distance", "nan", "a number; inf is allowed")
    return distance


def as_estimation(value: Any) -> TransformationEstimation:
    if isinstance(value, TransformationEstimation):
        return value
    # a method of Open3D's own, in code that migrates step by step
    match type(value).__name__ if hasattr(value, "compute_transformation") else "":
        case "TransformationEstimationPointToPoint":
            return TransformationEstimationPointToPoint(value.with_scaling)
        case "TransformationEstimationPointToPlane":
            return TransformationEstimationPointToPlane(value.kernel)
        case "TransformationEstimationSymmetric":
            return TransformationEstimationSymmetric(value.kernel)
        case "TransformationEstimationForColoredICP":
            return TransformationEstimationForColoredICP(value.lambda_geometric, value.kernel)
        case "TransformationEstimationForGeneralizedICP":
            return TransformationEstimationForGeneralizedICP(value.epsilon, value.kernel)
    raise TypeError(wrong("estimation_method", value, "a TransformationEstimation..."))


def as_criteria(value: Any) -> ICPConvergenceCriteria:
    if isinstance(value, ICPConvergenceCriteria):
        return value
    if type(value).__name__ == "ICPConvergenceCriteria":
        return ICPConvergenceCriteria(value.relative_fitness, value.relative_rmse, value.max_iteration)
    raise TypeError(wrong("criteria", value, "ICPConvergenceCriteria"))


def wrong(name: str, value: Any, expected: str) -> str:
    return f"{name}: got {type(value).__name__}; expected {expected}"
