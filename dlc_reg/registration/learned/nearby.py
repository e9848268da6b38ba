"""Poses within some angle of a start that bring two objects together, cut ones too: many, refined, distinct."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlc_reg import ops
from dlc_reg.geometry import PointCloud, globalize, localize
from dlc_reg.registration.global_search import GlobalSearch, super_fibonacci, working_voxel_size

MATCHES = 3  # nearest features of a point, which vote for translations
CELL, REACH, MODES = 0.12, 1.2, 3  # of the vote; clouds are about two wide
COARSE = math.radians(8), 3.0  # poses nearer than this, and so many voxels, are one before the refinement
FINE = math.radians(3), 0.7  # and after it


@torch.no_grad()
def poses_near(
    source: Tensor, target: Tensor, start: Tensor, *, max_turn_deg: float, turns: int, refined: int
) -> Tensor:
    """(K, 4, 4) float64, K >= 1, of points (N, 3) and (M, 3) that turn by at most `max_turn_deg` from `start` (4, 4).

    Of `turns` rotations spread over all of SO(3), each takes the translations that features vote for, and that from
    centre to centre. With the poses of compatible matches, the best `refined` by overlap and matches go through
    point-to-plane ICP. The best of them comes first; `start` itself last.
    """
    moving, fixed = (PointCloud.from_any(points.double().numpy()) for points in (source, target))
    search = GlobalSearch.prepare(moving, fixed, working_voxel_size(moving, fixed), num_threads=1)
    local = torch.from_numpy(localize(start.double().numpy(), moving, fixed))
    limit = math.radians(max_turn_deg)
    proposed, _ = ops.propose_poses(search.p, search.q, 2 * search.voxel, num_threads=1)
    poses = torch.cat([proposed, _voted(search, local, limit, turns)])
    poses = poses[angles(poses, local) <= limit]
    if len(poses):
        judged = search.judge(poses, search.source.coarse, search.target.coarse, 2 * search.voxel)
        chosen = _distinct(judged.poses, search, COARSE, refined)
        judged = search.judge(search.refine(judged.poses[chosen]))
        poses = judged.poses[_distinct(judged.poses, search, FINE, refined)]
        poses = poses[angles(poses, local) <= limit]
    found = [torch.from_numpy(globalize(pose.numpy(), moving, fixed)) for pose in poses]
    return torch.stack([*found, start.double()])


def angles(poses: Tensor, start: Tensor) -> Tensor:
    """Angle [rad] (K,) between the rotations of poses (K, 4, 4) and that of `start` (4, 4)."""
    trace = (poses[:, :3, :3] * start[:3, :3]).sum((-2, -1))
    return ((trace - 1) / 2).clamp(-1, 1).acos()


def _voted(search: GlobalSearch, start: Tensor, limit: float, turns: int) -> Tensor:
    """Poses (K, 4, 4) of the rotations within `limit` [rad] of `start`."""
    poses = torch.eye(4, dtype=torch.float64).repeat(turns, 1, 1)
    poses[:, :3, :3] = super_fibonacci(turns)
    rotations = poses[angles(poses, start) <= limit][:, :3, :3]
    rows, columns = _matches(search.source.description.fpfh, search.target.description.fpfh)
    p = search.source.coarse.points.double()[rows] - search.source.center
    q = search.target.coarse.points.double()[columns] - search.target.center
    shifts = _modes(rotations.float(), p.float(), q.float()).double()
    shifts = torch.cat([shifts, shifts.new_zeros(len(rotations), 1, 3)], 1)
    out = torch.eye(4, dtype=torch.float64).repeat(len(rotations), MODES + 1, 1, 1)
    out[..., :3, :3] = rotations[:, None]
    out[..., :3, 3] = shifts + search.target.center - (rotations @ search.source.center)[:, None]
    return out.flatten(0, 1)


def _matches(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a (N, C) and b (M, C) of which either is among the other's nearest."""
    distances = torch.cdist(a, b)
    near = torch.zeros(distances.shape, dtype=torch.bool)
    for side in (0, 1):
        count = min(MATCHES, distances.shape[side])
        near.scatter_(side, distances.topk(count, side, largest=False).indices, True)
    rows, columns = near.nonzero().T
    return rows, columns


def _modes(rotations: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """(K, MODES, 3): where q - R p, of matches (M, 3), lies most densely, for each of rotations (K, 3, 3)."""
    shifts = q - p @ rotations.mT
    count = math.ceil(2 * REACH / CELL) + 2  # a margin of one cell all round
    cells = ((shifts + REACH) / CELL).floor().long() + 1
    inside = ((cells > 0) & (cells < count - 1)).all(-1)
    flat = ((cells[..., 0] * count + cells[..., 1]) * count + cells[..., 2]).where(inside, 0)
    votes = torch.zeros(len(rotations), count**3).scatter_add_(1, flat, inside.float())
    near = torch.tensor([[x, y, z] for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)])
    around = (near * torch.tensor([count**2, count, 1])).sum(1)
    reach = int(around.max())
    for stride in (count**2, count, 1):  # half of each neighbour's along each axis
        smooth = votes.clone()
        smooth[:, stride:] += 0.5 * votes[:, :-stride]
        smooth[:, :-stride] += 0.5 * votes[:, stride:]
        votes = smooth
    found = []
    for _ in range(MODES):
        best = votes.argmax(1).clamp(reach, count**3 - reach - 1)
        votes.scatter_(1, best[:, None] + around, 0.0)
        found.append(torch.stack([best // count**2, best // count % count, best % count], -1) - 1)
    modes: Tensor = (torch.stack(found, 1) + 0.5) * CELL - REACH
    return modes


def _distinct(poses: Tensor, search: GlobalSearch, apart: tuple[float, float], limit: int) -> list[int]:
    """Rows of at most `limit` poses, none close to one before it."""
    cosine = (torch.einsum("aij,bij->ab", poses[:, :3, :3], poses[:, :3, :3]) - 1) / 2
    centers = poses[:, :3, :3] @ search.source.center + poses[:, :3, 3]
    near = cosine > math.cos(apart[0])
    near &= torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist") < apart[1] * search.voxel
    blocked, taken = torch.zeros(len(poses), dtype=torch.bool), []
    for row in range(len(poses)):
        if not blocked[row]:
            taken.append(row)
            blocked |= near[row]
            if len(taken) == limit:
                break
    return taken
