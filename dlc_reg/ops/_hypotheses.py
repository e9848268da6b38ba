"""Operators of the global search: descriptors, matches, poses from matches, and the judging of many poses at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlc_reg import _core
from dlc_reg.ops._search import SearchIndex

FEATURE_SIZE = 33


def fpfh(
    index: SearchIndex, normals: Tensor, radius: float, *, oriented: bool = False, num_threads: int | None = None
) -> Tensor:
    """Fast point feature histograms (Rusu et al., ICRA 2009), (N, 33) float32, for the points of `index`.

    With `oriented=False` they do not depend on the sign of any normal; the classical ones need `oriented=True` and
    normals (N, 3) that point to the sensor.
    """
    points, normals = index.points, normals.contiguous()
    features = torch.empty(len(points), FEATURE_SIZE, dtype=torch.float32)
    _core.fpfh(
        index.tree,
        points.data_ptr(),
        normals.data_ptr(),
        len(points),
        radius,
        oriented,
        features.data_ptr(),
        num_threads or 0,
    )
    return features


def nearest_features(a: Tensor, b: Tensor, *, num_threads: int | None = None) -> tuple[Tensor, Tensor]:
    """For each row of a (N, D) the nearest row of b (M, D): indices (N,) int64 and squared distances (N,) float32."""
    a, b = a.contiguous(), b.contiguous()
    indices = torch.empty(len(a), dtype=torch.int64)
    squared = torch.empty(len(a), dtype=torch.float32)
    _core.nearest_features(
        a.data_ptr(),
        len(a),
        b.data_ptr(),
        len(b),
        a.shape[1],
        indices.data_ptr(),
        squared.data_ptr(),
        num_threads or 0,
    )
    return indices, squared


def mutual_matches(a: Tensor, b: Tensor, *, num_threads: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows (K, 2) of indices into a (N, D) and b (M, D) that are each other's nearest, and their squared distances."""
    forward, squared = nearest_features(a, b, num_threads=num_threads)
    backward, _ = nearest_features(b, a, num_threads=num_threads)
    rows = torch.arange(len(a))
    mutual = backward[forward] == rows
    return torch.stack([rows[mutual], forward[mutual]], 1), squared[mutual]


def propose_poses(
    source: Tensor,
    target: Tensor,
    tolerance: float,
    *,
    max_seeds: int = 300,
    max_clique: int = 30,
    num_threads: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Poses (K, 4, 4) float64 from matched points (N, 3) float32, and how many matches support each (K,).

    Matches whose mutual distances agree within `tolerance` form a graph; a greedy clique about each of the best seeds
    gives a pose by Procrustes, refitted once to its supporters (SC2-PCR, Chen et al., CVPR 2022; maximal cliques,
    Zhang et al., CVPR 2023).
    """
    source, target = source.contiguous(), target.contiguous()
    poses = torch.zeros(max_seeds, 4, 4, dtype=torch.float64)
    support = torch.zeros(max_seeds, dtype=torch.int64)
    count = _core.propose_poses(
        source.data_ptr(),
        target.data_ptr(),
        len(source),
        tolerance,
        max_seeds,
        max_clique,
        poses.data_ptr(),
        support.data_ptr(),
        num_threads or 0,
    )
    return poses[:count], support[:count]


class Surface:
    """A thinned cloud made ready for judging poses: points and normals (N, 3) float32 in Morton order, and their grid.

    `cell` is the edge of a grid cell and `reach` how far from a point the grid still answers. `eye` (3,) is where the
    sensor stood, in the points' frame, or None; `bin_angle` [rad] is the width of a bin of its depth map.
    """

    def __init__(
        self,
        points: Tensor,
        normals: Tensor,
        *,
        cell: float,
        reach: float,
        eye: Any = None,
        bin_angle: float = 0.03,
    ) -> None:
        self.points, self.normals = points.contiguous(), normals.contiguous()
        self.handle = _core.Surface(self.points.data_ptr(), self.normals.data_ptr(), len(points), cell, reach)
        if eye is not None:
            self.handle.set_eye([float(x) for x in eye], bin_angle)

    def __len__(self) -> int:
        return len(self.points)


@dataclass(frozen=True)
class Judgement:
    """What the two clouds say of each of K poses; every field is (K,) float64."""

    source_overlap: Tensor
    target_overlap: Tensor
    violations: Tensor  # share of points that float before a seen surface; -1 where no viewpoint is known
    closeness: Tensor  # mean of 1 - (d / distance)^2 over the overlap


def judge_poses(
    source: Surface,
    target: Surface,
    poses: Tensor,
    *,
    distance: float,
    normal_cosine: float,
    oriented: bool,
    free_margin: float,
    samples: int = 1000,
    num_threads: int | None = None,
) -> Judgement:
    """Judges poses (K, 4, 4) float64, T_target_source, both ways on at most `samples` points a cloud."""
    poses = poses.contiguous()
    out = torch.empty(len(poses), 4, dtype=torch.float64)
    _core.judge_poses(
        source.handle,
        target.handle,
        poses.data_ptr(),
        len(poses),
        distance,
        normal_cosine,
        oriented,
        free_margin,
        samples,
        out.data_ptr(),
        num_threads or 0,
    )
    return Judgement(*out.unbind(1))


def refine_poses(
    source: Surface,
    target: Surface,
    poses: Tensor,
    *,
    iterations: int,
    first_distance: float,
    last_distance: float,
    normal_cosine: float = 0.5,
    oriented: bool = False,
    samples: int = 1000,
    num_threads: int | None = None,
) -> Tensor:
    """Point-to-plane ICP of every pose (K, 4, 4) with a correspondence distance that shrinks from first to last."""
    poses = poses.clone().contiguous()
    _core.refine_poses(
        source.handle,
        target.handle,
        poses.data_ptr(),
        len(poses),
        iterations,
        first_distance,
        last_distance,
        normal_cosine,
        oriented,
        samples,
        num_threads or 0,
    )
    return poses
