"""Classical methods, ours and other libraries', on two clouds (N, 3) and (M, 3) as arrays.

Lengths are for clouds that are about two wide, as all the protocols' are. Every local method starts from the identity
and runs twice, first with far correspondences (`FAR`), then with near ones (`NEAR`), at most `STEPS` steps each time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlc_reg import ops
from dlc_reg.geometry import PointCloud
from dlc_reg.metrics import rotation_error
from dlc_reg.registration.frame import Objective, Pair
from dlc_reg.registration.icp import Convergence, icp, icp_pair
from dlc_reg.registration.objectives import PointToPlane, PointToPoint, Symmetric

Array = NDArray[Any]

FAR, NEAR, STEPS = 1.0, 0.2, 100
LONGEST = 4000  # iterations of ICP that runs to its end
NORMALS_FROM = 20  # neighbours
FEATURE_RADIUS, MATCH_DISTANCE = 0.3, 0.1  # of FPFH, and of the global methods of Open3D
RESTARTS = 32
POLISH_REACH, POLISH_TURN_DEG, POLISH_SHIFT = (2.0, 1.5), 5.0, 1.5  # chosen on CAD shapes
WHOLE = 0.92


def identity(source: Array, target: Array) -> Array:
    """No motion."""
    return np.eye(4)


def principal_axes(source: Array, target: Array) -> Array:
    """Centroids and principal axes laid on each other; of the four rotations that do, the one that fits best."""
    centers = [c.mean(0) for c in (source, target)]
    axes = [np.linalg.eigh(np.cov((c - m).T))[1] for c, m in zip((source, target), centers, strict=True)]
    index, best, lowest = ops.SearchIndex(target), np.eye(4), np.inf
    for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        turned = axes[1] * np.array([*signs, 1.0])
        rotation = turned @ axes[0].T
        rotation = rotation if np.linalg.det(rotation) > 0 else (turned * [1, 1, -1]) @ axes[0].T
        pose = _pose(rotation, centers[1] - rotation @ centers[0])
        cost = float(np.square(index.knn(_moved(pose, source), num_threads=1)[0]).mean())
        if cost < lowest:
            best, lowest = pose, cost
    return best


def icp_point_to_point(source: Array, target: Array) -> Array:
    return _twice(source, target, PointToPoint())


def icp_point_to_plane(source: Array, target: Array) -> Array:
    return _twice(source, target, PointToPlane())


def icp_restarts(source: Array, target: Array) -> Array:
    """Point-to-point ICP from the identity and from random rotations about the centroids; the least truncated cost."""
    clouds = PointCloud.from_any(source), PointCloud.from_any(target)
    pair = Pair.prepare(*clouds, PointToPoint(), max_distance=FAR, num_threads=1)
    rng = np.random.default_rng(0)
    best, lowest = np.eye(4), np.inf
    for start in range(RESTARTS):
        pose = np.eye(4)
        if start:
            rotation = _random_rotation(rng)
            pose = _pose(rotation, target.mean(0) - rotation @ source.mean(0))
        result = icp_pair(pair, PointToPoint(), pose, convergence=Convergence(max_iterations=30))
        distances = ops.knn(_moved(result.transformation, source), target, num_threads=1)[0]
        cost = float(np.square(distances.clip(max=NEAR)).mean())
        if cost < lowest:
            best, lowest = result.transformation, cost
    return _icp(*clouds, PointToPoint(), best, NEAR, STEPS)


def _twice(source: Array, target: Array, objective: Objective) -> Array:
    clouds = PointCloud.from_any(source), PointCloud.from_any(target)
    if isinstance(objective, PointToPlane):
        clouds = clouds[0], clouds[1].with_normals(NORMALS_FROM, num_threads=1)
    pose = _icp(*clouds, objective, np.eye(4), FAR, STEPS)
    return _icp(*clouds, objective, pose, NEAR, STEPS)


def _icp(source: PointCloud, target: PointCloud, objective: Objective, pose: Array, distance: float, n: int) -> Array:
    convergence = Convergence(rmse=1e-6 * target.extent, max_iterations=n)
    return icp(
        source, target, objective, pose, max_distance=distance, convergence=convergence, num_threads=1
    ).transformation


# --- other libraries -------------------------------------------------------------------------------------------------
def open3d_icp(source: Array, target: Array) -> Array:
    return _open3d_local(source, target, "PointToPoint")


def open3d_plane(source: Array, target: Array) -> Array:
    return _open3d_local(source, target, "PointToPlane")


def open3d_gicp(source: Array, target: Array) -> Array:
    return _open3d_local(source, target, "ForGeneralizedICP")


def open3d_fgr(source: Array, target: Array) -> Array:
    """Fast global registration on FPFH (Zhou, Park and Koltun, ECCV 2016), then point-to-plane ICP."""
    _, registration, clouds, features = _open3d_features(source, target)
    option = registration.FastGlobalRegistrationOption(maximum_correspondence_distance=MATCH_DISTANCE / 2)
    result = registration.registration_fgr_based_on_feature_matching(*clouds, *features, option)
    return _open3d_step(registration, clouds, result.transformation, "PointToPlane", MATCH_DISTANCE)


def open3d_ransac(source: Array, target: Array) -> Array:
    """RANSAC on mutual matches of FPFH, then point-to-plane ICP."""
    o3d, registration, clouds, features = _open3d_features(source, target)
    o3d.utility.random.seed(0)
    checks = [registration.CorrespondenceCheckerBasedOnEdgeLength(0.9)]
    checks.append(registration.CorrespondenceCheckerBasedOnDistance(MATCH_DISTANCE))
    result = registration.registration_ransac_based_on_feature_matching(
        *clouds,
        *features,
        True,
        MATCH_DISTANCE,
        registration.TransformationEstimationPointToPoint(False),
        3,
        checks,
        registration.RANSACConvergenceCriteria(100_000, 0.999),
    )
    return _open3d_step(registration, clouds, result.transformation, "PointToPlane", MATCH_DISTANCE)


def small_gicp(source: Array, target: Array) -> Array:
    """Generalized ICP."""
    library = importlib.import_module("small_gicp")
    pose = np.eye(4)
    for distance in (FAR, NEAR):
        options = {"downsampling_resolution": 1e-3, "max_correspondence_distance": distance, "max_iterations": STEPS}
        result = library.align(target, source, pose, registration_type="GICP", num_threads=1, **options)
        pose = np.array(result.T_target_source)
    return pose


def _open3d_clouds(source: Array, target: Array) -> tuple[Any, Any, list[Any]]:
    o3d = importlib.import_module("open3d")
    clouds = [o3d.geometry.PointCloud(o3d.utility.Vector3dVector(c)) for c in (source, target)]
    for cloud in clouds:
        cloud.estimate_normals(o3d.geometry.KDTreeSearchParamKNN(NORMALS_FROM))
    return o3d, o3d.pipelines.registration, clouds


def _open3d_features(source: Array, target: Array) -> tuple[Any, Any, list[Any], list[Any]]:
    o3d, registration, clouds = _open3d_clouds(source, target)
    for cloud in clouds:  # FPFH of Open3D depends on the normals' signs: outward is the best guess for an object
        cloud.orient_normals_towards_camera_location(cloud.get_center())
        cloud.normals = o3d.utility.Vector3dVector(-np.asarray(cloud.normals))
    near = o3d.geometry.KDTreeSearchParamHybrid(radius=FEATURE_RADIUS, max_nn=100)
    return o3d, registration, clouds, [registration.compute_fpfh_feature(cloud, near) for cloud in clouds]


def _open3d_local(source: Array, target: Array, kind: str) -> Array:
    _, registration, clouds = _open3d_clouds(source, target)
    pose = _open3d_step(registration, clouds, np.eye(4), kind, FAR)
    return _open3d_step(registration, clouds, pose, kind, NEAR)


def _open3d_step(registration: Any, clouds: list[Any], pose: Array, kind: str, distance: float) -> Array:
    run = registration.registration_generalized_icp if kind == "ForGeneralizedICP" else registration.registration_icp
    estimation = getattr(registration, f"TransformationEstimation{kind}")()
    criteria = registration.ICPConvergenceCriteria(max_iteration=STEPS)
    return np.array(run(*clouds, distance, pose, estimation, criteria).transformation)


METHODS: dict[str, tuple[Callable[[Array, Array], Array], str | None]] = {
    "identity": (identity, None),
    "principal_axes": (principal_axes, None),
    "icp": (icp_point_to_point, None),
    "icp_plane": (icp_point_to_plane, None),
    "icp_restarts": (icp_restarts, None),
    "open3d_icp": (open3d_icp, "open3d"),
    "open3d_plane": (open3d_plane, "open3d"),
    "open3d_gicp": (open3d_gicp, "open3d"),
    "open3d_fgr": (open3d_fgr, "open3d"),
    "open3d_ransac": (open3d_ransac, "open3d"),
    "small_gicp": (small_gicp, "small_gicp"),
}
"""Name -> function(source, target) and the library that it needs beside ours."""


def polished(source: Array, target: Array, pose: Array) -> Array:
    """Symmetric ICP from `pose`, with correspondences up to 2 and then 1.5 spacings of the target.

    Where the clouds overlap in part ICP may run away along a surface. So a result that turns by `POLISH_TURN_DEG` or
    moves the source's middle by `POLISH_SHIFT` spacings is taken only if `WHOLE` of either cloud then lies on the
    other, within 2 spacings.
    """
    clouds = [PointCloud.from_any(c).with_normals(NORMALS_FROM, num_threads=1) for c in (source, target)]
    spacing, found = clouds[1].spacing, pose
    for reach in POLISH_REACH:
        found = _icp(clouds[0], clouds[1], Symmetric(), found, reach * spacing, 30)
    turned = float(rotation_error(found, pose).rad2deg())
    moved, before = _moved(found, source), _moved(pose, source)
    shift = np.linalg.norm(moved.mean(0) - before.mean(0))
    if turned < POLISH_TURN_DEG and shift < POLISH_SHIFT * spacing:
        return found
    distances = [ops.knn(a, b, num_threads=1)[0] for a, b in ((moved, target), (target, moved))]
    return found if min((d < 2 * spacing).mean() for d in distances) >= WHOLE else pose


def icp_from(source: Array, target: Array, pose: Array) -> Array:
    """Point-to-point ICP from `pose` to its end, correspondences up to `NEAR`: what DLC's authors run last."""
    return _icp(PointCloud.from_any(source), PointCloud.from_any(target), PointToPoint(), pose, NEAR, LONGEST)


REFINEMENTS: dict[str, Callable[[Array, Array, Array], Array]] = {"polish": polished, "icp": icp_from}
"""Name -> function(source, target, pose), which a learned model's pose goes through."""


def _pose(rotation: Array, translation: Array) -> Array:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, translation
    return pose


def _moved(pose: Array, points: Array) -> Array:
    moved: Array = points @ pose[:3, :3].T + pose[:3, 3]
    return moved


def _random_rotation(rng: np.random.Generator) -> Array:
    """Uniform over all rotations: Q of a Gaussian matrix (Mezzadri, 2007), its signs fixed by R."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    rotation: Array = q if np.linalg.det(q) > 0 else -q
    return rotation
