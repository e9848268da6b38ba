"""The update rules: how a prediction moves towards a smaller objective.

Each keeps in its state what it knows at the present prediction, so that the record it returns is about the prediction
it reached. The second-order rules take the objective's own `linearize(omega, data)` -> (H (..., k, k), b (..., k),
record), where value + b^T xi + 1/2 xi^T H xi approximates the objective along retract(omega, xi) and the record holds
"value"; an objective that has only `residual(omega, data)` (..., m), with the value 1/2 |r|^2, is linearised here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlc_reg.errors import InputError
from dlc_reg.iterate import Record, Status
from dlc_reg.manifold import Manifold


@dataclass(frozen=True)
class FixedPoint:
    """omega <- objective.step(omega, data), for objectives that know their step (EM, a closed form, a network).

    The record's "step_norm" is the Frobenius norm of the change of omega.
    """

    def init(self, objective: Any, omega: Tensor, data: Any) -> tuple[None, Record]:
        return None, {"value": objective.value(omega, data)}

    def step(self, objective: Any, omega: Tensor, data: Any, state: None) -> tuple[Tensor, None, Record]:
        reached = objective.step(omega, data)
        value = objective.value(reached, data)
        change = (reached - omega).detach().flatten(value.ndim)
        return reached, None, {"value": value, "step_norm": change.norm(dim=-1)}


@dataclass(frozen=True)
class GradientDescent:
    """xi = -learning_rate * gradient of value(retract(omega, xi)) at xi = 0."""

    manifold: Manifold
    learning_rate: float

    def init(self, objective: Any, omega: Tensor, data: Any) -> tuple[Tensor, Record]:
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            xi = _zero_tangent(self.manifold, omega).requires_grad_()
            value = objective.value(self.manifold.retract(omega, xi), data)
            if not value.requires_grad:
                raise InputError(
                    "objective",
                    f"{type(objective).__name__}, whose value has no gradient",
                    "one that autograd can follow",
                )
            (gradient,) = torch.autograd.grad(value.sum(), xi, create_graph=wanted)
        return gradient, {"value": value if wanted else value.detach()}

    def step(self, objective: Any, omega: Tensor, data: Any, state: Tensor) -> tuple[Tensor, Tensor, Record]:
        xi = -self.learning_rate * state
        omega = self.manifold.retract(omega, xi)
        gradient, record = self.init(objective, omega, data)
        return omega, gradient, {**record, "step_norm": xi.detach().norm(dim=-1)}


class System(NamedTuple):
    """A quadratic model of an objective about omega: value + b^T xi + 1/2 xi^T H xi."""

    hessian: Tensor
    gradient: Tensor
    record: Record


@dataclass(frozen=True)
class GaussNewton:
    """Solves H xi = -b and moves by xi.

    Where H leaves a direction free, nothing is moved: the status is `SINGULAR` and the record's "free_direction" (k,)
    a unit tangent vector along it. In a batch, the elements that are singular stay ("singular" (B,), "free_direction"
    (B, k)) while the others go on. `LevenbergMarquardt` moves in the other directions and needs no full rank.
    """

    manifold: Manifold

    def init(self, objective: Any, omega: Tensor, data: Any) -> tuple[System, Record]:
        system = linearize(objective, self.manifold, omega, data)
        return system, system.record

    def step(self, objective: Any, omega: Tensor, data: Any, state: System) -> tuple[Tensor, System, Record]:
        matrix, scale = _equilibrated(state.hessian)
        free, singular = _free_direction(matrix, scale)
        flat: Record = {"singular": singular, "free_direction": free} if singular.any() else {}
        if singular.all():
            return omega, state, {**state.record, **flat, "status": Status.SINGULAR}
        # the singular elements solve a system that is harmless, to the gradients too, and their answer is left
        matrix, scale = (
            torch.where(singular[..., None, None], _identity_like(matrix), matrix),
            torch.where(singular[..., None], 1.0, scale),
        )
        xi = -_solve(matrix, scale, state.gradient)
        xi = torch.where(singular[..., None], 0.0, xi)
        omega = self.manifold.retract(omega, xi)
        system, record = self.init(objective, omega, data)
        return omega, system, {**record, **flat, "step_norm": xi.detach().norm(dim=-1)}


class Damped(NamedTuple):
    """Levenberg and Marquardt's state: the model, its damping, and by how much to raise that next."""

    system: System
    damping: Tensor
    growth: Tensor


