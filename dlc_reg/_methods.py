"""The methods that evaluations compare. A method gets clouds and gives poses: no ground truth is within its reach.

Lengths are for clouds that are about two wide, as all the protocols' are. Every local method starts from the identity
and runs twice, first with far correspondences (`FAR`), then with near ones (`NEAR`), at most `STEPS` steps each time.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud
from dlc_reg.registration.icp import Convergence, icp, icp_pair
from dlc_reg.registration.learned.frame import RegistrationNetwork
from dlc_reg.registration.objectives import Objective, Pair, PointToPlane, PointToPoint

Array = NDArray[Any]

FAR, NEAR, STEPS = 1.0, 0.2, 100
NORMALS_FROM = 20  # neighbours
FEATURE_RADIUS, MATCH_DISTANCE = 0.3, 0.1  # of FPFH, and of the global methods of Open3D
RESTARTS = 32
BATCH = 32


@dataclass(frozen=True, eq=False)
class Clouds:
    """All that a method sees of a pair: source (N, 3) and target (M, 3), float64."""

    source: Array
    target: Array


class Method(Protocol):
    """Poses T_target_source (B, 4, 4) float64 of a batch; `about` says what else a results file should know."""

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> dict[str, Any]: ...

    def __call__(self, pairs: Sequence[Clouds]) -> Array: ...


@dataclass(frozen=True, eq=False)
class OneByOne:
    """A method that knows one pair at a time: (source, target) -> (4, 4)."""

    name: str
    function: Callable[[Array, Array], Array]
    about: dict[str, Any] = field(default_factory=dict)

    def __call__(self, pairs: Sequence[Clouds]) -> Array:
        return np.stack([np.asarray(self.function(p.source, p.target), dtype=np.float64) for p in pairs])


@dataclass(frozen=True, eq=False)
class Learned:
    """A network in eval(), without gradients, started from the identity; `polish` runs point-to-plane ICP after it."""

    name: str
    network: RegistrationNetwork
    iterations: int | None = None
    polish: bool = False
    device: str | torch.device = "cpu"
    about: dict[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, pairs: Sequence[Clouds]) -> Array:
        network = self.network.to(self.device).eval()
        poses = []
        for start in range(0, len(pairs), BATCH):
            batch = pairs[start : start + BATCH]
            source, source_mask = _padded([p.source for p in batch], self.device)
            target, target_mask = _padded([p.target for p in batch], self.device)
            solution = network(source, target, source_mask, target_mask, iterations=self.iterations)
            poses.append(orthonormal(solution.omega.double().cpu().numpy()))
        found = np.concatenate(poses)
        if self.polish:
            found = np.stack([polished(p.source, p.target, T) for p, T in zip(pairs, found, strict=True)])
        return found


def method(name: str, *, iterations: int | None = None, device: str | torch.device = "cpu") -> Method:
    """The method of this name: one of `METHODS`, or learned:WEIGHTS[+polish], of a file or a shipped name.

    `iterations` and `device` are for learned ones.

    Raises:
        InputError: no such method, no such weights, or its library is not installed.
    """
    if name.startswith("learned:"):
        weights, polish = name.removeprefix("learned:").removesuffix("+polish"), name.endswith("+polish")
        return learned(weights, name=name, iterations=iterations, polish=polish, device=device)
    if name not in METHODS:
        raise InputError("method", repr(name), f"{', '.join(METHODS)}, or learned:WEIGHTS[+polish]")
    function, library = METHODS[name]
    about: dict[str, Any] = {}
    if library is not None:
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise InputError("method", f"{name!r}, and {library} cannot be imported ({error})", library) from None
        about = {library: importlib.metadata.version(library)}
    return OneByOne(name, function, about)


def learned(weights: str, *, name: str = "", **options: Any) -> Learned:
    """The network of a weights file, or of a shipped name."""
    from dlc_reg.registration.learned.weights import load_model

    network = load_model(weights)
    about: dict[str, Any] = {"weights": weights}
    if Path(weights).is_file():
        about["weights_checksum"] = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    return Learned(name or f"learned:{weights}", network, about=about, **options)


def orthonormal(poses: Array) -> Array:
    """The nearest rigid poses (..., 4, 4): a rotation in float32 is one only to 1e-7."""
    u, _, vt = np.linalg.svd(poses[..., :3, :3])
    exact = poses.copy()
    exact[..., :3, :3] = u @ vt
    return exact


def polished(source: Array, target: Array, pose: Array) -> Array:
    """Point-to-plane ICP from `pose`, with correspondences up to 3 and then 1.5 spacings of the target."""
    clouds = PointCloud.from_any(source), PointCloud.from_any(target).with_normals(NORMALS_FROM, num_threads=1)
    for spacings in (3.0, 1.5):
        pose = _icp(*clouds, PointToPlane(), pose, spacings * clouds[1].spacing, 30)
    return pose


# --- baselines -------------------------------------------------------------------------------------------------------
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


def installed() -> list[str]:
    """Names of the methods whose libraries are there."""
    there = {library: importlib.util.find_spec(library) is not None for library in ("open3d", "small_gicp")}
    return [name for name, (_, library) in METHODS.items() if library is None or there[library]]


def _padded(clouds: list[Array], device: Any) -> tuple[Tensor, Tensor | None]:
    """(B, N, 3) float32 and a mask, None where all clouds have the same size."""
    sizes = torch.tensor([len(c) for c in clouds])
    points = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(c).float() for c in clouds], batch_first=True)
    mask = torch.arange(points.shape[1]) < sizes[:, None]
    return points.to(device), None if bool(mask.all()) else mask.to(device)


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
