"""The methods that `tools/evaluate.py` compares on scans. A method gets clouds and gives a pose: it sees no truth.

The peers are told a voxel size v, and every other length is a multiple of it: Open3D's clouds are thinned to v, normals
are from 30 neighbours within 2 v, FPFH from 100 within 5 v, matches hold within 1.5 v (RANSAC, 100,000 trials at most)
or v / 2 (FGR), and point-to-plane ICP at 1.5 v ends both. KISS-Matcher refuses small voxels, so clouds are scaled to
v = 0.1. small_gicp refines from the identity (or the list's init) with correspondences up to 10 v.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dlc_reg
from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud
from dlc_reg.registration.global_search import GlobalSearch, working_voxel_size

Array = NDArray[Any]
Matches = tuple[Array, Array]  # (M, 3) both, of the source and of the target

TRIALS, CONFIDENCE = 100_000, 0.999
FITNESS = 0.3
KISS_VOXEL = 0.1


@dataclass(frozen=True, eq=False)
class Given:
    """What a method sees of a pair: two clouds as `register` takes them, read already; no true pose is within reach."""

    source: Any
    target: Any
    voxel_size: float  # for methods that must be told one
    num_threads: int = 1
    init: Array | None = None
    origin: Array = field(default_factory=lambda: np.zeros(3))  # what libraries of float32 are given less of

    def arrays(self) -> tuple[Array, Array]:
        """(N, 3) and (M, 3) float64, less `origin`."""
        source, target = (c.to_absolute() if isinstance(c, PointCloud) else c for c in (self.source, self.target))
        return source - self.origin, target - self.origin

    def absolute(self, pose: Any) -> Array:
        """A pose between the `arrays`, as one between the clouds."""
        return _about(-self.origin, pose)

    def relative(self, pose: Any) -> Array:
        """The reverse."""
        return _about(self.origin, pose)


def _about(origin: Array, pose: Any) -> Array:
    there, back = np.eye(4), np.eye(4)
    there[:3, 3], back[:3, 3] = -origin, origin
    return there @ np.asarray(pose, dtype=np.float64) @ back


@dataclass(frozen=True, eq=False)
class Answer:
    pose: Array  # (4, 4), T_target_source
    verdict: str = ""
    trusted: bool | None = None  # None: the method does not say


@dataclass(frozen=True)
class Method:
    name: str
    solve: Callable[[Given], Answer]
    trusts: str = ""  # when it calls an answer trusted
    library: str | None = None
    matches: Callable[[Given], Matches] | None = None  # its putative correspondences, found once more


def _said(trusted: bool) -> str:
    return "trusted" if trusted else "not trusted"


# --- ours ------------------------------------------------------------------------------------------------------------
def _register(given: Given, viewpoint: tuple[float, float, float] | None = None) -> Answer:
    result = dlc_reg.register(
        given.source, given.target, init=given.init, num_threads=given.num_threads,
        source_viewpoint=viewpoint, target_viewpoint=viewpoint,
    )  # fmt: skip
    verdict = str(getattr(result.verdict, "value", result.verdict))
    return Answer(result.transformation, verdict, verdict == "aligned")


def _register_viewpoints(given: Given) -> Answer:
    return _register(given, (0.0, 0.0, 0.0))


def _register_matches(given: Given, viewpoint: tuple[float, float, float] | None = None) -> Matches:
    source, target = (PointCloud.from_any(c, viewpoint=viewpoint) for c in (given.source, given.target))
    search = GlobalSearch.prepare(source, target, working_voxel_size(source, target), num_threads=given.num_threads)
    return search.p.double().numpy() + source.origin, search.q.double().numpy() + target.origin


def _register_viewpoints_matches(given: Given) -> Matches:
    return _register_matches(given, (0.0, 0.0, 0.0))


def _identity(given: Given) -> Answer:
    return Answer(np.eye(4))


# --- peers -----------------------------------------------------------------------------------------------------------
def fpfh(registration: Any, clouds: Sequence[Any], voxel: float) -> list[Any]:
    """Of two Open3D clouds with normals, by Open3D's registration module or one with its names; so the next two."""
    around = importlib.import_module("open3d").geometry.KDTreeSearchParamHybrid(5 * voxel, 100)
    return [registration.compute_fpfh_feature(cloud, around) for cloud in clouds]


def ransac(
    registration: Any, clouds: Sequence[Any], features: Sequence[Any], voxel: float, *, mutual: bool = True, **more: Any
) -> Any:
    """Open3D's tutorial on global registration, call for call; `more` is told to the module."""
    checks = [registration.CorrespondenceCheckerBasedOnEdgeLength(0.9)]
    checks.append(registration.CorrespondenceCheckerBasedOnDistance(1.5 * voxel))
    return registration.registration_ransac_based_on_feature_matching(
        *clouds, *features, mutual, 1.5 * voxel, registration.TransformationEstimationPointToPoint(False), 3, checks,
        registration.RANSACConvergenceCriteria(TRIALS, CONFIDENCE), **more,
    )  # fmt: skip


def fgr(registration: Any, clouds: Sequence[Any], features: Sequence[Any], voxel: float, **more: Any) -> Any:
    """Fast global registration (Zhou, Park and Koltun, ECCV 2016)."""
    option = registration.FastGlobalRegistrationOption(maximum_correspondence_distance=0.5 * voxel)
    return registration.registration_fgr_based_on_feature_matching(*clouds, *features, option, **more)


