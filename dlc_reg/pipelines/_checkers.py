"""The checks that RANSAC makes of a few correspondences before it looks at whole clouds, by Open3D 0.20's names."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray

from dlc_reg.errors import InputError
from dlc_reg.manifold import rotation_to_euler
from dlc_reg.pipelines._clouds import Cloud, read_cloud, read_correspondences
from dlc_reg.pipelines._estimation import _as_float
from dlc_reg.pipelines._run import as_transformation

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Samples:
    """B sets of n correspondences: `pairs` (B, n, 2) and what the clouds have there, (B, n, 3) each or None."""

    source: Cloud
    target: Cloud
    pairs: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, rows: Any) -> Samples:
        return Samples(self.source, self.target, self.pairs[rows])

    @property
    def p(self) -> Array:
        return self.source.points[self.pairs[..., 0]]

    @property
    def q(self) -> Array:
        return self.target.points[self.pairs[..., 1]]


class CorrespondenceChecker:
    """Base of the checkers. One of your own has `Check(source, target, corres, transformation)` -> bool, whose clouds
    have `points` (N, 3) and `normals` (N, 3) or None, whatever they were given as; it is asked sample by sample.

    `require_pointcloud_alignment_`: False if the check holds or fails whatever the transformation.
    """

    require_pointcloud_alignment_ = True
    _before_pose = False

    def Check(self, source: Any, target: Any, corres: Any, transformation: Any) -> bool:
        """Whether the correspondences (m, 2) agree, with the source moved by `transformation` (4, 4)."""
        s, t = read_cloud(source, "source"), read_cloud(target, "target")
        pairs = read_correspondences(corres, len(s.points), len(t.points))
        pose = as_transformation("transformation", transformation)
        return bool(self._passes(Samples(s, t, pairs[None]), pose[None])[0])

    def _passes(self, samples: Samples, poses: Array) -> Mask:
        """(B,) for poses (B, 4, 4); one of the caller's own kind is asked one by one, with clouds as read."""
        s, t = samples.source, samples.target
        return np.array([bool(self.Check(s, t, pairs, pose)) for pairs, pose in zip(samples.pairs, poses, strict=True)])

    def __repr__(self) -> str:
        return type(self).__name__


class CorrespondenceCheckerBasedOnEdgeLength(CorrespondenceChecker):
    """Each distance between two of the points is, in either cloud, at least `similarity_threshold` that in the other.

    `similarity_threshold`: 0 (loose) to 1 (strict).
    """

    require_pointcloud_alignment_ = False
    _before_pose = True

    def __init__(self, similarity_threshold: Any = 0.9) -> None:
        self.similarity_threshold = getattr(similarity_threshold, "similarity_threshold", similarity_threshold)

    @property
    def similarity_threshold(self) -> float:
        return self._similarity_threshold

    @similarity_threshold.setter
    def similarity_threshold(self, value: SupportsFloat) -> None:
        self._similarity_threshold = _as_float("similarity_threshold", value)

    def _passes(self, samples: Samples, poses: Array) -> Mask:
        i, j = np.triu_indices(samples.pairs.shape[1], 1)
        p, q = samples.p, samples.q
        in_source = np.linalg.norm(p[:, i] - p[:, j], axis=-1)
        in_target = np.linalg.norm(q[:, i] - q[:, j], axis=-1)
        least = self.similarity_threshold
        agree: Mask = ((in_source >= in_target * least) & (in_target >= in_source * least)).all(axis=1)
        return agree

    def __repr__(self) -> str:
        return f"{type(self).__name__} with similarity_threshold={self.similarity_threshold:f}"


class CorrespondenceCheckerBasedOnDistance(CorrespondenceChecker):
    """Moved source points lie within `distance_threshold` of their partners, in the points' unit."""

    def __init__(self, distance_threshold: Any) -> None:
        self.distance_threshold = getattr(distance_threshold, "distance_threshold", distance_threshold)

    @property
    def distance_threshold(self) -> float:
        return self._distance_threshold

    @distance_threshold.setter
    def distance_threshold(self, value: SupportsFloat) -> None:
        self._distance_threshold = _as_float("distance_threshold", value)

    def _passes(self, samples: Samples, poses: Array) -> Mask:
        moved = np.einsum("bij,bnj->bni", poses[:, :3, :3], samples.p) + poses[:, None, :3, 3]
        near: Mask = (np.linalg.norm(moved - samples.q, axis=-1) <= self.distance_threshold).all(axis=1)
        return near

    def __repr__(self) -> str:
        return f"{type(self).__name__} with distance_threshold={self.distance_threshold:f}"


