"""The clouds that benchmarks work on: uniform, a surface, a LiDAR's street, real scans, and heaps of shapes.

All from seeds, float64 (N, 3), in random order: nobody's cache is helped by the order of the points.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dlc_reg.geometry import PointCloud

Array = NDArray[np.float64]

BUNNY = Path(__file__).resolve().parent.parent / "datasets" / "samples" / "bunny"
STARTS = {"near": 0.001, "far": 1 / 15}
"""Shifts as shares of the size: a registration that has nearly converged; 20 cm on an object of 3 m."""


def uniform(count: int, seed: int) -> Array:
    """In a cube of 3 units."""
    return np.random.default_rng(seed).uniform(-1.5, 1.5, (count, 3))


def surface(count: int, seed: int) -> tuple[Array, Array]:
    """Points and normals of a bumpy torus about 3 units wide."""
    u, v = _angles(count, seed)
    h = 1e-5
    normals = np.cross(_bumpy(u + h, v) - _bumpy(u - h, v), _bumpy(u, v + h) - _bumpy(u, v - h))
    return _bumpy(u, v), normals / np.linalg.norm(normals, axis=1, keepdims=True)


def _angles(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).uniform(0, 2 * np.pi, (2, count))


def _bumpy(u: Array, v: Array) -> Array:
    tube = 0.5 * (1 + 0.2 * np.sin(5 * u) * np.cos(3 * v))
    ring = 1.0 + tube * np.cos(v)
    return np.stack([ring * np.cos(u), ring * np.sin(u), tube * np.sin(v) + 0.1 * np.cos(2 * u)], 1)


def lidar(count: int, seed: int) -> Array:
    """A street seen by a spinning scanner 1.8 m above it, metres: density falls off with the square of the distance.

    Rays at random over 360 by 28 degrees meet the ground or one of four house fronts with recesses, noise 2 cm.
    """
    rng = np.random.default_rng(seed)
    azimuth, elevation = rng.uniform(-np.pi, np.pi, count), np.radians(rng.uniform(-25, 3, count))
    rays = np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], 1)
    with np.errstate(divide="ignore"):
        ground = np.where(rays[:, 2] < 0, -1.8 / rays[:, 2], np.inf)
        along = np.where(rays[:, 0] > 0, 70.0, -60.0) / rays[:, 0]
        across = np.where(rays[:, 1] > 0, 10.0, -12.0) / rays[:, 1]
    front = np.minimum(along, across)
    x, y, z = (front[:, None] * rays).T
    recessed = (np.floor((x + y) / 2.5) + np.floor(z / 1.5)) % 2 == 0
    reach = np.minimum(ground, front + 0.3 * recessed) + rng.normal(0, 0.02, count)
    return reach[:, None] * rays


def cloud(kind: str, count: int, seed: int) -> Array:
    if kind == "surface":  # without normals, which take four times as long
        return _bumpy(*_angles(count, seed))
    return {"uniform": uniform, "lidar": lidar}[kind](count, seed)


def size(points: Array) -> float:
    """The longest side of the bounding box."""
    return float(np.ptp(points, axis=0).max())


def away(points: Array, how: str) -> Array:
    """Moved "near" or "far", in a direction that is no axis of anything."""
    return points + STARTS[how] * size(points) * np.array([2.0, -3.0, 6.0]) / 7


def scans(paths: list[Path], seed: int) -> tuple[Array, Array]:
    """Target and queries: two scans, or the even and the odd points of one. Without paths the bunny's, aligned."""
    rng = np.random.default_rng(seed)
    if paths:
        read = [PointCloud.from_any(path, remove_non_finite=True).to_absolute() for path in paths[:2]]
        target, queries = read if len(read) == 2 else (read[0][0::2], read[0][1::2])
        origin = target.mean(0)
        target, queries = target - origin, queries - origin
    else:
        target, queries = (PointCloud.from_any(BUNNY / f"bun{n}.ply").to_absolute() for n in ("000", "045"))
        T = np.array(json.loads((BUNNY / "truth.json").read_text())["T_target_source"])
        queries = queries @ T[:3, :3].T + T[:3, 3]
    return rng.permutation(target), rng.permutation(queries)


def start(points: Array) -> tuple[Array, Array]:
    """The points as a source that an ICP has to bring back, and its T_target_source: 5 degrees and 2% of 3 units."""
    T = np.eye(4)
    T[:3, :3] = Rotation.from_rotvec(np.radians([3.0, -2.0, 3.4])).as_matrix()
    T[:3, 3] = [0.05, -0.03, 0.02]
    return (points - T[:3, 3]) @ T[:3, :3], T


def heap(points: int, rng: np.random.Generator) -> Array:
    """Three to five boxes and tori of random sizes and poses in the unit sphere, which have no symmetry together."""
    parts = []
    for share in rng.multinomial(points, rng.dirichlet(np.full(rng.integers(3, 6), 5.0))):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        part = (_box if rng.random() < 0.5 else _torus)(int(share), rng)
        parts.append(part @ turn + rng.uniform(-0.5, 0.5, 3))
    together = rng.permutation(np.concatenate(parts))
    together -= together.mean(0)
    return together / np.linalg.norm(together, axis=1).max()


def _box(points: int, rng: np.random.Generator) -> Array:
    size = rng.uniform(0.1, 0.6, 3)
    areas = np.prod(size) / size
    at, face = rng.uniform(-1, 1, (points, 3)), rng.choice(3, points, p=areas / areas.sum())
    at[range(points), face] = rng.choice((-1.0, 1.0), points)
    return at * size


def _torus(points: int, rng: np.random.Generator) -> Array:
    ring, tube = rng.uniform(0.25, 0.6), rng.uniform(0.05, 0.2)
    u, v = rng.uniform(0, 2 * np.pi, (2, points))
    radius = ring + tube * np.cos(v)
    return np.stack([radius * np.cos(u), radius * np.sin(u), tube * np.sin(v)], 1)
