"""The small algebra of a step: closed forms of motions, least solutions, and the chart in which a step is applied."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_RANK = 1e-12  # curvature, relative to the largest, below which a direction gets no update


def fit_similarity(
    moments: Array, *, with_scaling: bool, nearest_rotation: Callable[[Array], Array] | None = None
) -> Array:
    """T (4, 4) that minimises sum w |T p - q|^2, from the moments of `ops.linearize("point_to_point", ...)`.

    Umeyama, PAMI 1991. A scale that the points don't determine (one point) is 1. `nearest_rotation`: which of the
    permitted rotations maximises trace(R^T C) for the covariance C = sum w q p^T; None: all are permitted.
    """
    weight, mean_p, mean_q = moments[0], moments[1:4] / moments[0], moments[4:7] / moments[0]
    covariance = moments[7:16].reshape(3, 3) / weight - np.outer(mean_q, mean_p)
    if nearest_rotation is None:
        u, singular, vt = np.linalg.svd(covariance)
        sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
        rotation, agreement = (u * sign) @ vt, singular @ sign
    else:
        rotation = nearest_rotation(covariance)
        agreement = (rotation * covariance).sum()
    scale = 1.0
    if with_scaling:
        variance = moments[16] / weight - mean_p @ mean_p
        # below this the variance is rounding of its own two terms
        scale = float(agreement / variance) if variance > 1e-12 * moments[16] / weight else 1.0
    transformation = np.eye(4)
    transformation[:3, :3] = scale * rotation
    transformation[:3, 3] = mean_q - scale * rotation @ mean_p
    return transformation


def point_information(points: Array) -> Array:
    """sum of G^T G over points q (m, 3), G = [-[q]x, I]: (6, 6), rotation first."""
    information = np.zeros((6, 6))
    (x, y, z), second = points.sum(axis=0), points.T @ points
    information[:3, :3] = np.trace(second) * np.eye(3) - second
    information[:3, 3:] = [[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]]
    information[3:, :3] = information[:3, 3:].T
    information[3:, 3:] = len(points) * np.eye(3)
    return information


def euler_motion(xi: Array) -> Array:
    """(4, 4): Rz(xi_2) Ry(xi_1) Rx(xi_0), then the translation xi_3:6; `SE3(chart="euler")` without its tensors."""
    x, y, z, *translation = xi.tolist()
    (sx, cx), (sy, cy), (sz, cz) = ((math.sin(a), math.cos(a)) for a in (x, y, z))
    return np.array(
        [
            [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx, translation[0]],
            [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx, translation[1]],
            [-sy, cy * sx, cy * cx, translation[2]],
            [0.0, 0.0, 0.0, 1.0],
        ]
    )


def nearest_turn(matrix: Array, axis: Array) -> Array:
    """The rotation (3, 3) about a unit axis (3,) that maximises trace(R^T matrix)."""
    x, y, z = axis.tolist()
    hat = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    sine = float((hat * matrix).sum())
    cosine = float(np.trace(matrix) - axis @ matrix @ axis)
    length = math.hypot(sine, cosine)
    if length == 0:
        return np.eye(3)
    turn: Array = np.eye(3) + sine / length * hat + (1 - cosine / length) * (hat @ hat)
    return turn


def solve_least(hessian: Array, right: Array, basis: Array | None = None) -> Array:
    """The smallest x with H x = right for a symmetric (6, 6) H >= 0 that may be singular.

    "Smallest" is with rotations measured at the radius that the curvatures imply, so that the unit of length is free.
    `basis` (6, k), orthonormal, each column a turn or a shift: x minimises x H x / 2 - x right among its combinations.
    """
    curvatures = hessian.diagonal().tolist()
    turning, moving = sum(curvatures[:3]), sum(curvatures[3:])
    radius = math.sqrt(turning / moving) if turning > 0 and moving > 0 else 1.0
    scale = np.array([1.0 / radius] * 3 + [1.0] * 3)
    scaled = hessian * scale * scale[:, None]
    values, vectors = np.linalg.eigh(scaled if basis is None else basis.T @ scaled @ basis)
    vectors = vectors if basis is None else basis @ vectors
    held = values > _RANK * values[-1]
    x: Array = scale * (vectors[:, held] @ (vectors[:, held].T @ (scale * right) / values[held]))
    return x