@dataclass(frozen=True)
class LevenbergMarquardt:
    """Solves (H + damping * diag H) xi = -b; only steps that lower the value are taken, so it never rises.

    The damping follows Nielsen's rule (Madsen, Nielsen and Tingleff, Methods for Non-Linear Least Squares Problems,
    2004, algorithm 3.16). The status is `CONVERGED` where no step lowers the value any more.
    """

    manifold: Manifold
    damping: float = 1e-3

    def init(self, objective: Any, omega: Tensor, data: Any) -> tuple[Damped, Record]:
        system = linearize(objective, self.manifold, omega, data)
        damping = torch.full_like(system.gradient[..., 0], self.damping).detach()
        return Damped(system, damping, torch.full_like(damping, 2.0)), system.record

    def step(self, objective: Any, omega: Tensor, data: Any, state: Damped) -> tuple[Tensor, Damped, Record]:
        system, damping, growth = state
        matrix, scale = _equilibrated(system.hessian)
        value, epsilon = torch.as_tensor(system.record["value"]).detach(), torch.finfo(omega.dtype).eps
        pending, taken = torch.ones_like(damping, dtype=torch.bool), torch.zeros_like(system.gradient)
        for _ in range(_TRIES):
            xi = -_solve(matrix + damping[..., None, None] * _identity_like(matrix), scale, system.gradient)
            predicted = -(system.gradient * xi + 0.5 * xi * (system.hessian @ xi[..., None])[..., 0]).sum(-1).detach()
            pending = pending & (predicted > epsilon * value.abs())
            if not pending.any():
                break
            with torch.no_grad():
                ratio = (value - value_of(objective, self.manifold.retract(omega, xi), data)) / predicted
            good = pending & (ratio > 0)
            taken = torch.where(good[..., None], xi, taken)
            shrunk = damping * (1 - (2 * ratio - 1) ** 3).clamp(min=1 / 3)
            raised = torch.where(pending, damping * growth, damping)
            growth = torch.where(good, 2.0, torch.where(pending, 2 * growth, growth))
            damping = torch.where(good, shrunk, raised).clamp(min=_tolerance(omega.dtype))
            pending = pending & ~good
        moved = (taken != 0).any(-1)
        if not moved.any():
            return omega, state, {**system.record, "status": Status.CONVERGED}
        omega = self.manifold.retract(omega, taken)
        system = linearize(objective, self.manifold, omega, data)
        record = {**system.record, "step_norm": taken.detach().norm(dim=-1), "damping": damping}
        return omega, Damped(system, damping, growth), record


_TRIES = 12  # the damping grows by 2^66 over as many


def value_of(objective: Any, omega: Tensor, data: Any) -> Tensor:
    """The objective's value, or 1/2 |r|^2 of one that has only residuals."""
    if hasattr(objective, "value"):
        value: Tensor = objective.value(omega, data)
        return value
    residual: Tensor = objective.residual(omega, data)
    return 0.5 * residual.square().sum(-1)


def linearize(objective: Any, manifold: Manifold, omega: Tensor, data: Any) -> System:
    """The objective's own `linearize`, or Gauss-Newton's J^T J and J^T r by forward-mode derivatives of `residual`.

    A batch's residuals (B, m) have to depend each on its own omega only.
    """
    if hasattr(objective, "linearize"):
        return System(*objective.linearize(omega, data))
    if not hasattr(objective, "residual"):
        raise InputError(
            "objective", type(objective).__name__, "a `linearize` or `residual` method for this update rule"
        )

    def residual(xi: Tensor) -> Tensor:
        out: Tensor = objective.residual(manifold.retract(omega, xi), data)
        return out

    zero = _zero_tangent(manifold, omega)
    directions = torch.eye(manifold.dof, dtype=omega.dtype, device=omega.device)
    directions = directions.reshape(manifold.dof, *[1] * (zero.ndim - 1), manifold.dof).expand(-1, *zero.shape)
    r = residual(zero)
    columns = torch.func.vmap(lambda direction: torch.func.jvp(residual, (zero,), (direction,))[1])(directions)
    jacobian = columns.movedim(0, -1)
    gradient = (jacobian.mT @ r[..., None])[..., 0]
    return System(jacobian.mT @ jacobian, gradient, {"value": 0.5 * r.square().sum(-1)})


def _zero_tangent(manifold: Manifold, omega: Tensor) -> Tensor:
    batch = omega.shape[: omega.ndim - len(manifold.shape)]
    return torch.zeros(*batch, manifold.dof, dtype=omega.dtype, device=omega.device)


def _tolerance(dtype: torch.dtype) -> float:
    """Curvature, relative to the largest, that rounding can make of nothing: 4e-11 in float64, 2e-5 in float32."""
    return float(torch.finfo(dtype).eps ** (2 / 3))


def _equilibrated(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """(S H S, s) with S = diag(s) giving a unit diagonal, so that units of the tangent space don't matter.

    The floor keeps a column of the Jacobian that is mere rounding (1e3 epsilon of the largest) from counting as held.
    """
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    info = torch.finfo(hessian.dtype)
    floor = (1e3 * info.eps) ** 2 / _tolerance(hessian.dtype) * diagonal.amax(-1, keepdim=True).detach()
    scale = torch.maximum(diagonal, floor.clamp(min=info.tiny)).rsqrt()
    return scale[..., :, None] * hessian * scale[..., None, :], scale


def _identity_like(matrix: Tensor) -> Tensor:
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def _solve(matrix: Tensor, scale: Tensor, gradient: Tensor) -> Tensor:
    """H^-1 gradient, where `matrix` is H equilibrated by `scale`; not finite where there is none."""
    solution: Tensor = torch.linalg.solve_ex(matrix, (scale * gradient)[..., None])[0]
    return scale * solution[..., 0]


def _free_direction(matrix: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The unit tangent vector (..., k) that the equilibrated matrix holds least; (...), whether that is not at all."""
    values, vectors = torch.linalg.eigh(torch.nan_to_num(matrix.detach()))
    direction = scale.detach() * vectors[..., 0]
    direction = direction / direction.norm(dim=-1, keepdim=True)
    return direction, values[..., 0] <= _tolerance(matrix.dtype) * values[..., -1]