def _features(given: Given) -> tuple[Any, list[Any], list[Any]]:
    """Open3D's registration module, the thinned clouds with normals, and their FPFH."""
    o3d = importlib.import_module("open3d")
    registration, v = o3d.pipelines.registration, given.voxel_size
    clouds = []
    for points in given.arrays():
        clouds.append(o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points)).voxel_down_sample(v))
        clouds[-1].estimate_normals(o3d.geometry.KDTreeSearchParamHybrid(2 * v, 30))
    return registration, clouds, fpfh(registration, clouds, v)


def _open3d_matches(given: Given) -> Matches:
    registration, (source, target), features = _features(given)
    rows = np.asarray(registration.correspondences_from_features(*features, mutual_filter=True)).reshape(-1, 2)
    found = np.asarray(source.points)[rows[:, 0]], np.asarray(target.points)[rows[:, 1]]
    return found[0] + given.origin, found[1] + given.origin


def _refined(given: Given, registration: Any, clouds: list[Any], start: Any) -> Answer:
    estimation = registration.TransformationEstimationPointToPlane()
    result = registration.registration_icp(*clouds, 1.5 * given.voxel_size, start, estimation)
    trusted = result.fitness > FITNESS
    return Answer(given.absolute(result.transformation), _said(trusted), trusted)


def _ransac(given: Given) -> Answer:
    """RANSAC on FPFH."""
    registration, clouds, features = _features(given)
    importlib.import_module("open3d").utility.random.seed(0)
    start = ransac(registration, clouds, features, given.voxel_size)
    return _refined(given, registration, clouds, start.transformation)


def _fgr(given: Given) -> Answer:
    """Fast global registration on FPFH (Zhou, Park and Koltun, ECCV 2016)."""
    registration, clouds, features = _features(given)
    importlib.import_module("open3d").utility.random.seed(0)
    start = fgr(registration, clouds, features, given.voxel_size)
    return _refined(given, registration, clouds, start.transformation)


def _kiss_run(given: Given) -> tuple[Any, Any, float]:
    """KISS-Matcher's matcher after its run, its solution, and the scale of the clouds that it was given."""
    library = importlib.import_module("kiss_matcher")
    scale = KISS_VOXEL / given.voxel_size
    matcher = library.KISSMatcher(library.KISSMatcherConfig(KISS_VOXEL))
    solution = matcher.estimate(*((points * scale).astype(np.float32) for points in given.arrays()))
    return matcher, solution, scale


def _kiss(given: Given) -> Answer:
    """KISS-Matcher (Lim et al., ICRA 2025)."""
    _, solution, scale = _kiss_run(given)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = np.array(solution.rotation), np.array(solution.translation).ravel() / scale
    return Answer(given.absolute(pose), _said(solution.valid), bool(solution.valid))


def _kiss_matches(given: Given) -> Matches:
    """Before its pruning."""
    matcher, _, scale = _kiss_run(given)
    rows = np.array(matcher.get_initial_correspondences(), dtype=np.int64).reshape(-1, 2)
    points = [np.array(p, np.float64).reshape(-1, 3) / scale for p in matcher.get_keypoints_from_faster_pfh()]
    return points[0][rows[:, 0]] + given.origin, points[1][rows[:, 1]] + given.origin


def _small_gicp(given: Given) -> Answer:
    """Generalized ICP."""
    library = importlib.import_module("small_gicp")
    source, target = given.arrays()
    start = given.relative(np.eye(4) if given.init is None else given.init)
    result = library.align(
        target, source, start, registration_type="GICP",
        downsampling_resolution=given.voxel_size, max_correspondence_distance=10 * given.voxel_size,
        num_threads=given.num_threads,
    )  # fmt: skip
    converged = bool(result.converged)
    return Answer(given.absolute(result.T_target_source), _said(converged), converged)


_ALIGNED, _FIT = "verdict aligned", f"ICP's fitness above {FITNESS:g}"
METHODS = {
    m.name: m
    for m in (
        Method("register", _register, _ALIGNED, matches=_register_matches),
        Method("register-viewpoints", _register_viewpoints, _ALIGNED, matches=_register_viewpoints_matches),
        Method("identity", _identity),
        Method("ransac", _ransac, _FIT, "open3d", _open3d_matches),
        Method("fgr", _fgr, _FIT, "open3d", _open3d_matches),
        Method("kiss", _kiss, "its flag valid", "kiss_matcher", _kiss_matches),
        Method("small_gicp", _small_gicp, "its flag converged", "small_gicp"),
    )
}


def installed() -> list[str]:
    """Names of the methods whose libraries are there."""
    return [n for n, m in METHODS.items() if m.library is None or importlib.util.find_spec(m.library) is not None]


def choose(names: Sequence[str]) -> list[Method]:
    """The methods of these names, each once; "all" is those that are `installed`.

    Raises:
        InputError: No such method, or its library cannot be imported.
    """
    wanted = [found for name in names for found in (installed() if name == "all" else [name])]
    methods = []
    for name in dict.fromkeys(wanted):
        if name not in METHODS:
            raise InputError("--method", repr(name), f"all, {', '.join(METHODS)}")
        library = METHODS[name].library
        if library is not None:
            try:
                importlib.import_module(library)  # now, and not in the first pair's time
            except ImportError as error:
                package = {"kiss_matcher": "kiss-matcher"}.get(library, library)
                given = f"{name!r}, and {library} cannot be imported ({error})"
                raise InputError("--method", given, f"{package} (pip install {package})") from None
            if library == "open3d":  # its warnings would stand in the table
                level = importlib.import_module("open3d").utility
                level.set_verbosity_level(level.VerbosityLevel.Error)
        methods.append(METHODS[name])
    return methods


def versions(methods: Sequence[Method]) -> dict[str, str]:
    """Of the libraries that the methods need beside ours."""
    return {m.library: importlib.metadata.version(m.library) for m in methods if m.library is not None}
