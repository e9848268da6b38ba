"""`open3d.pipelines.registration` by name: the same calls, defaults and result fields over dlc_reg's core.

Replace `o3d.pipelines.registration` by `dlc_reg.pipelines.registration` in working code. Clouds may be Open3D's
(Open3D is never imported), NumPy arrays, torch tensors, `PointCloud`s or paths. Behaviour follows Open3D 0.20:
iterates, fitness (over the number of **source** points), inlier RMSE, the order of evaluation, and the chart of the
update, Euler angles about the origin of the frame. Differences, all on purpose: errors name the argument and the remedy
(`InputError` is a `RuntimeError`); non-finite source points are dropped with a warning and in the target they are an
error; a singular system gives the smallest update instead of an arbitrary one; clouds more than 100 extents from the
origin are updated about themselves; neighbours are searched in float32 about a float64 origin. Results pickle.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlc_reg.errors import InputError
from dlc_reg.iterate import Status
from dlc_reg.pipelines import _estimation
from dlc_reg.pipelines._clouds import Cloud, check_finite, drop_non_finite, prepare_pair, read_cloud
from dlc_reg.pipelines._colored import TransformationEstimationForColoredICP
from dlc_reg.pipelines._estimation import (
    CauchyLoss,
    GMLoss,
    HuberLoss,
    ICPConvergenceCriteria,
    L1Loss,
    L2Loss,
    RobustKernel,
    TransformationEstimation,
    TransformationEstimationForGeneralizedICP,
    TransformationEstimationLearned,
    TransformationEstimationPointToPlane,
    TransformationEstimationPointToPoint,
    TransformationEstimationSymmetric,
    TukeyLoss,
)
from dlc_reg.registration import result as _result
from dlc_reg.registration.icp import Convergence, icp_pair
from dlc_reg.registration.steps import point_information

__all__ = [
    "CauchyLoss",
    "GMLoss",
    "HuberLoss",
    "ICPConvergenceCriteria",
    "L1Loss",
    "L2Loss",
    "RegistrationResult",
    "RobustKernel",
    "TransformationEstimation",
    "TransformationEstimationForColoredICP",
    "TransformationEstimationForGeneralizedICP",
    "TransformationEstimationLearned",
    "TransformationEstimationPointToPlane",
    "TransformationEstimationPointToPoint",
    "TransformationEstimationSymmetric",
    "TukeyLoss",
    "evaluate_registration",
    "get_information_matrix_from_point_clouds",
    "registration_colored_icp",
    "registration_generalized_icp",
    "registration_icp",
    "registration_symmetric_icp",
]

Array = NDArray[np.float64]
_IDENTITY = np.eye(4)
_IDENTITY.setflags(write=False)
_POINT_TO_POINT = TransformationEstimationPointToPoint()
_SYMMETRIC = TransformationEstimationSymmetric()
_COLORED = TransformationEstimationForColoredICP()
_GENERALIZED = TransformationEstimationForGeneralizedICP()
_CRITERIA = ICPConvergenceCriteria()


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


def registration_icp(
    source: Any,
    target: Any,
    max_correspondence_distance: float,
    init: Any = _IDENTITY,
    estimation_method: TransformationEstimation = _POINT_TO_POINT,
    criteria: ICPConvergenceCriteria = _CRITERIA,
    *,
    num_threads: int | None = None,
) -> RegistrationResult:
    """Iterative closest points from `init` (4, 4), T_target_source.

    Args:
        source, target: clouds (see the module); normals, covariances and colours are used where the method needs them.
        max_correspondence_distance: pairs further apart are ignored, in the points' unit; inf is allowed.
        estimation_method: `TransformationEstimationPointToPoint()`, `...PointToPlane()`, ...
        criteria: when to stop.
        num_threads: None for all cores; Open3D has no such argument. The result does not depend on it.

    Raises:
        InputError: distance <= 0, missing normals or colours, non-finite target, non-finite init.
        TypeError: anything that is not a cloud, a 4x4 matrix, an estimation method or criteria.
    """
    estimation = _as_estimation(estimation_method)
    criteria = _as_criteria(criteria)
    start, distance = _as_transformation("init", init), _as_distance(max_correspondence_distance)
    s, t = read_cloud(source, "source"), read_cloud(target, "target")
    if not distance > 0:
        raise InputError("max_correspondence_distance", f"{distance:g}", "a distance above 0")
    check_finite(t, "target")
    s, t = estimation._complete(s, t)
    total = len(s.points)
    s, kept = drop_non_finite(s)
    check_finite(s, "source")
    convergence = Convergence(criteria.relative_fitness, criteria.relative_rmse, max(0, criteria.max_iteration))
    return _run(s, t, kept, total, distance, start, estimation, convergence, num_threads)


def registration_colored_icp(
    source: Any,
    target: Any,
    max_correspondence_distance: float,
    init: Any = _IDENTITY,
    estimation_method: TransformationEstimationForColoredICP = _COLORED,
    criteria: ICPConvergenceCriteria = _CRITERIA,
    *,
    num_threads: int | None = None,
) -> RegistrationResult:
    """Coloured ICP (Park, Zhou and Koltun, ICCV 2017); arguments and errors as `registration_icp`.

    Both clouds need colours in [0, 1], the target normals too.
    """
    estimation = _as_estimation(estimation_method)
    if not isinstance(estimation, TransformationEstimationForColoredICP):
        raise TypeError(_wrong("estimation_method", estimation_method, "TransformationEstimationForColoredICP"))
    return registration_icp(
        source, target, max_correspondence_distance, init, estimation, criteria, num_threads=num_threads
    )


def registration_generalized_icp(
    source: Any,
    target: Any,
    max_correspondence_distance: float,
    init: Any = _IDENTITY,
    estimation_method: TransformationEstimationForGeneralizedICP = _GENERALIZED,
    criteria: ICPConvergenceCriteria = _CRITERIA,
    *,
    num_threads: int | None = None,
) -> RegistrationResult:
    """Generalized ICP (Segal et al., RSS 2009); arguments and errors as `registration_icp`."""
    estimation = _as_estimation(estimation_method)
    if not isinstance(estimation, TransformationEstimationForGeneralizedICP):
        raise TypeError(_wrong("estimation_method", estimation_method, "TransformationEstimationForGeneralizedICP"))
    return registration_icp(
        source, target, max_correspondence_distance, init, estimation, criteria, num_threads=num_threads
    )


def registration_symmetric_icp(
    source: Any,
    target: Any,
    max_correspondence_distance: float,
    init: Any = _IDENTITY,
    estimation_method: TransformationEstimationSymmetric = _SYMMETRIC,
    criteria: ICPConvergenceCriteria = _CRITERIA,
    *,
    num_threads: int | None = None,
) -> RegistrationResult:
    """Symmetric point-to-plane ICP (Rusinkiewicz, SIGGRAPH 2019); arguments and errors as `registration_icp`."""
    estimation = _as_estimation(estimation_method)
    if not isinstance(estimation, TransformationEstimationSymmetric):
        raise TypeError(_wrong("estimation_method", estimation_method, "TransformationEstimationSymmetric"))
    return registration_icp(
        source, target, max_correspondence_distance, init, estimation, criteria, num_threads=num_threads
    )


def evaluate_registration(
    source: Any, target: Any, max_correspondence_distance: float, transformation: Any = _IDENTITY
) -> RegistrationResult:
    """Fitness, inlier RMSE and correspondences of `transformation` (4, 4), T_target_source.

    A distance <= 0 gives an empty result, as in Open3D. Raises `InputError` for non-finite target points.
    """
    start, distance = _as_transformation("transformation", transformation), _as_distance(max_correspondence_distance)
    s, t = read_cloud(source, "source"), read_cloud(target, "target")
    check_finite(t, "target")
    total = len(s.points)
    s, kept = drop_non_finite(s)
    s, t = Cloud(s.points), Cloud(t.points, t.normals)
    return _run(s, t, kept, total, distance, start, _POINT_TO_POINT, Convergence(max_iterations=0))


def get_information_matrix_from_point_clouds(
    source: Any, target: Any, max_correspondence_distance: float, transformation: Any
) -> Array:
    """Information matrix (6, 6) float64 of the pose, sum of G^T G over the matched target points q, G = [-[q]x, I].

    Order (rotation, translation), about the origin of the target's frame (Choi et al., CVPR 2015). Where the target
    lies far from it the entries are large, as in Open3D.
    """
    result = evaluate_registration(source, target, max_correspondence_distance, transformation)
    matched = read_cloud(target, "target").points[result.correspondence_set[:, 1]]
    return point_information(matched)


def _run(
    source: Cloud,
    target: Cloud,
    kept: NDArray[np.int64] | None,
    total: int,
    distance: float,
    start: Array,
    estimation: TransformationEstimation,
    convergence: Convergence,
    num_threads: int | None = None,
) -> RegistrationResult:
    if not len(source.points) or not len(target.points) or not distance > 0:
        empty = RegistrationResult()
        empty.transformation, empty.status = start.copy(), Status.NO_CORRESPONDENCES
        return empty
    start = estimation._start(source, target, start)
    objective = estimation._objective()
    pair = prepare_pair(source, target, objective, max_distance=distance, source_count=total, num_threads=num_threads)
    result = RegistrationResult(icp_pair(pair, objective, start, convergence=convergence))
    if kept is not None:
        result.correspondence_set[:, 0] = kept[result.correspondence_set[:, 0]]
    return result


def _as_transformation(name: str, value: Any) -> Array:
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(_wrong(name, value, "a matrix of shape (4, 4)")) from error
    if matrix.shape != (4, 4):
        raise TypeError(f"{name}: got shape {matrix.shape}; expected (4, 4)")
    if not np.isfinite(matrix).all():
        raise InputError(name, f"{int((~np.isfinite(matrix)).sum())} non-finite entries", "a finite matrix")
    if np.abs(matrix[3] - (0, 0, 0, 1)).max() > 1e-9:
        raise InputError(name, f"last row {matrix[3].tolist()}", "an affine matrix, last row (0, 0, 0, 1)")
    return matrix


def _as_distance(value: Any) -> float:
    distance = _estimation._as_float("max_correspondence_distance", value)
    if math.isnan(distance):
        raise InputError("max_correspondence_distance", "nan", "a number; inf is allowed")
    return distance


def _as_estimation(value: Any) -> TransformationEstimation:
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
    raise TypeError(_wrong("estimation_method", value, "a TransformationEstimation..."))


def _as_criteria(value: Any) -> ICPConvergenceCriteria:
    if isinstance(value, ICPConvergenceCriteria):
        return value
    if type(value).__name__ == "ICPConvergenceCriteria":
        return ICPConvergenceCriteria(value.relative_fitness, value.relative_rmse, value.max_iteration)
    raise TypeError(_wrong("criteria", value, "ICPConvergenceCriteria"))


def _wrong(name: str, value: Any, expected: str) -> str:
    return f"{name}: got {type(value).__name__}; expected {expected}"


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raise AttributeError(f"dlc_reg.pipelines.registration has no {name!r} (yet); it has: {', '.join(__all__)}")
