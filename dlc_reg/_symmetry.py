"""Which shapes coincide with themselves after a rotation, so that no method can tell their pose.

A shape is split into two samples without a point in common. Turned copies of one, refined by ICP, are laid on the
other; where a rotation of more than a few degrees fits as well as none does, up to the sampling's scatter, the shape is
symmetric to within its sampling.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.io import replacing
from dlc_reg.manifold import invert_rigid, so3_exp
from dlc_reg.metrics import rotation_error
from dlc_reg.protocols import Shapes
from dlc_reg.registration.global_search import super_fibonacci

SAMPLE = 1024  # points of each of the two samples, at most
GRID = 600  # rotations: none is farther than some 30 degrees from one of them
FOLDS = (2, 3, 4, 5, 6, 7, 8, 12, 24, 36)  # turns of 360 degrees / fold about the principal axes
CHOSEN = 24  # poses whose fit is computed exactly
NEAR = 1.2  # fits within this factor, in mean square, are equal: between samples it scatters by some 5%


def keep_asymmetric(shapes: Shapes, *, cache: str | Path | None = None, progress: bool = False) -> Shapes:
    """The shapes that no rotation lays on themselves to within their sampling.

    It takes 0.1 s a shape; `cache` is a folder in which the answer for these shapes is kept and looked up.
    """
    path = None if cache is None else Path(cache) / f"symmetric-{shapes.checksum[:16]}.npy"
    if path is not None and path.exists():
        symmetric = np.load(path, allow_pickle=False)
    else:
        symmetric = symmetric_shapes(shapes, progress=progress)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, overwrite=True) as draft:
                np.save(draft, symmetric, allow_pickle=False)
    if symmetric.all():
        raise InputError("shapes", f"{len(shapes)} shapes that are all symmetric", "at least one that is not")
    return shapes.take(np.flatnonzero(~symmetric))


def symmetric_shapes(shapes: Shapes, *, angle_deg: float = 5.0, progress: bool = False) -> NDArray[np.bool_]:
    """(S,): whether a rotation by more than `angle_deg` lays the shape on itself to within its sampling noise."""
    from tqdm import tqdm

    rows = tqdm(range(len(shapes)), desc="symmetry", unit="shape", disable=not progress)
    normals = shapes.normals
    return np.array([is_symmetric(shapes.points[i], None if normals is None else normals[i], angle_deg) for i in rows])


def is_symmetric(points: Any, normals: Any = None, angle_deg: float = 5.0) -> bool:
    """The same of one shape: points (P, 3) and unit normals (P, 3), which are estimated where they are not given."""
    cloud = torch.as_tensor(np.asarray(points), dtype=torch.float32)
    cloud = cloud - cloud.mean(0)
    if normals is None:
        normals = ops.estimate_normals(cloud, k=min(20, len(cloud)))
    normals = torch.as_tensor(np.asarray(normals), dtype=torch.float32)
    order = torch.randperm(len(cloud), generator=torch.Generator().manual_seed(0))[: 2 * SAMPLE]
    halves = [half[ops.morton_order(cloud[half])] for half in order.chunk(2)]
    clouds = [cloud[half] for half in halves]
    index = [ops.SearchIndex(c) for c in clouds]
    spacing = float(index[0].knn(clouds[1])[0].median())
    if spacing == 0:
        return False
    surfaces = [
        ops.Surface(c, normals[half], cell=2 * spacing, reach=16 * spacing)
        for c, half in zip(clouds, halves, strict=True)
    ]
    poses = _refined(surfaces, _starts(cloud), spacing)
    turns = rotation_error(poses, torch.eye(4, dtype=torch.float64))
    seen = ops.judge_poses(
        surfaces[0],
        surfaces[1],
        poses,
        distance=4 * spacing,
        normal_cosine=0.5,
        oriented=False,
        free_margin=0.0,
        samples=256,
    )
    score = (seen.source_overlap + seen.target_overlap) * (1 + seen.closeness)
    score[turns <= math.radians(angle_deg)] = -1
    chosen = torch.cat([torch.zeros(1, dtype=torch.long), score.argsort(descending=True)[:CHOSEN]])
    final = _refined(surfaces, poses[chosen], spacing, last=2.0)
    fits = _fit(clouds, index, final)
    turned = rotation_error(final[1:], torch.eye(4, dtype=torch.float64)) > math.radians(angle_deg)
    return bool((fits[1:][turned] < NEAR * fits[0]).any())


def _refined(surfaces: list[ops.Surface], poses: Tensor, spacing: float, last: float = 4.0) -> Tensor:
    return ops.refine_poses(
        surfaces[0],
        surfaces[1],
        poses,
        iterations=6,
        first_distance=4 * last * spacing,
        last_distance=last * spacing,
        samples=200 if len(poses) > CHOSEN + 1 else SAMPLE,
    )


def _fit(clouds: list[Tensor], index: list[ops.SearchIndex], poses: Tensor) -> Tensor:
    """Mean squared distances to the nearest point, both ways, of the poses (K, 4, 4): (K,)."""
    total = torch.zeros(len(poses), dtype=torch.float64)
    for a, b, to_b in ((0, 1, poses), (1, 0, invert_rigid(poses))):
        moved = clouds[a].double() @ to_b[:, :3, :3].mT + to_b[:, None, :3, 3]
        distances = index[b].knn(moved.float().reshape(-1, 3))[0]
        total += distances.double().square().reshape(len(poses), -1).mean(1)
    return total


def _starts(cloud: Tensor) -> Tensor:
    """(K, 4, 4) float64: no rotation, an even grid of rotations, and the folds about the principal axes."""
    axes = torch.linalg.eigh(torch.cov(cloud.T.double())).eigenvectors.T
    angles = [
        2 * math.pi * turn / fold for fold in FOLDS for turn in range(1, fold // 2 + 1) if math.gcd(turn, fold) == 1
    ]
    folds = so3_exp(torch.tensor(angles, dtype=torch.float64)[:, None, None] * axes).reshape(-1, 3, 3)
    poses = torch.eye(4, dtype=torch.float64).repeat(1 + GRID + len(folds), 1, 1)
    poses[1:, :3, :3] = torch.cat([super_fibonacci(GRID), folds])
    return poses
