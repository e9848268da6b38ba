"""`open3d.pipelines.registration` by name: the same calls, defaults and result fields over dlc_reg's core.

Replace `o3d.pipelines.registration` by `dlc_reg.pipelines.registration` in working code. Clouds may be Open3D's
(Open3D is imported for its pose graph alone), NumPy arrays, torch tensors, mappings of the names that Open3D's tensor
clouds have to either, `PointCloud`s or paths. Behaviour follows Open3D 0.20:
iterates, fitness (over the number of **source** points), inlier RMSE, the order of evaluation, and the chart of the
update, Euler angles about the origin of the frame. Differences, all on purpose: errors name the argument and the remedy
(`InputError` is a `RuntimeError`); non-finite source points are dropped with a warning and in the target they are an
error; a singular system gives the smallest update instead of an arbitrary one; clouds more than 100 extents from the
origin are updated about themselves; neighbours are searched in float32 about a float64 origin. Results pickle.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlc_reg.errors import InputError
from dlc_reg.pipelines._checkers import (
    CorrespondenceChecker,
    CorrespondenceCheckerBasedOnDistance,
    CorrespondenceCheckerBasedOnEdgeLength,
    CorrespondenceCheckerBasedOnNormal,
    CorrespondenceCheckerBasedOnSourceRotation,
)
from dlc_reg.pipelines._clouds import check_finite, read_cloud
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
from dlc_reg.pipelines._features import Feature, compute_fpfh_feature, correspondences_from_features
from dlc_reg.pipelines._fgr import (
    FastGlobalRegistrationOption,
    registration_fgr_based_on_correspondence,
    registration_fgr_based_on_feature_matching,
)
from dlc_reg.pipelines._ndt import NormalDistributionsTransformOption, registration_ndt
from dlc_reg.pipelines._ransac import (
    RANSACConvergenceCriteria,
    registration_ransac_based_on_correspondence,
    registration_ransac_based_on_feature_matching,
)
from dlc_reg.pipelines._run import (
    IDENTITY,
    RegistrationResult,
    as_criteria,
    as_distance,
    as_estimation,
    as_transformation,
    evaluate,
    run,
    wrong,
)
from dlc_reg.registration.icp import Convergence
from dlc_reg.registration.steps import point_information

__all__ = [
    "CauchyLoss",
    "CorrespondenceChecker",
    "CorrespondenceCheckerBasedOnDistance",
    "CorrespondenceCheckerBasedOnEdgeLength",
    "CorrespondenceCheckerBasedOnNormal",
    "CorrespondenceCheckerBasedOnSourceRotation",
    "FastGlobalRegistrationOption",
    "Feature",
    "GMLoss",
    "HuberLoss",
    "ICPConvergenceCriteria",
    "L1Loss",
    "L2Loss",
    "NormalDistributionsTransformOption",
    "RANSACConvergenceCriteria",
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
    "compute_fpfh_feature",
    "correspondences_from_features",
    "evaluate_registration",
    "get_information_matrix_from_point_clouds",
    "registration_colored_icp",
    "registration_fgr_based_on_correspondence",
    "registration_fgr_based_on_feature_matching",
    "registration_generalized_icp",
    "registration_icp",
    "registration_ndt",
    "registration_ransac_based_on_correspondence",
    "registration_ransac_based_on_feature_matching",
    "registration_symmetric_icp",
]

Array = NDArray[np.float64]
_POINT_TO_POINT = TransformationEstimationPointToPoint()
_SYMMETRIC = TransformationEstimationSymmetric()
_COLORED = TransformationEstimationForColoredICP()
_GENERALIZED = TransformationEstimationForGeneralizedICP()
_CRITERIA = ICPConvergenceCriteria()


def registration_icp(
    source: Any,
    target: Any,
    max_correspondence_distance: float,
    init: Any = IDENTITY,
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
    estimation = as_estimation(estimation_method)
    criteria = as_criteria(criteria)
    start, distance = as_transformation("init", init), as_distance(max_correspondence_distance)
    s, t = read_cloud(source, "source"), read_cloud(target, "target")
    if not distance > 0:
        raise InputError("max_correspondence_distance", f"{distance:g}", "a distance above 0")
    check_finite(t, "target")
    s, t = estimation._complete(s, t)
    convergence = Convergence(criteria.relative_fitness, criteria.relative_rmse, max(0, criteria.max_iteration))
    return run(s, t, distance, start, estimation, convergence, num_threads)


def registration_colored_icp(
    source: Any,
    target: Any,
    max_correspondence_distance: float,
    init: Any = IDENTITY,
    estimation_method: TransformationEstimationForColoredICP = _COLORED,
    criteria: ICPConvergenceCriteria = _CRITERIA,
    *,
    num_threads: int | None = None,
) -> RegistrationResult:
    """Coloured ICP (Park, Zhou and Koltun, ICCV 2017); arguments and errors as `registration_icp`.

    Both clouds need colours in [0, 1], the target normals too.
    """
    estimation = as_estimation(estimation_method)
    if not isinstance(estimation, TransformationEstimationForColoredICP):
        raise TypeError(wrong("estimation_method", estimation_method, "TransformationEstimationForColoredICP"))
    return registration_icp(
        source, target, max_correspondence_distance, init, estimation, criteria, num_threads=num_threads
    )


def registration_generalized_icp(
    source: Any,
    target: Any,
    max_correspondence_distance: float,
    init: Any = IDENTITY,
    estimation_method: TransformationEstimationForGeneralizedICP = _GENERALIZED,
    criteria: ICPConvergenceCriteria = _CRITERIA,
    *,
    num_threads: int | None = None,
) -> RegistrationResult:
    """Generalized ICP (Segal et al., RSS 2009); arguments and errors as `registration_icp`."""
    estimation = as_estimation(estimation_method)
    if not isinstance(estimation, TransformationEstimationForGeneralizedICP):
        raise TypeError(wrong("estimation_method", estimation_method, "TransformationEstimationForGeneralizedICP"))
    return registration_icp(
        source, target, max_correspondence_distance, init, estimation, criteria, num_threads=num_threads
    )


def registration_symmetric_icp(
    source: Any,
    target: Any,
    max_correspondence_distance: float,
    init: Any = IDENTITY,
    estimation_method: TransformationEstimationSymmetric = _SYMMETRIC,
    criteria: ICPConvergenceCriteria = _CRITERIA,
    *,
    num_threads: int | None = None,
) -> RegistrationResult:
    """Symmetric point-to-plane ICP (Rusinkiewicz, SIGGRAPH 2019); arguments and errors as `registration_icp`."""
    estimation = as_estimation(estimation_method)
    if not isinstance(estimation, TransformationEstimationSymmetric):
        raise TypeError(wrong("estimation_method", estimation_method, "TransformationEstimationSymmetric"))
    return registration_icp(
        source, target, max_correspondence_distance, init, estimation, criteria, num_threads=num_threads
    )


def evaluate_registration(
    source: Any, target: Any, max_correspondence_distance: float, transformation: Any = IDENTITY
) -> RegistrationResult:
    """Fitness, inlier RMSE and correspondences of `transformation` (4, 4), T_target_source.

    A distance <= 0 gives an empty result, as in Open3D. Raises `InputError` for non-finite target points.
    """
    start, distance = as_transformation("transformation", transformation), as_distance(max_correspondence_distance)
    return evaluate(read_cloud(source, "source"), read_cloud(target, "target"), distance, start)


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


# no registration: Open3D's own, from an installed Open3D; our transformations and information go in as they are
_POSE_GRAPH = (
    "GlobalOptimizationConvergenceCriteria",
    "GlobalOptimizationGaussNewton",
    "GlobalOptimizationLevenbergMarquardt",
    "GlobalOptimizationMethod",
    "GlobalOptimizationOption",
    "PoseGraph",
    "PoseGraphEdge",
    "PoseGraphEdgeVector",
    "PoseGraphNode",
    "PoseGraphNodeVector",
    "global_optimization",
)


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _POSE_GRAPH:
        known = ", ".join([*__all__, *_POSE_GRAPH])
        raise AttributeError(f"dlc_reg.pipelines.registration has no {name!r} (yet); it has: {known}")
    try:
        import open3d
    except ImportError as error:
        raise ImportError(
            f"{name} is Open3D's own, which cannot be imported ({error}): pip install 'dlc_reg[open3d]'"
        ) from error
    return getattr(open3d.pipelines.registration, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_POSE_GRAPH])
