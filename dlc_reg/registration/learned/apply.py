"""A learned model on two point clouds of any size, unit and position."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from dlc_reg import ops
from dlc_reg.ops._threads import one_thread
from dlc_reg.registration.assignment import polar_rotation
from dlc_reg.registration.global_search import voxel_size_for
from dlc_reg.registration.learned.frame import RegistrationNetwork
from dlc_reg.registration.learned.weights import load_model

SHIPPED = "softicp"
FEWEST = 8  # points of a cloud: fewer have no shape that features could tell
POINTS = 640  # about so many of the larger cloud are used; the networks are trained with as many


@functools.cache
def shipped() -> RegistrationNetwork:
    """The model that comes with the package."""
    return load_model(SHIPPED)


def estimate(model: RegistrationNetwork, source: Tensor, target: Tensor, start: Tensor) -> Tensor:
    """The pose (4, 4) float64 that `model` finds for points (N, 3) and (M, 3) from `start` (4, 4), T_target_source.

    Both clouds are thinned with one voxel size, moved to their centres, and shrunk by one factor into the unit ball,
    where the networks are trained. Clouds of fewer than eight points after that, or of no
    extent, leave the start as it is.
    """
    voxel = max(voxel_size_for(points, POINTS) for points in (source, target))
    thin = [p if voxel == 0 else ops.voxel_downsample(p, voxel) for p in (source, target)]
    if min(len(p) for p in thin) < FEWEST:
        return start.double()
    centers = [p.double().mean(0) for p in thin]
    offsets = [p.double() - c for p, c in zip(thin, centers, strict=True)]
    radius = max(float(offset.norm(dim=1).quantile(0.98)) for offset in offsets)
    if not radius > 0:
        return start.double()
    # The unit ball into the clouds' coordinates, and back: a solver's inverse has a last row that rounding may touch.
    inward, outward = (_similarity(c, radius) for c in centers)
    source_shrunk, target_shrunk = (_similarity(-c / radius, 1 / radius) for c in centers)
    with one_thread(), torch.no_grad():
        init = target_shrunk @ start.double() @ inward
        solution = model(*((offset / radius).float()[None] for offset in offsets), init=init.float()[None])
    pose = solution.omega[0].double()
    pose[:3, :3] = polar_rotation(pose[:3, :3])  # float32 rounded it
    found: Tensor = outward @ pose @ source_shrunk
    return found


def _similarity(center: Tensor, radius: float) -> Tensor:
    """(4, 4): p' = radius p + center."""
    matrix = torch.eye(4, dtype=torch.float64) * radius
    matrix[:3, 3], matrix[3, 3] = center, 1.0
    return matrix
