"""`register`: two clouds in, a transformation and a verdict out; `prepare`: the target's part of it once for many."""

from __future__ import annotations

import math
import numbers
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from dlc_reg._register_parts import WHOLE_CLOUD, Lengths, Stages, as_given, radius, scaled
from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud, check_pair, globalize, localize
from dlc_reg.iterate import Status
from dlc_reg.manifold import check_rigid
from dlc_reg.registration import verification
from dlc_reg.registration.global_search import Candidates, GlobalSearch, Thinned, working_voxel_size
from dlc_reg.registration.icp import Callback, Levels, coarse_to_fine
from dlc_reg.registration.learned.apply import estimate, shipped
from dlc_reg.registration.objectives import Colored, Generalized, Objective, PointToPlane, PointToPoint, Symmetric
from dlc_reg.registration.result import RegistrationResult, Verdict

__all__ = ["Prepared", "RegistrationResult", "Verdict", "prepare", "register"]

OBJECTIVES: dict[str, Objective] = {
    "point_to_point": PointToPoint(),
    "point_to_plane": PointToPlane(),
    "symmetric": Symmetric(),
    "generalized": Generalized(),
    "colored": Colored(),
}
METHODS = ("auto", "global", "learned", *OBJECTIVES)
SEARCHED = PointToPlane()  # refines the pose that a search found
THINNED_KEPT = 4  # voxel sizes for which a target stays thinned
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
    callback: Callback | None = None,
) -> RegistrationResult:
    """Finds the transformation that maps `source` onto `target`, and says whether it can be trusted.

    Args:
        source, target: A path (PLY, PCD, XYZ, PTS, NPY, NPZ, STL, OBJ, OFF, GLB, LAS, LAZ), an array or tensor (N, 3),
            an Open3D cloud (legacy or tensor), a trimesh mesh (sampled), or a `PointCloud`. Any unit, the same for both
            (unless `with_scaling`).
        init: A start (4, 4), T_target_source. None: none is known.
        method: "auto" or "global" search from any pose ("auto" also tries what the learned model finds, and `init`, or
            the identity without one, and keeps the basin of `init` unless another pose is clearly better); "learned"
            takes the learned model's pose; "point_to_point", "point_to_plane", "symmetric", "generalized" and "colored"
            (for clouds that have colours) only refine from `init`, or from the identity.
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
    options = Options(
        method, voxel_size, max_correspondence_distance, with_scaling, remove_non_finite, num_threads, device, seed
    )
    with Stages(progress) as stages:
        with stages("read"):
            prepared = Prepared(options.read(target, "target", target_viewpoint), options)
        return prepared._register(source, init, source_viewpoint, callback, stages)


def prepare(
    target: Any,
    *,
    method: str = "auto",
    voxel_size: float | None = None,
    max_correspondence_distance: float | None = None,
    with_scaling: bool = False,
    target_viewpoint: ArrayLike | None = None,
    remove_non_finite: bool = False,
    num_threads: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> Prepared:
    """Makes a target ready for many sources: `prepare(target, ...).register(source, ...)` is `register`, to the bit.

    What depends on the target alone is made when a scan first asks for it, and used again by those that lead to the
    same lengths. A given `voxel_size` makes sure that they do; without one it is from the larger of the two clouds, so
    that scans smaller than the target share it. The arguments are those of `register`.

    Raises:
        InputError: Bad input, as `register` does.
    """
    options = Options(
        method, voxel_size, max_correspondence_distance, with_scaling, remove_non_finite, num_threads, device, seed
    )
    return Prepared(options.read(target, "target", target_viewpoint), options)


@dataclass(frozen=True)
class Options:
    """What `register` is told beside the clouds. Raises InputError for what it cannot be told."""

    method: str = "auto"
    voxel_size: float | None = None
    max_correspondence_distance: float | None = None
    with_scaling: bool = False
    remove_non_finite: bool = False
    num_threads: int | None = None
    device: str | torch.device | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError("method", repr(self.method), "one of " + ", ".join(map(repr, METHODS)))
        if self.with_scaling and self.method not in ("auto", "global", "point_to_point"):
            raise InputError("method", f"{self.method!r} with with_scaling", "'auto', 'global' or 'point_to_point'")
        for name in ("voxel_size", "max_correspondence_distance"):
            value = getattr(self, name)
            number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value < math.inf):
                raise InputError(name, repr(value), "a positive finite length in the points' unit, or None")
        threads, seed = self.num_threads, self.seed
        counted = isinstance(threads, numbers.Integral) and not isinstance(threads, bool) and threads >= 1
        if threads is not None and not counted:
            raise InputError("num_threads", repr(threads), "a positive integer, or None for all cores")
        if not isinstance(seed, numbers.Integral) or isinstance(seed, bool) or seed < 0:
            raise InputError("seed", repr(seed), "an integer, 0 or above")
        if self.device is not None and str(self.device) != "cpu":
            raise InputError("device", repr(self.device), "'cpu' or None: only dlc_reg.ops has CUDA kernels")

    def read(self, cloud: Any, name: str, viewpoint: ArrayLike | None) -> PointCloud:
        read = PointCloud.from_any(
            cloud, name=name, viewpoint=viewpoint, remove_non_finite=self.remove_non_finite, seed=self.seed
        )
        objective = OBJECTIVES.get(self.method, SEARCHED)
        if "colors" in objective.needs_of(name):
            objective.require("colors", name, read)
        return read


class Prepared:
    """A target made ready by `prepare`. Threads may register onto one at once; it pickles as its points and options.

    Attributes:
        target: The `PointCloud`.
        options: How it registers.
    """

    def __init__(self, target: PointCloud, options: Options) -> None:
        self.target, self.options = target, options
        objective = OBJECTIVES.get(options.method, SEARCHED)
        self._levels = Levels(target, objective.needs_of("target"), options.num_threads)
        # a partial of the cloud, not of self: a cycle would keep large clouds until the garbage collector comes round
        self._thinned = lru_cache(THINNED_KEPT)(partial(Thinned.prepare, target, num_threads=options.num_threads))

    def __reduce__(self) -> tuple[Any, ...]:
        return Prepared, (self.target, self.options)

    def __repr__(self) -> str:
        return f"Prepared({self.target!r}, {self.options!r})"

    @cached_property
    def _working_voxel_size(self) -> float:
        return working_voxel_size(self.target)

    def register(
        self,
        source: Any,
        *,
        init: ArrayLike | None = None,
        source_viewpoint: ArrayLike | None = None,
        progress: bool = False,
        callback: Callback | None = None,
    ) -> RegistrationResult:
        """What `dlc_reg.register` finds for `source` and this target; arguments and errors are described there."""
        with Stages(progress) as stages:
            return self._register(source, init, source_viewpoint, callback, stages)

    def _register(
        self,
        source: Any,
        init: ArrayLike | None,
        source_viewpoint: ArrayLike | None,
        callback: Callback | None,
        stages: Stages,
    ) -> RegistrationResult:
        options, fixed = self.options, self.target
        if callback is not None and not callable(callback):
            raise InputError("callback", repr(callback), "a function of the iteration's record, or None")
        with stages("read"):
            moving = options.read(source, "source", source_viewpoint)
            start = None if init is None else check_rigid(init, "init", with_scaling=options.with_scaling)
            if not options.with_scaling:
                check_pair(moving, fixed)
        task = _Task(moving, self, start, callback)
        result = _register_similar(task, stages) if options.with_scaling else _register_rigid(task, stages)
        result.settings |= {
            "method": options.method,
            "with_scaling": options.with_scaling,
            "source_points": len(moving),
            "target_points": len(fixed),
            "source_dropped": moving.dropped,
            "target_dropped": fixed.dropped,
            "source_viewpoint": None if moving.viewpoint is None else moving.viewpoint.tolist(),
            "target_viewpoint": None if fixed.viewpoint is None else fixed.viewpoint.tolist(),
            "num_threads": options.num_threads,
            "seed": options.seed,
        }
        result.correspondence_set = as_given(result.correspondence_set, moving, fixed)
        result.clouds = (moving, fixed)
        result.timings = stages.seconds
        return result


@dataclass(frozen=True)
class _Task:
    source: PointCloud
    prepared: Prepared
    start: NDArray[np.float64] | None
    callback: Callback | None


def _register_rigid(task: _Task, stages: Stages) -> RegistrationResult:
    source, prepared = task.source, task.prepared
    target, options = prepared.target, prepared.options
    refining = OBJECTIVES.get(options.method)
    with stages("prepare"):
        lengths = Lengths.derive(
            source,
            target,
            working=max(working_voxel_size(source), prepared._working_voxel_size),
            voxel_size=options.voxel_size,
            distance=options.max_correspondence_distance,
        )
        voxel, oriented = lengths.voxel_size, source.viewpoint is not None and target.viewpoint is not None
        thinned = Thinned.prepare(source, voxel, oriented=oriented, num_threads=options.num_threads)
        search = GlobalSearch.between(
            thinned,
            prepared._thinned(voxel, oriented=oriented),
            voxel,
            oriented=oriented,
            num_threads=options.num_threads,
        )
    local = localize(np.eye(4) if task.start is None else task.start, source, target)
    start = torch.from_numpy(local)
    starts = [] if options.method in ("global", "learned") else [start]
    if options.method in ("auto", "learned"):
        with stages("learn"):
            starts.append(estimate(shipped(), search.source.coarse.points, search.target.coarse.points, start))
    with stages("search"):
        candidates = search.candidates(torch.stack(starts) if starts else None)
        if options.method == "learned":
            pose = search.refine(starts[0][None])[0]
        elif refining is None:
            pose = _choose(search, candidates, start if task.start is not None and options.method == "auto" else None)
    with stages("refine"):
        coarsest = lengths.voxel_size / 2 if refining is None else 2 * lengths.voxel_size
        sizes, distances = lengths.levels(coarsest)
        result = coarse_to_fine(
            source,
            prepared._levels,
            refining or SEARCHED,
            globalize((pose if refining is None else start).numpy(), source, target),
            voxel_sizes=sizes,
            max_distances=distances,
            callback=task.callback,
            num_threads=options.num_threads,
        )
    with stages("verify"):
        final = torch.from_numpy(localize(result.transformation, source, target))
        evidence = verification.gather(search, final, candidates, target.origin)
        held = options.method == "colored" and not result.settings["free_motions"]
        if evidence.free_motions and not held:
            result.covariance = None
            result.settings["free_motions"] = [motion.text for motion in evidence.free_motions]
            result.settings["free_twists"] = [motion.about(target.origin).tolist() for motion in evidence.free_motions]
        judged = verification.decide(evidence, result, search.oriented, held_by_colors=held)
        result.verdict, result.verdict_reasons = judged
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


def _register_similar(task: _Task, stages: Stages) -> RegistrationResult:
    """A rigid search at each of a few scales about the ratio of the clouds' sizes; then the scale is refined too."""
    source, target, options = task.source, task.prepared.target, task.prepared.options
    if task.start is not None:
        scales = [float(np.cbrt(np.linalg.det(task.start[:3, :3])))]
    else:
        scales = [radius(target) / radius(source) * factor for factor in SCALE_FACTORS]
    best: tuple[RegistrationResult, float] | None = None
    for scale in scales:
        start = None if task.start is None else task.start @ np.diag([1 / scale] * 3 + [1.0])
        result = _register_rigid(replace(task, source=scaled(source, scale), start=start), stages)
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
            num_threads=options.num_threads,
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
