"""`open3d.t.pipelines.registration` by name: the same calls and defaults over the core that the legacy face has.

Clouds may be Open3D's (tensor or legacy; Open3D is never imported here), mappings of the names that its tensor clouds
have ("positions", "normals", "colors", ...) to tensors or arrays, torch tensors or NumPy arrays (N, 3), `PointCloud`s
or paths, of any dtype and on any device; the work is done on the CPU. **Answers are Open3D tensors where the source is
an Open3D cloud, and torch tensors otherwise**, always on the CPU, so that `.numpy()` works on either. Where Open3D's
two modules differ (a voxel size, correspondences as one index a source point, callbacks, what `compute_rmse` of
point-to-plane sums) this is the tensor one's behaviour in 0.20; where they agree, the legacy face's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlc_reg.errors import InputError
from dlc_reg.iterate import Record, Status
from dlc_reg.pipelines import _estimation as _legacy
from dlc_reg.pipelines import _run
from dlc_reg.pipelines._clouds import Cloud, as_array, check_finite, read_cloud
from dlc_reg.pipelines._features import as_descriptors, as_rows, checked_search, fpfh, match
from dlc_reg.registration import result as _result
from dlc_reg.registration.icp import Convergence
from dlc_reg.registration.steps import point_information
from dlc_reg.t.pipelines import _robust_kernel as robust_kernel
from dlc_reg.t.pipelines._doppler import TransformationEstimationForDopplerICP
from dlc_reg.t.pipelines._estimation import (
    TransformationEstimation,
    TransformationEstimationForColoredICP,
    TransformationEstimationPointToPlane,
    TransformationEstimationPointToPoint,
    TransformationEstimationSymmetric,
    like,
)
from dlc_reg.t.pipelines._scales import check_scales, pyramid

__all__ = [
    "ICPConvergenceCriteria",
    "RegistrationResult",
    "TransformationEstimation",
    "TransformationEstimationForColoredICP",
    "TransformationEstimationForDopplerICP",
    "TransformationEstimationPointToPlane",
    "TransformationEstimationPointToPoint",
    "TransformationEstimationSymmetric",
    "compute_fpfh_feature",
    "correspondences_from_features",
    "evaluate_registration",
    "get_information_matrix",
    "icp",
    "multi_scale_icp",
    "registration_symmetric_icp",
    "robust_kernel",
]

Array = NDArray[np.float64]
Callback = Callable[[dict[str, Any]], Any]

_IDENTITY = _run.IDENTITY


class ICPConvergenceCriteria(_legacy.ICPConvergenceCriteria):
    """ICP stops when both |change of fitness| and |change of inlier RMSE| fall below these, or after `max_iteration`.

    The changes are absolute (the second in the points' unit), whatever the names say: Open3D's arithmetic.
    """

    def __repr__(self) -> str:
        return (
            f"ICPConvergenceCriteria[relative_fitness_={self.relative_fitness:e}, "
            f"relative_rmse={self.relative_rmse:e}, max_iteration_={self.max_iteration}]."
        )


_CRITERIA = ICPConvergenceCriteria()
_POINT_TO_POINT = TransformationEstimationPointToPoint()
_SYMMETRIC = TransformationEstimationSymmetric()


class RegistrationResult:
    """What a registration found. `RegistrationResult()` is empty, `RegistrationResult(other)` a copy.

    `transformation` (4, 4) float64, T_target_source; `fitness`, inliers over **source** points; `inlier_rmse` in the
    points' unit; `correspondence_set` (N, 1) int64, for each point of the source (or of the thinned one)
    the target's index or -1; `converged`; `num_iterations` over all scales. `details` is the legacy
    face's result of the last scale: status, history, information, covariance, settings. Tensors are Open3D's or
    torch's, as the module says; those of an empty result Open3D's if that is loaded.
    """

    def __init__(self, other: RegistrationResult | None = None) -> None:
        kind = sys.modules.get("open3d")
        empty = None if kind is None else kind.core.Tensor.eye(1)
        self.transformation = like(empty, np.eye(4))
        self.correspondence_set = like(empty, np.zeros((0, 1), np.int64))
        self.fitness, self.inlier_rmse, self.converged, self.num_iterations = 0.0, 0.0, False, 0
        self.details: _result.RegistrationResult = _run.RegistrationResult()
        if other is not None:
            self.transformation = other.transformation.clone()
            self.correspondence_set = other.correspondence_set.clone()
            self.fitness, self.inlier_rmse = other.fitness, other.inlier_rmse
            self.converged, self.num_iterations = other.converged, other.num_iterations
            self.details = _run.RegistrationResult(other.details)

    def __repr__(self) -> str:
        return (
            f"RegistrationResult[converged={str(self.converged).lower()}, num_iteration={self.num_iterations}, "
            f"fitness_={self.fitness:e}, inlier_rmse={self.inlier_rmse:e}, "
            f"correspondences={len(self.correspondence_set)}].\nAccess transformation to get result."
        )


def icp(
    source: Any,
    target: Any,
    max_correspondence_distance: float,
    init_source_to_target: Any = _IDENTITY,
    estimation_method: TransformationEstimation = _POINT_TO_POINT,
    criteria: ICPConvergenceCriteria = _CRITERIA,
    voxel_size: float = -1.0,
    callback_after_iteration: Callback | None = None,
    *,
    num_threads: int | None = None,
) -> RegistrationResult:
    """Iterative closest points from `init_source_to_target` (4, 4), T_target_source.

    Args:
        source, target: clouds (see the module); normals, colours, dopplers are used where the method needs them.
        max_correspondence_distance: pairs further apart are ignored, in the points' unit; inf is allowed.
        estimation_method: `TransformationEstimationPointToPoint()`, `...PointToPlane()`, ...; those of the legacy face
            are taken too, generalized ICP and the learned one among them.
        criteria: when to stop.
        voxel_size: the clouds are thinned to it first; 0 or less: as they are.
        callback_after_iteration: called after each step with a dict of tensors on the CPU: "iteration_index",
            "scale_index" and "scale_iteration_index", int64; "inlier_rmse", "fitness" and "transformation", float64,
            after that step.
        num_threads: None for all cores; Open3D has no such argument. The result does not depend on it.

    Raises:
        InputError: distance <= 0, empty clouds, missing normals, colours or dopplers, non-finite target or init.
        TypeError: anything that is not a cloud, a 4x4 matrix, an estimation method or criteria.
    """
    return multi_scale_icp(
        source,
        target,
        [voxel_size],
        [criteria],
        [max_correspondence_distance],
        init_source_to_target,
        estimation_method,
        callback_after_iteration,
        num_threads=num_threads,
    )


def multi_scale_icp(
    source: Any,
    target: Any,
    voxel_sizes: Sequence[float],
    criteria_list: Sequence[ICPConvergenceCriteria],
    max_correspondence_distances: Sequence[float],
    init_source_to_target: Any = _IDENTITY,
    estimation_method: TransformationEstimation = _POINT_TO_POINT,
    callback_after_iteration: Callback | None = None,
    *,
    num_threads: int | None = None,
) -> RegistrationResult:
    """`icp` on ever finer clouds, each scale from the pose of the one before; the evidence is of the last.

    `voxel_sizes`: strictly decreasing, in the points' unit; 0 or less, at the end, means the clouds as they are. The
    finest clouds are thinned from those given and the coarser ones from the finer, as in Open3D, with means of all
    attributes over voxels whose corners are at multiples of the size. Where a scale has no correspondences the pose so
    far is returned, not converged (Open3D returns identity). Raises as `icp` does, and `InputError` for lists of
    different lengths.
    """
    sizes = [_legacy._as_float("voxel_sizes", size) for size in voxel_sizes]
    distances = [_run.as_distance(distance) for distance in max_correspondence_distances]
    criteria = [_run.as_criteria(given) for given in criteria_list]
    check_scales(sizes, distances, criteria)
    estimation = _as_estimation(estimation_method)
    pose = _run.as_transformation("init_source_to_target", init_source_to_target)
    s, t = _read(source, target)
    check_finite(t, "target")
    s, t = estimation._complete(s, t)
    answer, steps = RegistrationResult(), 0
    scales = list(zip(pyramid(s, sizes), pyramid(t, sizes), criteria, distances, strict=True))
    for scale, (moving, fixed, stop, distance) in enumerate(scales):
        watch = None
        if callback_after_iteration is not None:
            watch = _reporter(callback_after_iteration, source, scale, steps)
        convergence = Convergence(stop.relative_fitness, stop.relative_rmse, max(0, stop.max_iteration))
        result = _run.run(moving, fixed, distance, pose, estimation, convergence, num_threads, watch)
        pose, steps = result.transformation, steps + result.iterations
        answer = _answer(source, result, len(moving.points), steps)
        if result.status is Status.NO_CORRESPONDENCES:
            break
    return answer


def registration_symmetric_icp(
    source: Any,
    target: Any,
    max_correspondence_distance: float,
    init_source_to_target: Any = _IDENTITY,
    estimation_method: TransformationEstimationSymmetric = _SYMMETRIC,
    criteria: ICPConvergenceCriteria = _CRITERIA,
    *,
    num_threads: int | None = None,
) -> RegistrationResult:
    """Symmetric point-to-plane ICP (Rusinkiewicz, SIGGRAPH 2019); arguments and errors as `icp`. 0.20 only."""
    if not isinstance(_as_estimation(estimation_method), _legacy.TransformationEstimationSymmetric):
        raise TypeError(_run.wrong("estimation_method", estimation_method, "TransformationEstimationSymmetric"))
    return icp(
        source,
        target,
        max_correspondence_distance,
        init_source_to_target,
        estimation_method,
        criteria,
        num_threads=num_threads,
    )


def evaluate_registration(
    source: Any, target: Any, max_correspondence_distance: float, transformation: Any = _IDENTITY
) -> RegistrationResult:
    """Fitness, inlier RMSE and correspondences of `transformation` (4, 4), T_target_source; its `details` have more.

    Raises `InputError` for a distance <= 0, empty clouds and non-finite target points.
    """
    return _evaluate(source, target, max_correspondence_distance, transformation)


def get_information_matrix(source: Any, target: Any, max_correspondence_distance: float, transformation: Any) -> Any:
    """Information matrix (6, 6) float64 of the pose, sum of G^T G over the matched target points q, G = [-[q]x, I].

    Order (rotation, translation), about the origin of the target's frame (Choi et al., CVPR 2015). Raises `InputError`
    as `evaluate_registration` does, and where nothing corresponds.
    """
    result = _evaluate(source, target, max_correspondence_distance, transformation)
    if not result.fitness:
        raise InputError(
            "max_correspondence_distance", f"{max_correspondence_distance:g}", "one within which points correspond"
        )
    matched = read_cloud(target, "target").points[result.details.correspondence_set[:, 1]]
    return like(source, point_information(matched))


def compute_fpfh_feature(
    input: Any,
    max_nn: int | None = 100,
    radius: float | None = None,
    indices: Any = None,
    *,
    num_threads: int | None = None,
) -> Any:
    """Fast point feature histograms (Rusu et al., ICRA 2009) of a cloud with normals: (N, 33), a row a point.

    Neighbours are the `max_nn` (at least 4) nearest, those within `radius`, or both; `indices` (m,): of these points
    only, in the cloud's order. float32 where the points are, else float64; computed in float64 (see the legacy face's).
    """
    found_radius, count = checked_search(radius, max_nn, "max_nn", 4)
    features = fpfh(read_cloud(input, "input"), found_radius, count, num_threads).numpy()
    if indices is not None:
        features = features[as_rows(as_array(indices), len(features))]
    return like(input, features.astype(np.float32 if _is_single(input) else np.float64))


def correspondences_from_features(
    source_features: Any,
    target_features: Any,
    mutual_filter: bool = False,
    mutual_consistency_ratio: float = 0.1,
    *,
    num_threads: int | None = None,
) -> Any:
    """Rows (source index, target index), (K, 2) int64: for each source descriptor (N, D) the nearest of the target's.

    With `mutual_filter` only pairs that are each other's nearest, unless fewer than `mutual_consistency_ratio` of the
    source's have one: then all, with a warning. Raises `InputError` for wrong shapes.
    """
    a, b = (
        as_descriptors(given, name, f"{type(given).__name__}; expected a tensor of shape (N, D)")
        for given, name in ((source_features, "source_features"), (target_features, "target_features"))
    )
    return like(source_features, match(a, b, mutual_filter, mutual_consistency_ratio, num_threads).numpy())


def _evaluate(source: Any, target: Any, distance: float, transformation: Any) -> RegistrationResult:
    distance = _run.as_distance(distance)
    if not distance > 0:
        raise InputError("max_correspondence_distance", f"{distance:g}", "a distance above 0")
    pose = _run.as_transformation("transformation", transformation)
    s, t = _read(source, target)
    return _answer(source, _run.evaluate(s, t, distance, pose), len(s.points), 0)


def _answer(source: Any, result: _run.RegistrationResult, total: int, steps: int) -> RegistrationResult:
    """The tensor face's answer; `total` points of the source were to be matched."""
    answer = RegistrationResult()
    partners = np.full((total, 1), -1, np.int64)
    partners[result.correspondence_set[:, 0], 0] = result.correspondence_set[:, 1]
    answer.transformation = like(source, result.transformation)
    answer.correspondence_set = like(source, partners)
    answer.fitness, answer.inlier_rmse = result.fitness, result.inlier_rmse
    answer.converged, answer.num_iterations = result.status is Status.CONVERGED, steps
    answer.details = result
    return answer


