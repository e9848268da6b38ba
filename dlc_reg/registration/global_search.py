"""Classical, deterministic global start: features, matches, poses from compatible matches, the distinct best refined.

Making hypotheses is easy and choosing among them is what pays, so the choice rests on overlap, matches and, where the
sensors' viewpoints are known, free space together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dlc_reg import ops
from dlc_reg.geometry import PointCloud

WORKING_POINTS = 4500  # the working voxel size leaves about so many points in the larger cloud
MAX_MATCHES = 2000
SEEDS = 300
DISTINCT_POSES = 40


@dataclass(frozen=True)
class Prepared:
    """A cloud thinned to the working voxel size and to half of it, in its own local frame."""

    coarse: ops.Surface
    fine: ops.Surface
    features: Tensor  # (N, 33), of the coarse points
    oriented: bool
    center: Tensor  # (3,) float64, mean of the coarse points


@dataclass(frozen=True)
class Candidates:
    """Refined poses T_target_source in local frames, best first, with the evidence for each; every field is (K, ...)."""

    poses: Tensor  # (K, 4, 4) float64
    scores: Tensor
    source_overlap: Tensor
    target_overlap: Tensor
    matches: Tensor
    violations: Tensor
    closeness: Tensor

    def __len__(self) -> int:
        return len(self.poses)


def working_voxel_size(*clouds: PointCloud) -> float:
    """The voxel size that leaves about `WORKING_POINTS` in the largest cloud, and never less than the spacing."""
    spacing = max(c.spacing for c in clouds)
    return max(1.5 * spacing, *(_voxel_size_for(c.points, WORKING_POINTS) for c in clouds))


def _voxel_size_for(points: Tensor, count: int) -> float:
    if len(points) <= count:
        return 0.0
    sample = points[:: max(1, len(points) // 60_000)]
    extent = float((sample.amax(0) - sample.amin(0)).norm())
    low, high = extent * 1e-4, extent
    while high / low > 1.02:
        middle = math.sqrt(low * high)
        if len(ops.voxel_downsample(sample, middle)) > count:
            low = middle
        else:
            high = middle
    return high


def prepare(cloud: PointCloud, voxel: float, *, oriented: bool, num_threads: int | None = None) -> Prepared:
    """Thins, finds normals (turned to the viewpoint where `oriented`) and descriptors."""
    eye = None if not oriented or cloud.viewpoint is None else cloud.viewpoint - cloud.origin
    surfaces = []
    for size in (voxel, voxel / 2):
        points = ops.voxel_downsample(cloud.points, size, num_threads=num_threads)
        index = ops.SearchIndex(points, num_threads=num_threads)
        normals = ops.estimate_normals(points, k=20, num_threads=num_threads)
        if eye is not None:
            away = ((points - torch.as_tensor(eye, dtype=points.dtype)) * normals).sum(1) > 0
            normals = torch.where(away[:, None], -normals, normals)
        depth = (points - torch.as_tensor(eye if eye is not None else np.zeros(3), dtype=points.dtype)).norm(dim=1)
        bin_angle = max(0.03, 1.5 * voxel / max(float(depth.median()), voxel))
        surface = ops.Surface(points, normals, cell=size, reach=2.5 * size, eye=eye, bin_angle=min(bin_angle, 0.3))
        surfaces.append((surface, index))
    (coarse, index), (fine, _) = surfaces
    features = ops.fpfh(index, coarse.normals, 5 * voxel, oriented=oriented, num_threads=num_threads)
    return Prepared(coarse, fine, features, oriented, coarse.points.double().mean(0))


def search(
    source: Prepared, target: Prepared, voxel: float, *, starts: Tensor | None = None, num_threads: int | None = None
) -> Candidates:
    """Hypotheses from matches and from `starts` (S, 4, 4); the distinct best refined, judged and sorted."""
    pairs, squared = ops.mutual_matches(source.features, target.features, num_threads=num_threads)
    pairs = pairs[squared.argsort(stable=True)[:MAX_MATCHES]]
    p, q = source.coarse.points[pairs[:, 0]], target.coarse.points[pairs[:, 1]]
    poses, _ = ops.propose_poses(p, q, 2 * voxel, max_seeds=SEEDS, num_threads=num_threads)
    if starts is not None:
        poses = torch.cat([starts, poses])
    first = judge(source.coarse, target.coarse, poses, p, q, voxel, voxel, source.oriented, num_threads)
    chosen = distinct(first, source.center, 3 * voxel, DISTINCT_POSES)
    poses = first.poses[chosen]
    refined = ops.refine_poses(
        source.coarse, target.coarse, poses, iterations=10, first_distance=2.5 * voxel, last_distance=1.5 * voxel,
        oriented=source.oriented, num_threads=num_threads,
    )  # fmt: skip
    refined = ops.refine_poses(
        source.fine, target.fine, refined, iterations=4, first_distance=1.2 * voxel, last_distance=0.8 * voxel,
        oriented=source.oriented, samples=2000, num_threads=num_threads,
    )  # fmt: skip
    return judge(source.fine, target.fine, refined, p, q, voxel, voxel / 2, source.oriented, num_threads)


def judge(
    source: ops.Surface,
    target: ops.Surface,
    poses: Tensor,
    p: Tensor,
    q: Tensor,
    voxel: float,
    size: float,
    oriented: bool,
    num_threads: int | None = None,
) -> Candidates:
    """Scores poses by overlap at distance 2 `size`, consistent matches (p, q) and free space; best first."""
    j = ops.judge_poses(
        source, target, poses, distance=2 * size, normal_cosine=0.8, oriented=oriented,
        free_near=2 * voxel, free_far=float("inf"), num_threads=num_threads,
    )  # fmt: skip
    moved = torch.einsum("kij,nj->kni", poses[:, :3, :3].float(), p) + poses[:, None, :3, 3].float()
    matches = ((moved - q).square().sum(-1) < (2 * voxel) ** 2).sum(1).double()
    overlap = 0.5 * (j.source_overlap + j.target_overlap)
    scores = (overlap + 0.01).log() + 0.5 * (matches + 1).log()
    scores = scores - 1.5 * torch.where(j.violations < 0, 0.0, (j.violations.clamp(min=0) + 0.02).log())
    order = scores.argsort(descending=True, stable=True)
    return Candidates(
        poses[order], scores[order], j.source_overlap[order], j.target_overlap[order],
        matches[order], j.violations[order], j.closeness[order],
    )  # fmt: skip


def distinct(candidates: Candidates, center: Tensor, shift: float, count: int, angle: float = math.radians(10)) -> list[int]:
    """Indices of at most `count` poses that differ by `angle` [rad] or `shift`, taken by score and by matches in turn."""
    rotations, at = candidates.poses[:, :3, :3], candidates.poses[:, :3, :3] @ center + candidates.poses[:, :3, 3]
    cosine = (torch.einsum("aij,bij->ab", rotations, rotations) - 1) / 2
    near = (cosine > math.cos(angle)) & (torch.cdist(at, at) < shift)
    queues = [range(len(candidates)), candidates.matches.argsort(descending=True, stable=True).tolist()]
    taken: list[int] = []
    blocked = torch.zeros(len(candidates), dtype=torch.bool)
    iterators = [iter(queue) for queue in queues]
    turn = 0
    exhausted = 0
    while len(taken) < count and exhausted < len(iterators):
        pick = next((i for i in iterators[turn % 2] if not blocked[i]), None)
        turn += 1
        if pick is None:
            exhausted += 1
            continue
        taken.append(pick)
        blocked |= near[pick]
    return taken
