"""A small network that tells a right pose of two clouds from a wrong one by what each point then meets.

Evidence of a point under a pose: how near the other surface is, in three widths and along its normals; whether normals
and FPFH agree; how flat both are, how dense; and how deep the point lies in the other cloud's convex hull. The last
tells a contradiction from a cut: where a cloud was cut out by a plane, or is whole, its hull holds all that is there,
so a point deep inside must meet a surface, and one outside need not. Normals have no sign.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dlc_reg import ops
from dlc_reg.networks.neighbours import check_counts

EVIDENCE = 17  # numbers a point
NEIGHBOURS, NORMAL_NEIGHBOURS, FEATURE_RADIUS = 4, 16, 0.3
DIRECTIONS = 600  # in which a hull is measured: four degrees apart


class Described(NamedTuple):
    """One cloud (N, 3), about two wide, and what does not change while it moves; no gradient flows here."""

    points: Tensor  # (N, 3)
    tree: ops.SearchIndex
    normals: Tensor  # (N, 3), of any sign
    features: Tensor  # (N, 33), FPFH of absolute sum 3
    flatness: Tensor  # (N,): the least of the three variances by their sum, 0 to 1/3
    spacing: Tensor  # (N,): the distance to the fourth neighbour
    support: Tensor  # (DIRECTIONS,): how far the hull reaches in each direction
    depth: Tensor  # (N,): below the own hull


@torch.no_grad()
def describe(points: Tensor) -> Described:
    """Of one cloud (N, 3) float32, N >= 5, on the host."""
    index = ops.SearchIndex(points)
    near = min(NORMAL_NEIGHBOURS, len(points))
    normals = ops.estimate_normals(index, k=near)
    features = ops.fpfh(index, normals, FEATURE_RADIUS, oriented=False)
    features = 3 * features / features.sum(1, keepdim=True).clamp(min=1e-9)
    variances = torch.linalg.eigvalsh(ops.estimate_covariances(points, k=near).double())
    flatness = (variances[:, 0] / variances.sum(1).clamp(min=1e-12)).float()
    spacing = index.knn(points, min(NEIGHBOURS + 1, len(points)))[0][:, -1]
    support = (points @ directions().T).amax(0)
    return Described(points, index, normals, features, flatness, spacing, support, depth_in(points, support))


@functools.cache
def directions() -> Tensor:
    """(DIRECTIONS, 3) unit vectors, spread evenly: Fibonacci's spiral."""
    share = (torch.arange(DIRECTIONS) + 0.5) / DIRECTIONS
    z, turn = 1 - 2 * share, math.pi * (1 + 5**0.5) * torch.arange(DIRECTIONS)
    radius = (1 - z.square()).sqrt()
    return torch.stack([radius * turn.cos(), radius * turn.sin(), z], -1)


def depth_in(points: Tensor, support: Tensor) -> Tensor:
    """How deep points (..., 3) lie inside a hull (negative: how far outside), (...)."""
    return (support - points @ directions().T).amin(-1)


@torch.no_grad()
def evidence(moving: Described, fixed: Described, poses: Tensor, rows: Tensor) -> Tensor:
    """(K, n, EVIDENCE) of the rows (n,) of `moving`, moved by poses (K, 4, 4) onto `fixed`."""
    rotation = poses[:, :3, :3].float()
    points = moving.points[rows] @ rotation.mT + poses[:, None, :3, 3].float()
    normals = moving.normals[rows] @ rotation.mT
    distances, near = fixed.tree.knn(points.flatten(0, 1), min(NEIGHBOURS, len(fixed.points)))
    near, distances = (x.reshape(*points.shape[:2], -1) for x in (near.long(), distances))
    across = ((points[:, :, None] - fixed.points[near]) * fixed.normals[near]).sum(-1).abs().mean(-1)
    cosine = (normals[:, :, None] * fixed.normals[near]).sum(-1).abs()
    difference = (moving.features[rows][None, :, None] - fixed.features[near]).abs().sum(-1) / 3
    depth = depth_in(points, fixed.support)
    nearest = distances[..., 0]
    own = [(moving.depth[rows] / 0.1).clamp(0, 1), 8 * moving.flatness[rows], 5 * moving.spacing[rows]]
    columns = [
        *((-(nearest / width).square()).exp() for width in (0.03, 0.06, 0.12)),
        *((-(across / width).square()).exp() for width in (0.02, 0.05)),
        cosine[..., 0], cosine.mean(-1),
        (depth / 0.1).clamp(-1, 1), (depth / 0.4).clamp(-1, 1),
        difference[..., 0], difference.amin(-1),
        8 * fixed.flatness[near].mean(-1), 5 * fixed.spacing[near[..., 0]], (5 * distances[..., -1]).clamp(max=2),
        *(column.expand(nearest.shape) for column in own),
    ]  # fmt: skip
    return torch.stack(columns, -1)


class Judge(nn.Module):
    """Evidence (K, 2, n, EVIDENCE) both ways and the angles (K,) [rad] from the given start -> scores (K,).

    Points are seen alone, then beside their mean; the two ways enter alike. From the angles it learns how far from the
    start the answers of its training lie.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        check_counts(width=width)
        self.alone = nn.Sequential(nn.Linear(EVIDENCE, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.beside = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        widths = (4 * width + 1, 2 * width, width)
        self.score = nn.Sequential(
            nn.Linear(widths[0], widths[1]), nn.ReLU(), nn.Linear(widths[1], widths[2]), nn.ReLU(),
            nn.Linear(widths[2], 1, bias=False),
        )  # fmt: skip

    def forward(self, evidence: Tensor, angle: Tensor) -> Tensor:
        x = self.alone(evidence)
        mean = x.mean(-2, keepdim=True)
        pooled = self.beside(torch.cat([x, mean.expand_as(x)], -1)).mean(-2)
        ways = torch.cat([mean[..., 0, :], pooled], -1)
        both = [ways.sum(1), (ways[:, 0] - ways[:, 1]).abs(), angle[:, None].to(ways)]
        score: Tensor = self.score(torch.cat(both, -1))[:, 0]
        return score
