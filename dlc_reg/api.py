"""`register`: two clouds in, a transformation and a verdict out; `prepare`: the target's part of it once for many."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from dlc_reg._register_options import METHODS, Options
from dlc_reg._register_parts import WHOLE_CLOUD, Lengths, Stages, as_given, choose, radius, scaled, searched
from dlc_reg._register_verdict import verify
from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud, check_pair, globalize, localize
from dlc_reg.iterate import Status
from dlc_reg.manifold import check_rigid
from dlc_reg.registration import verification
from dlc_reg.registration.budget import Budget
from dlc_reg.registration.constraint import Constraint, constrained
from dlc_reg.registration.global_search import Candidates, GlobalSearch, Thinned, working_voxel_size
from dlc_reg.registration.icp import Callback, Levels, coarse_to_fine
from dlc_reg.registration.learned.apply import estimate, shipped
from dlc_reg.registration.objectives import PointToPoint
from dlc_reg.registration.result import RegistrationResult, Verdict

__all__ = ["METHODS", "Options", "Prepared", "RegistrationResult", "Verdict", "prepare", "register"]

THINNED_KEPT = 4  # voxel sizes for which a target stays thinned
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
    dof: str = "rigid",
    source_viewpoint: ArrayLike | None = None,
    target_viewpoint: ArrayLike | None = None,
    source_gravity: ArrayLike | None = None,
    target_gravity: ArrayLike | None = None,
    budget: float | None = None,
    remove_non_finite: bool = False,
    num_threads: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: bool = False,
    callback: Callback | None = None,
) -> RegistrationResult:
    """Finds the transformation that maps `source` onto `target`, and says whether it can be trusted.

    Args:
        source, target: A path (PLY, PCD, XYZ, PTS, NPY, NPZ, STL, OBJ, OFF, GLB, LAS, LAZ, E57), an array or tensor
            (N, 3), an Open3D cloud (legacy or tensor), a trimesh mesh (sampled), or a `PointCloud`. Any unit, the same
            for both (unless `with_scaling`).
        init: A start (4, 4), T_target_source. None: none is known.
        method: "auto" or "global" search from any pose, further the less certain the best is ("auto" also tries `init`,
            or the identity without one, keeps the basin of `init` unless another pose is clearly better, and tries what
            the learned model finds if no pose is certain before); "learned" takes the learned model's pose; an
            objective only refines from `init`, or from the identity: "point_to_point", "point_to_plane", "symmetric",
            "generalized", "colored" (for clouds that have colours), or your own in
            `registration.objectives.OBJECTIVES`.
        voxel_size: The working resolution, in the points' unit. None: from the data, see `settings`.
        max_correspondence_distance: Of the last refinement and of the evidence (fitness, inlier RMSE), in the points'
            unit; a refining method uses it throughout. None: from the data.
        with_scaling: Find a common scale too; the transformation is then a similarity.
        dof: "rigid"; "yaw+translation", turns about the vertical alone: z in both clouds, or the gravities; or
            "translation", no turn. It holds in the search, in every step and in the answer, to rounding.
        source_viewpoint, target_viewpoint: Where the sensor stood, (3,) in that cloud's own frame. With both known the
            answer is much more reliable, with a wrong one it is ruined: leave None unless sure.
        source_gravity, target_gravity: Which way is down, (3,) in that cloud's own frame, of any length; both or none.
            With "yaw+translation" the answer turns the one exactly to the other; otherwise they are a prior: poses that
            turn it more than 10 degrees away are not considered.
        budget: Seconds. When they are over, what is left of the search and of the refinement is skipped, the best pose
            so far is verified and returned, and `settings["budget_skipped"]` and the verdict's reasons name what was
            skipped. Reading, thinning and verifying are never skipped. A budget that is not reached changes no bit;
            what one that is reached leaves out depends on the machine.
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
        method,
        voxel_size,
        max_correspondence_distance,
        with_scaling,
        remove_non_finite,
        num_threads,
        device,
        seed,
        dof,
        target_gravity,
        budget,
    )
    allowed = Budget(budget)
    with Stages(progress) as stages:
        with stages("read"):
            prepared = Prepared(options.read(target, "target", target_viewpoint), options)
        return prepared._register(source, init, source_viewpoint, source_gravity, callback, stages, allowed)


def prepare(
    target: Any,
    *,
    method: str = "auto",
    voxel_size: float | None = None,
    max_correspondence_distance: float | None = None,
    with_scaling: bool = False,
    dof: str = "rigid",
    target_viewpoint: ArrayLike | None = None,
    target_gravity: ArrayLike | None = None,
    budget: float | None = None,
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
        method,
        voxel_size,
        max_correspondence_distance,
        with_scaling,
        remove_non_finite,
        num_threads,
        device,
        seed,
        dof,
        target_gravity,
        budget,
    )
    return Prepared(options.read(target, "target", target_viewpoint), options)


