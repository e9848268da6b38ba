"""Surfaces with a printed texture, for the tests of coloured ICP: shapes that slide, and one that does not."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from dlc_reg.geometry import PointCloud

SHAPES = ("plane", "sphere", "wave")


def texture(points):
    x, y, z = points.T
    waves = [np.sin(7 * x + 2 * y), np.cos(5 * y - 3 * z + 1), np.sin(6 * z + 4 * x)]
    return 0.5 + np.stack(waves, axis=1) * [0.4, 0.4, 0.3]


def surface(shape, n, seed, noise=0.002):
    """Points (n, 3) two units wide and their colours (n, 3) in [0, 1]."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform(-1, 1, (n, 2))
    if shape == "plane":
        points = np.column_stack([xy, np.zeros(n)])
    elif shape == "sphere":
        points = rng.normal(size=(n, 3))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    else:
        points = np.column_stack([xy, 0.3 * np.sin(3 * xy[:, 0]) * np.cos(2 * xy[:, 1])])
    points += noise * rng.normal(size=points.shape)
    return points, texture(points)


def slide(shape):
    """A motion (4, 4) that leaves the shape where it is, or nearly."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec([0.03, -0.02, 0.05] if shape == "sphere" else [0, 0, 0.05]).as_matrix()
    if shape != "sphere":
        matrix[:3, 3] = 0.05, -0.03, 0.0
    return matrix


def move(transform, points):
    return points @ transform[:3, :3].T + transform[:3, 3]


def cloud(points, colors=None, name="source"):
    """A `PointCloud` with normals."""
    made = PointCloud.from_any(points, name=name)
    return (made if colors is None else made.attach(colors=made.points.new_tensor(colors))).with_normals()


def clouds(shape, n=3000, noise=0.002):
    """Source, target and T_target_source, `slide(shape)`."""
    truth = slide(shape)
    (p, p_colors), (q, q_colors) = surface(shape, n, 0, noise), surface(shape, n - 500, 1, noise)
    return cloud(move(np.linalg.inv(truth), p), p_colors), cloud(q, q_colors, "target"), truth


def apart(found, truth):
    """The largest distance between where two transformations (4, 4) take the shapes' points."""
    corners = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
    return float(np.linalg.norm(move(found, corners) - move(truth, corners), axis=1).max())
