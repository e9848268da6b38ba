"""`register`: two clouds in, a transformation and a verdict out."""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud, check_pair, globalize, localize
from dlc_reg.iterate import Status
from dlc_reg.manifold import check_rigid
from dlc_reg.registration import verification
from dlc_reg.registration.global_search import Candidates, GlobalSearch, working_voxel_size
from dlc_reg.registration.icp import coarse_to_fine
from dlc_reg.registration.learned.apply import estimate, shipped
from dlc_reg.registration.objectives import Colored, Generalized, Objective, PointToPlane, PointToPoint, Symmetric
from dlc_reg.registration.result import RegistrationResult, Verdict

__all__ = ["RegistrationResult", "Verdict", "register"]

OBJECTIVES: dict[str, Objective] = {
    "point_to_point": PointToPoint(),
    "point_to_plane": PointToPlane(),
    "symmetric": Symmetric(),
    "generalized": Generalized(),
    "colored": Colored(),
}
METHODS = ("auto", "global", "learned", *OBJECTIVES)
MIN_CELLS, MAX_CELLS = 3, 500_000  # voxels across a cloud
WHOLE_CLOUD = 300_000  # clouds up to this size are refined whole, larger ones thinned
SUSPECT_EXTENT_RATIO = 5.0  # from which on a failure may be one of units
INIT_PREFERENCE = 0.7  # a given start keeps its basin unless another pose scores more than this above it
SCALE_FACTORS = (1.0, 0.8, 1.25)  # tried about the ratio of the clouds' sizes, until one is trusted


def register(
    source: Any,
    target: Any,
    *,
    init: ArrayLike | None = None,
    method: str = "auto",
    voxel_size: float | None = None,
    max_correspondence_distance: float | None = None,
    with_scaling: bool = False,
    source_viewpoint: ArrayLike | None = None,
    target_viewpoint: ArrayLike | None = None,
    remove_non_finite: bool = False,
    num_threads: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: bool = False,
    callback: Callable[[dict[str, Any]], bool | None] | None = None,
) -> RegistrationResult:
    """Finds the transformation that maps `source` onto `target`, and says whether it can be trusted.

    Args:
        source, target: A path (PLY, PCD, XYZ, PTS, NPY, NPZ, STL, OBJ, OFF, GLB, LAS, LAZ), an array or tensor (N, 3),
            an Open3D cloud (legacy or tensor), a trimesh mesh (sampled), or a `PointCloud`. Any unit, the same for both
            (unless `with_scaling`).
        init: A start (4, 4), T_target_source. None: none is known.
        method: "auto" or "global" search from any pose ("auto" also tries what the learned model finds, and `init`, or
            the identity without one, and keeps the basin of `init` unless another pose is clearly better); "learned"
            takes the learned model's pose; "point_to_point", "point_to_plane", "symmetric" and "generalized" only
            refine from `init`, or from the identity.
        voxel_size: The working resolution, in the points' unit. None: from the data, see `settings`.
        max_correspondence_distance: Of the last refinement and of the evidence (fitness, inlier RMSE), in the points'
            unit; a refining method uses it throughout. None: from the data.
        with_scaling: Find a common scale too; the transformation is then a similarity.
        source_viewpoint, target_viewpoint: Where the sensor stood, (3,) in that cloud's own frame. With both known the
            answer is much more reliable, with a wrong one it is ruined: leave None unless sure.
        remove_non_finite: Drop points with NaN or infinity (counted in `settings`) instead of raising.
        num_threads: None: all cores. The answer does not depend on it.
        device: None or "cpu": `register` runs on the CPU (`dlc_reg.ops` has CUDA kernels).
        seed: Of the sampling of meshes; nothing else is random.
        progress: Show a progress bar.
        callback: Called with the record of each refining iteration; return True to stop.

    Returns:
        `RegistrationResult`. Look at `verdict` before using `transformation`.

    Raises:
        InputError: Bad input: says which argument, what was given and what is expected.
    """
    _check_options(method, voxel_size, max_correspondence_distance, num_threads, device, with_scaling, seed, callback)
    with _Stages(progress) as stages:
        with stages("read"):
            read = partial(PointCloud.from_any, remove_non_finite=remove_non_finite, seed=seed)
            moving = read(source, name="source", viewpoint=source_viewpoint)
            fixed = read(target, name="target", viewpoint=target_viewpoint)
            start = None if init is None else check_rigid(init, "init", with_scaling=with_scaling)
            if not with_scaling:
                check_pair(moving, fixed)
        task = _Task(moving, fixed, start, method, voxel_size, max_correspondence_distance, num_threads, callback)
        result = _register_similar(task, stages) if with_scaling else _register_rigid(task, stages)
    result.settings |= {
        "method": method,
        "with_scaling": with_scaling,
        "source_points": len(moving),
        "target_points": len(fixed),
        "source_dropped": moving.dropped,
        "target_dropped": fixed.dropped,
        "source_viewpoint": None if moving.viewpoint is None else moving.viewpoint.tolist(),
        "target_viewpoint": None if fixed.viewpoint is None else fixed.viewpoint.tolist(),
        "num_threads": num_threads,
        "seed": seed,
    }
    result.correspondence_set = _as_given(result.correspondence_set, moving, fixed)
    result.clouds = (moving, fixed)
    result.timings = stages.seconds
    return result


