"""One pair of one shape, as a protocol says: choose the points, move one cloud, crop, thin, jitter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlc_reg.protocols.table import Protocol

Array = NDArray[Any]


def make_pair(points: Array, protocol: Protocol, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Source (N, 3), target (N, 3) and T_target_source (4, 4), float64, of a shape's points (P, 3)."""
    motion = draw_motion(protocol, rng)
    moved = points @ motion[:3, :3].T + motion[:3, 3]
    from_source = protocol.moves == "source"
    clouds = (moved, points) if from_source else (points, moved)
    chosen = _choose(len(points), protocol, rng)
    far = _far_point(protocol, rng)
    source, target = (
        _jitter(_crop_and_thin(cloud[rows], protocol, far, rng), protocol, rng)
        for cloud, rows in zip(clouds, chosen, strict=True)
    )
    return source, target, np.linalg.inv(motion) if from_source else motion


def draw_motion(protocol: Protocol, rng: np.random.Generator) -> Array:
    """(4, 4) float64, the motion that the protocol applies to one of the clouds."""
    motion = np.eye(4)
    if protocol.rotation == "euler":
        angles = np.radians(rng.uniform(0, protocol.max_angle_deg, 3))
        c, s = np.cos(angles), np.sin(angles)
        rx = [[1, 0, 0], [0, c[0], -s[0]], [0, s[0], c[0]]]
        ry = [[c[1], 0, s[1]], [0, 1, 0], [-s[1], 0, c[1]]]
        rz = [[c[2], -s[2], 0], [s[2], c[2], 0], [0, 0, 1]]
        motion[:3, :3] = np.array(rx) @ np.array(ry) @ np.array(rz)
    else:
        x, y, z = _direction(rng)
        hat = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        angle = np.radians(rng.uniform(*protocol.rotation_range))
        motion[:3, :3] += np.sin(angle) * hat + (1 - np.cos(angle)) * hat @ hat
    motion[:3, 3] = rng.uniform(-protocol.max_translation, protocol.max_translation, 3)
    return motion


def _choose(count: int, protocol: Protocol, rng: np.random.Generator) -> tuple[Array, Array]:
    """Rows of the shape that the source and the target may use."""
    if protocol.sampling == "overlapping":
        pool = _draw(count, min(count, 2 * protocol.points), rng)
        return pool, pool
    if protocol.sampling == "same" or count < 2 * protocol.points:
        first = _draw(count, protocol.points, rng)
        return first, first if protocol.sampling == "same" else _draw(count, protocol.points, rng)
    order = rng.permutation(count)
    return order[: count // 2], order[count // 2 :]


def _far_point(protocol: Protocol, rng: np.random.Generator) -> Array | None:
    return rng.random(3) + 500.0 * rng.choice((-1, 1)) if protocol.common_far_point else None


def _crop_and_thin(cloud: Array, protocol: Protocol, far: Array | None, rng: np.random.Generator) -> Array:
    """(count, 3) of `cloud`, cropped, in random order."""
    if protocol.crop == "half_space":
        height = (cloud - cloud.mean(0)) @ _direction(rng)
        # the papers' loaders: the mean's plane for a half, a percentile else
        cloud = cloud[height > (0 if protocol.keep == 0.5 else np.percentile(height, 100 * (1 - protocol.keep)))]
    elif protocol.crop == "nearest_to_far_point":
        far = 500 * math.sqrt(3) * _direction(rng) if far is None else far
        kept = math.ceil(protocol.keep * len(cloud) - 1e-9)
        cloud = cloud[np.argpartition(np.square(cloud - far).sum(1), kept - 1)[:kept]]
    return cloud[_draw(len(cloud), protocol.count, rng)]


def _draw(count: int, wanted: int, rng: np.random.Generator) -> Array:
    """`wanted` of `count` rows in random order; where there are too few, all of them and then repeats."""
    rows = rng.permutation(count)[:wanted]
    return (
        rows if count >= wanted else rng.permutation(np.concatenate([rows, rng.integers(count, size=wanted - count)]))
    )


def _jitter(cloud: Array, protocol: Protocol, rng: np.random.Generator) -> Array:
    if not protocol.noise_sigma:
        return cloud
    noise = rng.normal(0, protocol.noise_sigma, cloud.shape)
    noisy: Array = cloud + noise.clip(-protocol.noise_clip, protocol.noise_clip)
    return noisy


def _direction(rng: np.random.Generator) -> Array:
    vector = rng.normal(size=3)
    unit: Array = vector / np.linalg.norm(vector)
    return unit
