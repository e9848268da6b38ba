"""How well a refined pose is known: the Hessian, the covariance, and the motions that nothing holds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dlc_reg.registration.frame import Evaluation, Objective
from dlc_reg.registration.freedom import FreeMotion, describe_null_space, free_motions

Array = NDArray[np.float64]

_SAMPLES = 10_000  # correspondences looked at for free motions and the stiffness
_LEAST_STIFFNESS = 0.03  # below it the matches follow the pose, and the measured stiffness is mostly its own error


@dataclass(frozen=True)
class Uncertainty:
    """About the target's local origin, rotation first.

    information: Gauss-Newton Hessian (6, 6).
    covariance: (6, 6), or None where a motion is free or too little is matched.
    sigma: standard deviation of the residuals, or None where too little is matched.
    shared: correspondences that share a target point, in the mean.
    stiffness: of the Hessian, the share that is left when the nearest neighbours are searched anew.
    free: the free motions.
    """

    information: Array
    covariance: Array | None = None
    sigma: float | None = None
    shared: float = 1.0
    stiffness: float = 1.0
    free: tuple[FreeMotion, ...] = ()


def uncertainty(objective: Objective, omega: Tensor, evaluation: Evaluation) -> Uncertainty:
    """What `evaluation`, of `omega` (4, 4), says of the pose.

    The textbook's covariance of least squares is sigma^2 H^-1, with sigma^2 = 2 cost / (residuals - 6): for robust
    kernels the variance of the residuals as the kernel sees them. It takes the residuals for independent and the
    correspondences for given, and is over-confident for both. So here the covariance is

        sigma^2 H^-1  *  shared  /  stiffness^2

    since of correspondences that share a target point only one is new, and since a pose that moves takes its nearest
    neighbours along where the noise is not far below the spacing: the cost then rises by less than H says. The
    covariance of an M-estimator is A^-1 B A^-1, A the derivative of the gradient and B its variance (Huber, 1967); here
    A = stiffness H and B = shared sigma^2 H. `tools/check_covariance.py` holds it to repeated registrations.

    Where a constraint leaves k degrees of freedom, k stands for 6 and the covariance is zero for what is held.
    """
    basis = evaluation.pair.constraint.basis
    information = objective.hessian(evaluation)
    if not evaluation.count:
        return Uncertainty(information)
    free = tuple(_free_motions(evaluation, information))
    freedom = objective.rows * evaluation.count - (6 if basis is None else basis.shape[1])
    if freedom <= 0:
        return Uncertainty(information, free=free)
    variance = 2.0 * evaluation.cost / freedom
    sigma = math.sqrt(variance)
    shared = evaluation.count / len(np.unique(evaluation.matched_targets()))
    if free:
        return Uncertainty(information, None, sigma, shared, free=free)
    permitted = np.eye(6) if basis is None else basis
    try:
        inverse = np.linalg.inv(permitted.T @ information @ permitted)
        root = np.linalg.cholesky(inverse).sum(axis=1)
    except np.linalg.LinAlgError:  # a robust kernel that has left next to no weight to any residual
        return Uncertainty(information, None, sigma, shared)
    step = sigma * math.sqrt(evaluation.count) * permitted @ root
    stiffness = _stiffness(objective, omega, evaluation, step / math.sqrt(len(inverse)))
    covariance = variance * shared / stiffness**2 * permitted @ inverse @ permitted.T
    return Uncertainty(information, covariance, sigma, shared, stiffness)


def _stiffness(objective: Objective, omega: Tensor, evaluation: Evaluation, step: Array) -> float:
    """How much the gradient changes from -`step` to `step` (6,), over what the Hessian says.

    One direction, which has a part of all six, tells as much as six do.
    """
    pair = evaluation.pair
    expected = 2.0 * float(step @ objective.hessian(evaluation) @ step)
    if pair.correspondences is not None or not expected > 0:
        return 1.0
    few = pair.thinned(_SAMPLES)
    ends = [objective.gradient(objective.evaluate(pair.moved(omega, side * step), few)) for side in (1.0, -1.0)]
    found = float(step @ (ends[0] - ends[1])) * len(pair.source) / len(few.source)
    return min(max(found / expected, _LEAST_STIFFNESS), 1.0)


def _free_motions(evaluation: Evaluation, information: Array) -> list[FreeMotion]:
    """From the target's normals where it has any: point-to-point's own Hessian does not see that a plane slides.

    Where colours have a say, from the Hessian: they hold what the normals leave free.
    """
    pair = evaluation.pair
    indices = evaluation.matched_targets()
    indices = indices[:: max(1, len(indices) // _SAMPLES)]
    points = pair.target.points.numpy()[indices].astype(np.float64)
    if pair.target_normals is not None and pair.target_intensities is None:
        normals = pair.target_normals.numpy()[indices].astype(np.float64)
        return free_motions(points + pair.target_origin, normals, pair.constraint.basis)
    centre = points.mean(axis=0)
    # not from the curvatures, which say nothing about the size of a sphere
    radius = float(np.sqrt(((points - centre) ** 2).sum(axis=1).mean())) or 1.0
    shift = np.eye(6)
    shift[3:, :3] = [[0.0, -centre[2], centre[1]], [centre[2], 0.0, -centre[0]], [-centre[1], centre[0], 0.0]]
    about_centre = shift.T @ information @ shift
    scale = np.array([1.0 / radius] * 3 + [1.0] * 3)
    scaled = about_centre * scale * scale[:, None]
    return describe_null_space(scaled, centre + pair.target_origin, radius, pair.constraint.basis)