@dataclass(frozen=True)
class _Task:
    source: PointCloud
    target: PointCloud
    start: NDArray[np.float64] | None
    method: str
    voxel_size: float | None
    max_correspondence_distance: float | None
    num_threads: int | None
    callback: Callable[[dict[str, Any]], bool | None] | None


@dataclass(frozen=True)
class _Lengths:
    """Every length of a registration, in the points' unit; all derive from the voxel size and the spacing."""

    voxel_size: float
    spacing: float
    max_correspondence_distance: float
    given_distance: bool
    whole: bool

    @staticmethod
    def derive(task: _Task) -> _Lengths:
        spacing = max(task.source.spacing, task.target.spacing)
        voxel = task.voxel_size or working_voxel_size(task.source, task.target)
        least, most = (f(task.source.extent, task.target.extent) for f in (min, max))
        if task.voxel_size is not None and not most / MAX_CELLS < voxel < least / MIN_CELLS:
            given = f"{voxel:g} for clouds {least:.4g} and {most:.4g} wide"
            raise InputError("voxel_size", given, f"between {most / MAX_CELLS:.2g} and {least / MIN_CELLS:.2g}")
        distance = task.max_correspondence_distance
        whole = max(len(task.source), len(task.target)) <= WHOLE_CLOUD
        return _Lengths(voxel, spacing, distance or max(voxel / 2, 2.5 * spacing), distance is not None, whole)

    def levels(self, coarsest: float) -> tuple[list[float], list[float]]:
        """Voxel sizes from `coarsest` by halves to the clouds as they are, and the distances that go with them."""
        sizes = [coarsest]
        while sizes[-1] / 2 > 1.2 * self.spacing and sizes[-1] > 0.26 * self.voxel_size:
            sizes.append(sizes[-1] / 2)
        distances = [max(2.5 * size, self.max_correspondence_distance) for size in sizes]
        if self.whole:
            sizes, distances = [*sizes, 0.0], [*distances, 0.0]
        distances[-1] = self.max_correspondence_distance
        if self.given_distance and coarsest > self.voxel_size / 2:
            distances = [self.max_correspondence_distance] * len(sizes)
        return sizes, distances


