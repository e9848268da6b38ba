"""Classical, deterministic global start: features, matches, poses from compatible matches, the distinct best refined.

Making hypotheses is easy and choosing among them is what pays, so the choice rests on overlap, matches and, where the
sensors' viewpoints are known, free space together. All poses here map local source to local target coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from dlc_reg import ops
from dlc_reg.geometry import PointCloud, turned_to
from dlc_reg.registration.budget import Budget
from dlc_reg.registration.constraint import FREE, Constraint
from dlc_reg.registration.description import Description
from dlc_reg.registration.steps import solve_least

WORKING_POINTS = 4500  # the working voxel size leaves about so many points in the larger cloud
MAX_SEEDS = 1000
DISTINCT_POSES = 40
DISTINCT_ANGLE = math.radians(10)
DISTINCT_VOXELS = 3.0
NORMAL_COSINE = 0.8
SHIFTS = 200  # matches that each propose a pose where nothing turns
TURNS = 600  # rotations about the centres: they find whole objects with too few points for features
UPRIGHT_TURNS = 60  # the same where the vertical is known: 6 degrees apart
HELD_COSINE, HELD_FEWEST = 0.5, 6  # as ops.refine_poses
AT_ONCE = 8  # candidates that are refined between two looks at the clock
BIN_ANGLE = 0.03  # [rad] of a depth map, unless the points lie further apart than that


@dataclass(frozen=True)
class Thinned:
    """A cloud thinned to the working voxel size and to half of it; the description is of the coarse points."""

    coarse: ops.Surface
    fine: ops.Surface
    description: Description

    @property
    def index(self) -> ops.SearchIndex:
        """Of the coarse points."""
        return self.description.index

    @cached_property
    def center(self) -> Tensor:
        """(3,) float64: the mean of the coarse points."""
        return self.coarse.points.double().mean(0)

    @cached_property
    def fine_index(self) -> ops.SearchIndex:
        """Of the fine points; only constrained refinement needs it."""
        return ops.SearchIndex(self.fine.points)

    @staticmethod
    def prepare(cloud: PointCloud, voxel: float, *, oriented: bool, num_threads: int | None = None) -> Thinned:
        """`oriented` turns the normals to the cloud's viewpoint, and remembers what was seen from there."""
        eye = cloud.local_viewpoint if oriented else None
        surfaces, indices = [], []
        for size in (voxel, voxel / 2):
            points = ops.voxel_downsample(cloud.points, size, num_threads=num_threads)
            indices.append(ops.SearchIndex(points, num_threads=num_threads))
            normals = ops.estimate_normals(indices[-1], k=_neighbours(len(points)), num_threads=num_threads)
            bin_angle = BIN_ANGLE
            if eye is not None:
                normals = turned_to(eye, points, normals)
                depth = float((points - eye).norm(dim=1).median())
                bin_angle = max(bin_angle, 1.5 * voxel / max(depth, 5 * voxel))
            surfaces.append(ops.Surface(points, normals, cell=size, reach=2.5 * size, eye=eye, bin_angle=bin_angle))
        coarse, fine = surfaces
        description = Description(indices[0], coarse.normals, voxel, oriented, num_threads)
        return Thinned(coarse, fine, description)


@dataclass(frozen=True)
class Candidates:
    """Poses (K, 4, 4) float64, best first, with the evidence for each: every other field is (K,) float64."""

    poses: Tensor
    scores: Tensor
    source_overlap: Tensor  # share of the source's points that have the target's surface near, and the reverse
    target_overlap: Tensor
    closeness: Tensor  # mean over the overlap of 1 - (distance / limit)^2
    violations: Tensor  # share of points that float before a surface the other sensor saw; -1 where that is unknown
    matches: Tensor  # feature matches that the pose explains

    @property
    def overlap(self) -> Tensor:
        """(K,): the mean of both clouds' overlaps."""
        return 0.5 * (self.source_overlap + self.target_overlap)

    def __len__(self) -> int:
        return len(self.poses)

    def __getitem__(self, rows: Tensor | slice | list[int]) -> Candidates:
        return Candidates(*(getattr(self, f.name)[rows] for f in fields(self)))

    def without_near(self, pose: Tensor, center: Tensor, angle: float, shift: float) -> Candidates:
        """Those that differ from `pose` (4, 4) by more than `angle` [rad] or move `center` by more than `shift`."""
        return self[~_near(self.poses, pose[None], center, angle, shift)[:, 0]]