class CorrespondenceCheckerBasedOnNormal(CorrespondenceChecker):
    """Turned source normals differ from their partners by at most `normal_angle_threshold` [rad].

    Clouds without normals pass, with a warning.
    """

    def __init__(self, normal_angle_threshold: Any) -> None:
        self.normal_angle_threshold = getattr(normal_angle_threshold, "normal_angle_threshold", normal_angle_threshold)

    @property
    def normal_angle_threshold(self) -> float:
        return self._normal_angle_threshold

    @normal_angle_threshold.setter
    def normal_angle_threshold(self, value: SupportsFloat) -> None:
        self._normal_angle_threshold = _as_float("normal_angle_threshold", value)

    def _passes(self, samples: Samples, poses: Array) -> Mask:
        source, target = samples.source.normals, samples.target.normals
        if source is None or target is None:
            warnings.warn(
                "CorrespondenceCheckerBasedOnNormal: a cloud has no normals; nothing is checked", stacklevel=4
            )
            return np.ones(len(samples), dtype=np.bool_)
        turned = np.einsum("bij,bnj->bni", poses[:, :3, :3], source[samples.pairs[..., 0]])
        cosine = (turned * target[samples.pairs[..., 1]]).sum(axis=-1)
        alike: Mask = (cosine >= math.cos(self.normal_angle_threshold)).all(axis=1)
        return alike

    def __repr__(self) -> str:
        return f"{type(self).__name__} with normal_threshold={self.normal_angle_threshold:f}"


class CorrespondenceCheckerBasedOnSourceRotation(CorrespondenceChecker):
    """The rotation stays within `rotation_threshold` (3,) [rad] about each axis; below 0 it is free there. 0.20 only.

    What is compared is the rotation's angles about the fixed axes x, y, z in turn, which is what Open3D 0.20 computes;
    its documentation speaks of the rotation vector.
    """

    require_pointcloud_alignment_ = False

    def __init__(self, rotation_threshold: Any) -> None:
        self.rotation_threshold = getattr(rotation_threshold, "rotation_threshold", rotation_threshold)

    @property
    def rotation_threshold(self) -> Array:
        return self._rotation_threshold

    @rotation_threshold.setter
    def rotation_threshold(self, value: Any) -> None:
        limits = np.asarray(value, dtype=np.float64).flatten()
        if limits.shape != (3,) or np.isnan(limits).any():
            raise InputError("rotation_threshold", str(limits.tolist()), "three angles [rad]")
        self._rotation_threshold = limits

    def _passes(self, samples: Samples, poses: Array) -> Mask:
        angles = rotation_to_euler(torch.from_numpy(np.ascontiguousarray(poses[:, :3, :3]))).abs().numpy()
        limits = self.rotation_threshold
        allowed = np.where(limits < 0, np.inf, limits)
        return np.asarray((angles <= allowed).all(axis=1), dtype=np.bool_)

    def __repr__(self) -> str:
        limits = ", ".join(f"{x:f}" for x in self.rotation_threshold)
        return f"{type(self).__name__} with rotation_threshold={limits} radians."


_KINDS = {
    kind.__name__: kind
    for kind in (
        CorrespondenceCheckerBasedOnEdgeLength,
        CorrespondenceCheckerBasedOnDistance,
        CorrespondenceCheckerBasedOnNormal,
        CorrespondenceCheckerBasedOnSourceRotation,
    )
}


def as_checkers(values: Any) -> list[CorrespondenceChecker]:
    """A list of checkers, Open3D's own among them (for code that moves step by step)."""
    checkers = []
    for value in values:
        if not isinstance(value, CorrespondenceChecker):
            if type(value).__name__ not in _KINDS:
                raise TypeError(f"checkers: got {type(value).__name__}; expected CorrespondenceChecker...")
            value = _KINDS[type(value).__name__](value)
        checkers.append(value)
    return checkers
