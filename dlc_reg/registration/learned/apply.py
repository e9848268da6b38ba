"""A learned model on two point clouds of any size, unit and position."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dlc_reg import ops
from dlc_reg.geometry import PointCloud
from dlc_reg.registration.global_search import voxel_size_for
from dlc_reg.registration.learned.frame import RegistrationNetwork

POINTS = 640  # about so many of the larger cloud are used; the networks are trained with as many


def estimate(model: RegistrationNetwork, source: PointCloud, target: PointCloud, start: Tensor) -> Tensor:
    """The pose (4, 4) float64 that `model` finds from `start` (4, 4), both local source to local target coordinates.

    Both clouds are thinned with one voxel size, moved to their centres, and shrunk by one factor into the unit ball,
    where the networks are trained.
    """
    voxel = max(voxel_size_for(c.points, POINTS) for c in (source, target))
    thin = [c.points if voxel == 0 else ops.voxel_downsample(c.points, voxel) for c in (source, target)]
    centers = [p.double().mean(0) for p in thin]
    radius = max(float((p.double() - c).norm(dim=1).quantile(0.98)) for p, c in zip(thin, centers, strict=True))
    inward, outward = (_similarity(c, radius) for c in centers)
    moved = [((p.double() - c) / radius).float()[None] for p, c in zip(thin, centers, strict=True)]
    with _one_thread(), torch.no_grad():
        solution = model(*moved, init=(torch.linalg.inv(outward) @ start @ inward).float()[None])
    found: Tensor = outward @ _orthonormal(solution.omega[0].double()) @ torch.linalg.inv(inward)
    return found


def _similarity(center: Tensor, radius: float) -> Tensor:
    """(4, 4): the unit ball into the cloud's coordinates."""
    matrix = torch.eye(4, dtype=torch.float64) * radius
    matrix[:3, 3], matrix[3, 3] = center, 1.0
    return matrix


def _orthonormal(pose: Tensor) -> Tensor:
    """The pose with its rotation, which float32 rounded, made one again."""
    u, _, vt = torch.linalg.svd(pose[:3, :3])
    exact = pose.clone()
    exact[:3, :3] = u @ vt
    return exact


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch's sums depend on the number of its threads; the answer must not."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
