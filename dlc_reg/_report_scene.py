"""What a drawing of a registration needs, computed once for the page and for the picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud, apply_transform, localize
from dlc_reg.registration.result import RegistrationResult

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """The points to draw, a deterministic subsample, relative to the target's origin, in the points' unit.

    `gap` is None, or the distance between the centres of two clouds that start so far apart that `before` is drawn
    beside the target instead of at its true place. Shades are in [0, 1]: how much a surface faces the first view.
    """

    before: Array  # (n, 3), the source where it was given
    after: Array  # (n, 3), the same points, transformed
    target: Array  # (m, 3)
    before_shade: Array  # (n,)
    after_shade: Array  # (n,)
    target_shade: Array  # (m,)
    residuals: Array  # (n,), from each of `after` to the nearest of all target points
    view: NDArray[np.float64]  # (3,), unit vector from the clouds to the eye
    up: NDArray[np.float64]  # (3,), unit vector, perpendicular to `view`
    gap: float | None
    totals: tuple[int, int]  # points of (source, target) before the subsample


def build_scene(result: RegistrationResult, limit: int = 40_000) -> Scene:
    """At most `limit` points of each cloud. Raises `InputError` where the result does not hold its clouds."""
    if result.clouds is None:
        raise InputError(
            "result", "a result without its clouds", "a result of dlc_reg.register, or result.clouds = (source, target)"
        )
    source, target = result.clouds
    p, p_normals = _sample(source, limit)
    q, q_normals = _sample(target, limit)
    linear = result.transformation[:3, :3]
    after = apply_transform(localize(result.transformation, source, target), p)
    before, gap = _beside(p + (source.origin - target.origin), q)
    view, up = _camera(np.concatenate([after, q]), target)
    if gap is not None:
        before = before + np.cross(up, view) * _radius(q) * 2
    normals_after = p_normals @ (linear / np.cbrt(np.linalg.det(linear))).T
    distances, _ = ops.knn(after.astype(np.float32), np.asarray(target.points))
    return Scene(
        before=before.astype(np.float32),
        after=after.astype(np.float32),
        target=q.astype(np.float32),
        before_shade=_shade(p_normals, view),
        after_shade=_shade(normals_after, view),
        target_shade=_shade(q_normals, view),
        residuals=np.asarray(distances, dtype=np.float32).reshape(-1),
        view=view,
        up=up,
        gap=gap,
        totals=(len(source), len(target)),
    )


def _sample(cloud: PointCloud, limit: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points = np.asarray(cloud.points)
    keep = np.sort(np.random.default_rng(0).permutation(len(points))[:limit])
    points = np.ascontiguousarray(points[keep])
    normals = ops.estimate_normals(points) if cloud.normals is None else np.asarray(cloud.normals)[keep]
    return points.astype(np.float64), np.asarray(normals, dtype=np.float64)


def _radius(points: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(np.ptp(points, axis=0)) / 2)


def _middle(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((points.min(axis=0) + points.max(axis=0)) / 2)


def _beside(before: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[NDArray[np.float64], float | None]:
    """Brings a source that is far away to the target's centre, or leaves it."""
    offset = _middle(before) - _middle(target)
    gap = float(np.linalg.norm(offset))
    if gap <= 3 * (_radius(before) + _radius(target)):
        return before, None
    return before - offset, gap


def _camera(union: NDArray[np.float64], target: PointCloud) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Looks at the broad side of the aligned clouds, from the sensor's side where that is known, a little askew."""
    centre = _middle(union)
    _, axes = np.linalg.eigh(np.cov((union - union.mean(axis=0)).T))
    view = axes[:, 0]
    ahead = None if target.viewpoint is None else target.viewpoint - target.origin - centre
    if ahead is None or abs(ahead @ view) < 0.2 * np.linalg.norm(ahead):
        ahead = np.eye(3)[np.argmax(np.abs(view))]
    view = view * (1 if view @ ahead >= 0 else -1)
    up = np.eye(3)[1 if abs(view[1]) < abs(view[2]) else 2]
    right = np.cross(up, view)
    right /= np.linalg.norm(right)
    view = view + 0.35 * right + 0.3 * up
    view /= np.linalg.norm(view)
    up = up - (up @ view) * view
    return view, up / np.linalg.norm(up)


def _shade(normals: NDArray[np.float64], view: NDArray[np.float64]) -> Array:
    return np.clip(np.abs(normals @ view), 0, 1).astype(np.float32)