class Prepared:
    """A target made ready by `prepare`. Threads may register onto one at once; it pickles as its points and options.

    Attributes:
        target: The `PointCloud`.
        options: How it registers.
    """

    def __init__(self, target: PointCloud, options: Options) -> None:
        self.target, self.options = target, options
        self._levels = Levels(target, options.objective.needs_of("target"), options.num_threads)
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
        source_gravity: ArrayLike | None = None,
        progress: bool = False,
        callback: Callback | None = None,
    ) -> RegistrationResult:
        """What `dlc_reg.register` finds for `source` and this target; arguments and errors are described there."""
        budget = Budget(self.options.budget)
        with Stages(progress) as stages:
            return self._register(source, init, source_viewpoint, source_gravity, callback, stages, budget)

    def _register(
        self,
        source: Any,
        init: ArrayLike | None,
        source_viewpoint: ArrayLike | None,
        source_gravity: ArrayLike | None,
        callback: Callback | None,
        stages: Stages,
        budget: Budget,
    ) -> RegistrationResult:
        options, fixed = self.options, self.target
        if callback is not None and not callable(callback):
            raise InputError("callback", repr(callback), "a function of the iteration's record, or None")
        constraint = constrained(options.dof, source_gravity, options.target_gravity)
        with stages("read"):
            moving = options.read(source, "source", source_viewpoint)
            start = None if init is None else check_rigid(init, "init", with_scaling=options.with_scaling)
            if start is not None:
                constraint.check(start, "init")
            if not options.with_scaling:
                check_pair(moving, fixed)
        task = _Task(moving, self, start, callback, constraint, budget)
        result = _register_similar(task, stages) if options.with_scaling else _register_rigid(task, stages)
        judged = result.verdict or Verdict.FAILED, result.verdict_reasons
        result.verdict, result.verdict_reasons = verification.qualify(judged, constraint, result.transformation, budget)
        result.settings |= {
            "method": options.method,
            "with_scaling": options.with_scaling,
            "dof": options.dof,
            "source_gravity": constraint.down and list(constraint.down[0]),
            "target_gravity": constraint.down and list(constraint.down[1]),
            "budget": options.budget,
            "budget_skipped": budget.skipped,
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
    constraint: Constraint
    budget: Budget


def _register_rigid(task: _Task, stages: Stages) -> RegistrationResult:
    source, prepared = task.source, task.prepared
    target, options = prepared.target, prepared.options
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
            quick=True,
            num_threads=options.num_threads,
            constraint=task.constraint,
        )
    local = localize(np.eye(4) if task.start is None else task.start, source, target)
    start = task.constraint.project(torch.from_numpy(local))
    if options.searches:
        search, candidates, pose = _found(task, search, start, stages)
        result = _refine(task, lengths, pose, stages)
    else:  # the answer before its evidence: a budget may not suffice for both
        result = _refine(task, lengths, start, stages)
        search, candidates = searched(search, [start], None, task.budget, stages)
    with stages("verify"):
        colored = "colors" in options.objective.needs_of("target")
        verify(result, search, candidates, source, target, colored=colored)
    result.settings |= {
        "voxel_size": lengths.voxel_size,
        "spacing": lengths.spacing,
        "feature_radius": 5 * lengths.voxel_size,
        "feature_matches": len(search.p),
        "hypotheses": len(candidates),
        "viewpoints_used": search.oriented,
    }
    return result


def _found(
    task: _Task, search: GlobalSearch, start: torch.Tensor, stages: Stages
) -> tuple[GlobalSearch, Candidates, torch.Tensor]:
    """The search, the candidates, and the pose to refine: the best of them, or what the method says."""
    method, budget = task.prepared.options.method, task.budget

    def learn() -> torch.Tensor:
        return estimate(shipped(), search.source.coarse.points, search.target.coarse.points, start)

    if method == "learned":
        if budget.skips("the learned start"):
            return *searched(search, [], None, budget, stages), start
        with stages("learn"):
            learned = task.constraint.project(learn(), search.source.center)
        search, candidates = searched(search, [learned], None, budget, stages)
        return search, candidates, search.refine(learned[None])[0]
    auto = method == "auto"
    search, candidates = searched(search, [start] if auto else [], learn if auto else None, budget, stages)
    if budget.skipped and not len(candidates):
        return search, candidates, start
    return search, candidates, choose(search, candidates, start if task.start is not None and auto else None)


def _refine(task: _Task, lengths: Lengths, pose: torch.Tensor, stages: Stages) -> RegistrationResult:
    options = task.prepared.options
    with stages("refine"):
        sizes, distances = lengths.levels(lengths.voxel_size / 2 if options.searches else 2 * lengths.voxel_size)
        return coarse_to_fine(
            task.source,
            task.prepared._levels,
            options.objective,
            globalize(pose.numpy(), task.source, task.prepared.target),
            voxel_sizes=sizes,
            max_distances=distances,
            callback=task.callback,
            constraint=task.constraint,
            budget=task.budget,
            num_threads=options.num_threads,
        )


def _agreement(result: RegistrationResult) -> float:
    """What the search's score is made of. Not the trust: a symmetric shape has little of it at its own scale, too."""
    evidence = result.settings["evidence"]
    return float(evidence["overlap"] * evidence["matches"])


def _register_similar(task: _Task, stages: Stages) -> RegistrationResult:
    """A rigid search at each of a few scales about the ratio of the clouds' sizes; then the scale is refined too."""
    source, target, options = task.source, task.prepared.target, task.prepared.options
    if task.start is not None:
        scales = [float(np.cbrt(np.linalg.det(task.start[:3, :3])))]
    else:
        scales = [radius(target) / radius(source) * factor for factor in SCALE_FACTORS]
    best: tuple[RegistrationResult, float] | None = None
    for scale in scales:
        if best is not None and task.budget.skips(f"a scale near {scale:.3g}", search=True):
            break
        start = None if task.start is None else task.start @ np.diag([1 / scale] * 3 + [1.0])
        result = _register_rigid(replace(task, source=scaled(source, scale), start=start), stages)
        if best is None or _agreement(result) > _agreement(best[0]):
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
            constraint=task.constraint,
            budget=task.budget,
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
    similar.equivalent_poses = result.equivalent_poses @ np.diag([scale] * 3 + [1.0])
    if similar.status is Status.NO_CORRESPONDENCES:
        similar.verdict, similar.verdict_reasons = Verdict.FAILED, [similar.status.value]
    return similar