def _register_rigid(task: _Task, stages: _Stages) -> RegistrationResult:
    source, target = task.source, task.target
    refining = OBJECTIVES.get(task.method)
    with stages("prepare"):
        lengths = _Lengths.derive(task)
        search = GlobalSearch.prepare(source, target, lengths.voxel_size, num_threads=task.num_threads)
    local = localize(np.eye(4) if task.start is None else task.start, source, target)
    start = torch.from_numpy(local)
    starts = [] if task.method in ("global", "learned") else [start]
    if task.method in ("auto", "learned"):
        with stages("learn"):
            starts.append(estimate(shipped(), search.source.coarse.points, search.target.coarse.points, start))
    with stages("search"):
        candidates = search.candidates(torch.stack(starts) if starts else None)
        if task.method == "learned":
            pose = search.refine(starts[0][None])[0]
        elif refining is None:
            pose = _choose(search, candidates, start if task.start is not None and task.method == "auto" else None)
    with stages("refine"):
        coarsest = lengths.voxel_size / 2 if refining is None else 2 * lengths.voxel_size
        sizes, distances = lengths.levels(coarsest)
        result = coarse_to_fine(
            source,
            target,
            refining or PointToPlane(),
            globalize((pose if refining is None else start).numpy(), source, target),
            voxel_sizes=sizes,
            max_distances=distances,
            callback=task.callback,
            num_threads=task.num_threads,
        )
    with stages("verify"):
        final = torch.from_numpy(localize(result.transformation, source, target))
        evidence = verification.gather(search, final, candidates, target.origin)
        if evidence.free_motions:
            result.covariance = None
            result.settings["free_motions"] = [motion.text for motion in evidence.free_motions]
            result.settings["free_twists"] = [motion.about(target.origin).tolist() for motion in evidence.free_motions]
        result.verdict, result.verdict_reasons = verification.decide(evidence, result, search.oriented)
        ratio = max(source.extent, target.extent) / min(source.extent, target.extent)
        if result.verdict is Verdict.FAILED and ratio > SUSPECT_EXTENT_RATIO:
            result.verdict_reasons.append(
                f"the clouds are {ratio:.0f} times apart in size: one unit? or with_scaling=True"
            )
    result.settings |= {
        "voxel_size": lengths.voxel_size,
        "spacing": lengths.spacing,
        "feature_radius": 5 * lengths.voxel_size,
        "feature_matches": len(search.p),
        "hypotheses": len(candidates),
        "viewpoints_used": search.oriented,
        "evidence": {name: value for name, value in asdict(evidence).items() if name != "free_motions"},
        "trust": verification.trust(evidence, search.oriented) if len(result.correspondence_set) else 0.0,
    }
    return result


def _choose(search: GlobalSearch, candidates: Candidates, start: torch.Tensor | None) -> torch.Tensor:
    """The best candidate, or the refined start if it is nearly as good."""
    if start is not None:
        refined = search.judge(search.refine(start[None]))
        if float(refined.scores[0]) > float(candidates.scores[0]) - INIT_PREFERENCE:
            return refined.poses[0]
    return candidates.poses[0] if len(candidates) else torch.eye(4, dtype=torch.float64)


def _register_similar(task: _Task, stages: _Stages) -> RegistrationResult:
    """A rigid search at each of a few scales about the ratio of the clouds' sizes; then the scale is refined too."""
    source, target = task.source, task.target
    if task.start is not None:
        scales = [float(np.cbrt(np.linalg.det(task.start[:3, :3])))]
    else:
        scales = [_radius(target) / _radius(source) * factor for factor in SCALE_FACTORS]
    best: tuple[RegistrationResult, float] | None = None
    for scale in scales:
        start = None if task.start is None else task.start @ np.diag([1 / scale] * 3 + [1.0])
        result = _register_rigid(replace(task, source=_scaled(source, scale), start=start), stages)
        if best is None or result.settings["trust"] > best[0].settings["trust"]:
            best = result, scale
        if result.verdict is Verdict.ALIGNED:
            break
    assert best is not None
    result, scale = best
    with stages("scale"):
        similar = coarse_to_fine(
            source,
            target,
            PointToPoint(with_scaling=True),
            result.transformation @ np.diag([scale] * 3 + [1.0]),
            voxel_sizes=[0.0] if len(source) <= WHOLE_CLOUD else [result.settings["voxel_size"] / 4],
            max_distances=[result.settings["max_correspondence_distance"]],
            iterations=100,
            callback=task.callback,
            num_threads=task.num_threads,
        )
    similar.settings = (
        result.settings
        | similar.settings
        | {
            "scale": float(np.cbrt(np.linalg.det(similar.transformation[:3, :3]))),
            "scales_tried": scales,
        }
    )
    similar.verdict, similar.verdict_reasons = result.verdict, result.verdict_reasons
    if similar.status is Status.NO_CORRESPONDENCES:
        similar.verdict, similar.verdict_reasons = Verdict.FAILED, [similar.status.value]
    return similar


