"""Poses, shapes, thin real clouds and comparisons for the tests of `register`."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from dlc_reg.registration.objectives import OBJECTIVES

SHAPED = {name: o for name, o in OBJECTIVES.items() if "colors" not in o.needs_of("source")}  # need no colours
NEAR = 0.01  # of the extent: what thinned clouds allow; the truth itself is good to 0.0025
NUMBERS = ("transformation", "fitness", "inlier_rmse", "correspondence_set", "information", "covariance")


def pose(axis, degrees, shift=(0.0, 0.0, 0.0)):
    """(4, 4) rigid."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(
        np.radians(degrees) * np.asarray(axis, float) / np.linalg.norm(axis)
    ).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def any_pose(rng, shift=1.0):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(random_state=rng).as_matrix()
    matrix[:3, 3] = rng.uniform(-shift, shift, 3)
    return matrix


def scaling(factor):
    return np.diag([factor, factor, factor, 1.0])


def move(transform, points):
    return points @ transform[:3, :3].T + transform[:3, 3]


def distance(first, second, points):
    """Largest distance between the images of `points` under two transforms, over the clouds' size after the second."""
    gap = np.linalg.norm(move(first, points) - move(second, points), axis=1).max()
    return gap / np.linalg.norm(np.ptp(move(second, points), axis=0))


def same_bytes(a, b):
    for name in NUMBERS:
        assert np.asarray(getattr(a, name)).tobytes() == np.asarray(getattr(b, name)).tobytes(), name
    assert a.verdict is b.verdict and a.verdict_reasons == b.verdict_reasons
    assert a.history == b.history and a.status is b.status


def thin(points, count, seed=0):
    return points[np.random.default_rng(seed).permutation(len(points))[:count]]


def plane(rng, count):
    return np.c_[rng.uniform(-1, 1, (count, 2)), np.zeros(count)]


def sphere(rng, count):
    points = rng.normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def cylinder(rng, count):
    """Open, about z."""
    angle = rng.uniform(0, 2 * np.pi, count)
    return np.c_[np.cos(angle), np.sin(angle), rng.uniform(-2, 2, count)]


def can(rng, count):
    """A cylinder about z with its lids."""
    lid = count // 3
    angle, radius = rng.uniform(0, 2 * np.pi, lid), np.sqrt(rng.uniform(0, 1, lid))
    lids = np.c_[radius * np.cos(angle), radius * np.sin(angle), rng.choice([-2.0, 2.0], lid)]
    return np.concatenate([cylinder(rng, count - lid), lids])


def box(rng, count, size=(1.0, 1.0, 1.0)):
    """The surface of a box, sampled evenly."""
    size = np.asarray(size)
    areas = np.tile([size[1] * size[2], size[0] * size[2], size[0] * size[1]], 2)
    face = rng.choice(6, count, p=areas / areas.sum())
    points = rng.uniform(-0.5, 0.5, (count, 3))
    points[np.arange(count), face % 3] = np.where(face < 3, -0.5, 0.5)
    return points * size