def _reporter(callback: Callback, source: Any, scale: int, before: int) -> Callable[[Record, Array], None]:
    def report(record: Record, pose: Array) -> None:
        step = record["iteration"] - 1
        numbers = {
            "iteration_index": np.array(before + step),
            "scale_index": np.array(scale),
            "scale_iteration_index": np.array(step),
            "inlier_rmse": np.array(record["inlier_rmse"]),
            "fitness": np.array(record["fitness"]),
            "transformation": pose,
        }
        callback({name: like(source, value) for name, value in numbers.items()})

    return report


def _read(source: Any, target: Any) -> tuple[Cloud, Cloud]:
    s, t = read_cloud(source, "source"), read_cloud(target, "target")
    for name, cloud in (("source", s), ("target", t)):
        if not len(cloud.points):
            raise InputError(name, "a cloud without points", "at least one point")
    return s, t


def _as_estimation(value: Any) -> _legacy.TransformationEstimation:
    if isinstance(value, _legacy.TransformationEstimation):
        return value
    # a method of Open3D's own, in code that migrates step by step
    match type(value).__name__ if hasattr(value, "compute_transformation") else "":
        case "TransformationEstimationPointToPoint":
            return TransformationEstimationPointToPoint()
        case "TransformationEstimationPointToPlane":
            return TransformationEstimationPointToPlane(value.kernel)
        case "TransformationEstimationSymmetric":
            return TransformationEstimationSymmetric(value.kernel)
        case "TransformationEstimationForColoredICP":
            return TransformationEstimationForColoredICP(value)
        case "TransformationEstimationForDopplerICP":
            return TransformationEstimationForDopplerICP(value)
    raise TypeError(_run.wrong("estimation_method", value, "a TransformationEstimation..."))


def _is_single(cloud: Any) -> bool:
    values = getattr(cloud, "point", cloud)
    points = values["positions"] if values is not cloud or isinstance(cloud, Mapping) else cloud
    return str(getattr(points, "dtype", "")).lower().endswith("float32")