def _scaled(cloud: PointCloud, scale: float) -> PointCloud:
    return replace(
        cloud,
        points=cloud.points * scale,
        origin=cloud.origin * scale,
        covariances=None if cloud.covariances is None else cloud.covariances * scale**2,
        viewpoint=None if cloud.viewpoint is None else cloud.viewpoint * scale,
    )


def _radius(cloud: PointCloud) -> float:
    """Root mean square distance from the mean, of the points thinned evenly."""
    points = cloud.voxel_downsample(cloud.extent / 50).points.double()
    return float((points - points.mean(0)).square().sum(1).mean().sqrt())


def _as_given(pairs: NDArray[np.int32], source: PointCloud, target: PointCloud) -> NDArray[np.int32]:
    """Rows in the clouds as they were given, before points were dropped."""
    if not len(pairs) or (source.kept is None and target.kept is None):
        return pairs
    rows = [
        pairs[:, side] if cloud.kept is None else cloud.kept.numpy()[pairs[:, side]]
        for side, cloud in enumerate((source, target))
    ]
    return np.stack(rows, axis=1).astype(np.int32)


def _check_options(
    method: str,
    voxel_size: float | None,
    max_correspondence_distance: float | None,
    num_threads: int | None,
    device: str | torch.device | None,
    with_scaling: bool,
    seed: int,
    callback: Callable[[dict[str, Any]], bool | None] | None,
) -> None:
    if method not in METHODS:
        raise InputError("method", repr(method), "one of " + ", ".join(map(repr, METHODS)))
    if with_scaling and method not in ("auto", "global", "point_to_point"):
        raise InputError("method", f"{method!r} with with_scaling", "'auto', 'global' or 'point_to_point'")
    for name, value in (("voxel_size", voxel_size), ("max_correspondence_distance", max_correspondence_distance)):
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value < math.inf):
            raise InputError(name, repr(value), "a positive finite length in the points' unit, or None")
    counted = isinstance(num_threads, numbers.Integral) and not isinstance(num_threads, bool) and num_threads >= 1
    if num_threads is not None and not counted:
        raise InputError("num_threads", repr(num_threads), "a positive integer, or None for all cores")
    if not isinstance(seed, numbers.Integral) or isinstance(seed, bool) or seed < 0:
        raise InputError("seed", repr(seed), "an integer, 0 or above")
    if callback is not None and not callable(callback):
        raise InputError("callback", repr(callback), "a function of the iteration's record, or None")
    if device is not None and str(device) != "cpu":
        raise InputError("device", repr(device), "'cpu' or None: only dlc_reg.ops has CUDA kernels")


class _Stages:
    """Times the stages, and shows them if asked."""

    def __init__(self, progress: bool) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    def __enter__(self) -> _Stages:
        if self._progress:
            from tqdm import tqdm

            self._bar: Any = tqdm(total=5, bar_format="{desc:8s} |{bar:30}| {elapsed}", leave=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._bar.close()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self._progress:
            self._bar.set_description_str(name)
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        if self._progress:
            self._bar.update()