@dataclass(frozen=True)
class GlobalSearch:
    """Two thinned clouds and their mutual feature matches (rows of `p`, `q`, (M, 3) float32, belong together).

    Poses are those that `constraint` permits, or that its prior finds likely.
    """

    source: Thinned
    target: Thinned
    p: Tensor
    q: Tensor
    quick: bool = False  # matches of the histograms alone
    num_threads: int | None = None
    constraint: Constraint = FREE

    @property
    def voxel(self) -> float:
        return self.source.description.voxel

    @property
    def oriented(self) -> bool:
        return self.source.description.oriented

    @staticmethod
    def prepare(
        source: PointCloud, target: PointCloud, voxel: float, *, quick: bool = False, num_threads: int | None = None
    ) -> GlobalSearch:
        """Viewpoints are used where both are known: signs of normals compare only then."""
        oriented = source.viewpoint is not None and target.viewpoint is not None
        a, b = (Thinned.prepare(c, voxel, oriented=oriented, num_threads=num_threads) for c in (source, target))
        return GlobalSearch.between(a, b, quick=quick, num_threads=num_threads)

    @staticmethod
    def between(
        a: Thinned, b: Thinned, *, quick: bool = False, num_threads: int | None = None, constraint: Constraint = FREE
    ) -> GlobalSearch:
        """Between a source `a` and a target `b`, thinned alike; `quick`: by the histograms alone, at half the cost."""
        pairs = a.description.matches(b.description, quick=quick, num_threads=num_threads)
        p, q = a.coarse.points[pairs[:, 0]], b.coarse.points[pairs[:, 1]]
        return GlobalSearch(a, b, p, q, quick, num_threads, constraint)

    def widened(self) -> GlobalSearch:
        """The same with the matches of the signatures too."""
        return GlobalSearch.between(self.source, self.target, num_threads=self.num_threads, constraint=self.constraint)

    def candidates(self, starts: Tensor | None = None, budget: Budget | None = None) -> Candidates:
        """The distinct best of the poses that the matches propose, of all turns that bring the centres together, and of
        `starts` (S, 4, 4); refined, best first. When `budget` is spent, what is left is left out."""
        budget = budget or Budget()
        sources = [] if starts is None else [starts]
        if not budget.skips("the search's poses from feature matches and turns", search=True):
            proposed, _ = ops.propose_poses(
                self.p, self.q, self.voxel, max_seeds=MAX_SEEDS, num_threads=self.num_threads
            )
            sources = [proposed, self._turns(), *sources]
        poses = torch.cat(sources) if sources else torch.empty(0, 4, 4, dtype=torch.float64)
        judged = self.judge(self._admitted(poses), self.source.coarse, self.target.coarse, 2 * self.voxel)
        chosen = _distinct(judged, self.source.center, DISTINCT_VOXELS * self.voxel)
        return self.judge(self._admitted(self._refined_in_time(judged.poses[chosen], budget)))

    def _admitted(self, poses: Tensor) -> Tensor:
        return self.constraint.admit(poses, self.source.center)

    def _turns(self) -> Tensor:
        rotations = super_fibonacci(TURNS) if self.constraint.free else self.constraint.turns(UPRIGHT_TURNS)
        poses = torch.eye(4, dtype=torch.float64).repeat(len(rotations), 1, 1)
        poses[:, :3, :3] = rotations
        poses[:, :3, 3] = self.target.center - poses[:, :3, :3] @ self.source.center
        if self.constraint.dof != "translation":
            return poses
        # Most proposals turn, and are dropped: without rivals from elsewhere any pose would look like the only one.
        shifts = (self.q.double() - self.p.double())[:: -(-len(self.p) // SHIFTS) or 1]
        moved = torch.eye(4, dtype=torch.float64).repeat(len(shifts), 1, 1)
        moved[:, :3, 3] = shifts
        return torch.cat([poses, moved])

    def _refined_in_time(self, poses: Tensor, budget: Budget) -> Tensor:
        if budget.seconds is None:
            return self.refine(poses)
        if not len(poses):
            return poses
        refined: list[Tensor] = []
        for rows in torch.split(poses, AT_ONCE):
            left = len(poses) - sum(map(len, refined))
            if budget.skips(f"{left} of the search's {len(poses)} candidates", search=True):
                break
            refined.append(self.refine(rows))
        return torch.cat(refined) if refined else poses[:0]

    def refine(self, poses: Tensor) -> Tensor:
        """Point-to-plane, first on the coarse and then on the fine points."""
        v, source, target = self.voxel, self.source, self.target
        if self.constraint.held:
            rough = partial(self._held, source.coarse, target.coarse, target.index, 1000, 10, 2.5 * v, 1.5 * v)
            smooth = partial(self._held, source.fine, target.fine, target.fine_index, 2000, 4, 1.2 * v, 0.8 * v)
            return torch.stack([smooth(rough(pose)) for pose in poses]) if len(poses) else poses
        refine = partial(ops.refine_poses, oriented=self.oriented, num_threads=self.num_threads)
        poses = refine(
            source.coarse, target.coarse, poses, iterations=10, first_distance=2.5 * v, last_distance=1.5 * v
        )
        return refine(
            source.fine, target.fine, poses, iterations=4, first_distance=1.2 * v, last_distance=0.8 * v, samples=2000
        )

    def _held(
        self,
        source: ops.Surface,
        target: ops.Surface,
        index: ops.SearchIndex,
        samples: int,
        iterations: int,
        first: float,
        last: float,
        pose: Tensor,
    ) -> Tensor:
        """What `ops.refine_poses` does, for one pose (4, 4) and in the permitted motions alone."""
        step = -(-len(source) // samples)
        points, normals = source.points[::step].contiguous(), source.normals[::step].double()
        start = pose
        for distance in np.geomspace(first, last, iterations):
            moved = points.double() @ pose[:3, :3].T + pose[:3, 3]
            nearest = index.knn(moved.float(), max_distance=float(distance), num_threads=self.num_threads)[1][:, 0]
            cosine = ((normals @ pose[:3, :3].T) * target.normals[nearest.clamp(min=0)]).sum(1)
            nearest[(cosine if self.oriented else cosine.abs()) < HELD_COSINE] = -1
            if int((nearest >= 0).sum()) < HELD_FEWEST:
                return start
            sums = ops.linearize(
                "point_to_plane",
                points,
                index,
                pose,
                max_distance=None,
                correspondences=nearest,
                target_normals=target.normals,
                num_threads=self.num_threads,
            )
            xi = solve_least(sums.hessian.numpy(), -sums.gradient.numpy(), self.constraint.basis)
            pose = self.constraint.project(torch.from_numpy(self.constraint.motion(xi)) @ pose)
        return pose

    def judge(
        self,
        poses: Tensor,
        source: ops.Surface | None = None,
        target: ops.Surface | None = None,
        distance: float | None = None,
    ) -> Candidates:
        """Scores `poses` (K, 4, 4), best first: log overlap + log matches, or with viewpoints log overlap + half log
        matches - 1.5 log free-space violations.

        Overlap is within `distance` on `source` and `target`; by default within a voxel on the fine surfaces.
        """
        j = ops.judge_poses(
            source or self.source.fine,
            target or self.target.fine,
            poses,
            distance=distance or self.voxel,
            normal_cosine=NORMAL_COSINE,
            oriented=self.oriented,
            free_margin=2 * self.voxel,
            num_threads=self.num_threads,
        )
        moved = torch.einsum("kij,nj->kni", poses[:, :3, :3].float(), self.p) + poses[:, None, :3, 3].float()
        matches = ((moved - self.q).square().sum(-1) < (2 * self.voxel) ** 2).sum(1).double()
        overlap = 0.5 * (j.source_overlap + j.target_overlap)
        # Free space, where it can speak, is worth half of what the matches say: both tell a wrong wall from the right.
        scores = (overlap + 0.01).log() + (0.5 if self.oriented else 1.0) * (matches + 1).log()
        if self.oriented:
            scores = scores - 1.5 * (j.violations.clamp(min=0) + 0.02).log()
        every = Candidates(poses, scores, j.source_overlap, j.target_overlap, j.closeness, j.violations, matches)
        return every[scores.argsort(descending=True, stable=True)]


def super_fibonacci(count: int) -> Tensor:
    """Rotations (count, 3, 3) float64 spread evenly over SO(3): the spiral of Alexa, CVPR 2022."""
    s = torch.arange(count, dtype=torch.float64) + 0.5
    t = s / count
    alpha, beta = 2 * math.pi * s / math.sqrt(2), 2 * math.pi * s / 1.533751168755204288118041
    x, y = t.sqrt() * alpha.sin(), t.sqrt() * alpha.cos()
    z, w = (1 - t).sqrt() * beta.sin(), (1 - t).sqrt() * beta.cos()
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, 1).reshape(count, 3, 3)


def working_voxel_size(*clouds: PointCloud) -> float:
    """The voxel size that leaves about `WORKING_POINTS` in the largest cloud, and never less than the spacing."""
    return max(1.5 * max(c.spacing for c in clouds), *(voxel_size_for(c.points, WORKING_POINTS) for c in clouds))


def voxel_size_for(points: Tensor, count: int) -> float:
    """The voxel size that leaves about `count` of the points; 0 where there are no more."""
    if len(points) <= count:
        return 0.0
    sample = points[:: max(1, len(points) // 60_000)]
    extent = float((sample.amax(0) - sample.amin(0)).norm())
    low, high = extent * 1e-4, extent
    while low > 0 and high / low > 1.02:
        middle = math.sqrt(low * high)
        if len(ops.voxel_downsample(sample, middle)) > count:
            low = middle
        else:
            high = middle
    return high


def _neighbours(count: int) -> int:
    """How many make a normal: 20, and fewer where 20 would span much of a small cloud."""
    return min(20, max(12, count // 25))


def _near(a: Tensor, b: Tensor, center: Tensor, angle: float, shift: float) -> Tensor:
    """(A, B): whether poses a and b turn alike within `angle` and move `center` alike within `shift`."""
    cosine = (torch.einsum("aij,bij->ab", a[:, :3, :3], b[:, :3, :3]) - 1) / 2
    at_a, at_b = (t[:, :3, :3] @ center + t[:, :3, 3] for t in (a, b))
    return (cosine > math.cos(angle)) & (torch.cdist(at_a, at_b, compute_mode="donot_use_mm_for_euclid_dist") < shift)


def _distinct(candidates: Candidates, center: Tensor, shift: float) -> list[int]:
    """Rows of at most `DISTINCT_POSES` poses that differ, taken by score and by matches in turn."""
    near = _near(candidates.poses, candidates.poses, center, DISTINCT_ANGLE, shift)
    queues = [iter(range(len(candidates))), iter(candidates.matches.argsort(descending=True, stable=True).tolist())]
    blocked = torch.zeros(len(candidates), dtype=torch.bool)
    taken: list[int] = []
    while queues and len(taken) < DISTINCT_POSES:
        queue = queues.pop(0)
        pick = next((i for i in queue if not blocked[i]), None)
        if pick is None:
            continue
        taken.append(pick)
        blocked |= near[pick]
        queues.append(queue)
    return taken
