"""A bumpy surface, poses and matches for the tests of the global search's operators."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from dlc_reg import ops
from dlc_reg.ops._hypotheses_reference import moved

SEEDS = st.integers(0, 10**6)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def terrain(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (N, 3) on a bumpy sheet, two units wide, and its exact upward normals; float32, in Morton order."""
    x, y = (torch.rand(2, n, dtype=torch.float64, generator=generator(seed)) * 2 - 1).unbind(0)
    z = 0.3 * torch.sin(3 * x) * torch.cos(2 * y) + 0.1 * x * y
    slope_x = 0.9 * torch.cos(3 * x) * torch.cos(2 * y) + 0.1 * y
    slope_y = -0.6 * torch.sin(3 * x) * torch.sin(2 * y) + 0.1 * x
    normals = torch.nn.functional.normalize(torch.stack([-slope_x, -slope_y, torch.ones(n)], 1), dim=1)
    points = torch.stack([x, y, z], 1).float()
    order = ops.morton_order(points)
    return points[order], normals.float()[order]


def rigid(seed: int, shift: float = 1.0, angle: float | None = None) -> torch.Tensor:
    """A random pose (4, 4) float64; the angle [rad] is uniform in the quaternion unless given."""
    axis = torch.nn.functional.normalize(torch.randn(3, dtype=torch.float64, generator=generator(seed)), dim=0)
    turn = angle if angle is not None else math.pi * float(torch.rand((), generator=generator(seed + 1)))
    x, y, z = (axis * turn).tolist()
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64))
    pose[:3, 3] = shift * torch.randn(3, dtype=torch.float64, generator=generator(seed + 2))
    return pose


def turned(pose: torch.Tensor, points: torch.Tensor, normals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return moved(pose, points.double()).float(), (normals.double() @ pose[:3, :3].T).float()


def planted(n: int, inliers: int, seed: int, noise: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Matches (N, 3), (N, 3) of which the first `inliers` obey the pose, the others nothing; and the pose."""
    pose = rigid(seed)
    source = torch.rand(n, 3, dtype=torch.float64, generator=generator(seed + 3)) * 2
    target = moved(pose, source) + noise * torch.randn(n, 3, dtype=torch.float64, generator=generator(seed + 4))
    lost = torch.rand(n - inliers, 3, dtype=torch.float64, generator=generator(seed + 5)) * 2
    target[inliers:] = moved(pose, lost)
    return source.float(), target.float(), pose
