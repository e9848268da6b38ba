"""Matching with both sides' marginals held: entropic optimal transport with slack, as an energy over poses.

    E(omega) = 1 + 1/(N + M) min_P [ sum_ij h(P_ij) - P_ij L_ij + sum_i h(s_i) + sum_j h(t_j) ],   h(x) = x (log x - 1)
    L_ij = a_ij - beta |R p_i + t - q_j|^2,    s_i = 1 - sum_j P_ij,    t_j = 1 - sum_i P_ij

s and t are what stays unmatched, at no cost: E is 0 where nothing is matched, and negative where matching pays. The
minimum is a P with P_ij = u_i exp(L_ij) v_j, s = u, t = v, which Sinkhorn's rounds find (Gold et al., 1998; Yew and
Lee, CVPR 2020). E as a minimum over P of functions linear in the squared distances, the P that it is reached at and
then Procrustes never raise it.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from dlc_reg.registration.assignment import Assignment, procrustes, squared_distances, transform

RELAXATION = 1.4  # of log u and log v; 1 is Sinkhorn's own round
LARGEST = 50.0  # of L: exp of it, and sums of some thousand such, are finite in float32
CHECKED = 8  # rounds between two looks at whether they still change anything
TOLERANCE = 1e-5  # of log v


class Transport:
    """The energy, its matching and its step, over the data of `SoftAssignment` without its outlier level.

    `rounds`: at most so many before the scalings count as found; gradients flow through `unrolled` more, which repeat
    the paper's. The energy's own gradient, -P, is exact without them.
    """

    def __init__(self, rounds: int = 120, unrolled: int = 5) -> None:
        self.rounds, self.unrolled = rounds, unrolled

    def value(self, omega: Tensor, data: Assignment) -> Tensor:
        """E, (*lead, B), by the dual of the minimum: the mean over all points of log u + 1 - u, less that of P.

        Padding has u = 1 and adds nothing.
        """
        kernel = self._kernel(omega, data)
        u, v = self._scalings(kernel)
        slack = sum((x.log() + (1 - x)).sum(-1) for x in (u, v))
        points = sum((w > 0).sum(-1) for w in (data.source_weight, data.target_weight))
        value: Tensor = (slack - (u * _rows(kernel, v)).sum(-1)) / points
        return value

    def responsibilities(self, omega: Tensor, data: Assignment) -> Tensor:
        """P, (*lead, B, N, M)."""
        kernel = self._kernel(omega, data)
        u, v = self._scalings(kernel)
        return u[..., :, None] * kernel * v[..., None, :]

    def step(self, omega: Tensor, data: Assignment) -> Tensor:
        """The pose (*lead, B, 4, 4) that is best for P."""
        return procrustes(self.responsibilities(omega, data), data.source, data.target)

    @staticmethod
    def _kernel(omega: Tensor, data: Assignment) -> Tensor:
        apart = squared_distances(transform(omega, data.source), data.target)
        logits = data.matrix() - data.sharpness[..., None, None] * apart
        return logits.clamp(max=LARGEST).exp()

    def _scalings(self, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """u (*lead, B, N) and v (*lead, B, M), both in (0, 1]; no division by zero, since slack is always there."""
        with torch.no_grad():
            v = self._converged(kernel.detach())
        watched = torch.is_grad_enabled() and kernel.requires_grad
        with nullcontext() if watched else torch.no_grad():
            for _ in range(self.unrolled if watched else 1):
                u = 1 / (1 + _rows(kernel, v))
                v = 1 / (1 + _columns(kernel, u))
            u = 1 / (1 + _rows(kernel, v))
        return u, v

    def _converged(self, kernel: Tensor) -> Tensor:
        # where matches are one to one u is near v: the start solves v (1 + v sum_i K_ij) = 1
        v = 2 / (1 + (1 + 4 * kernel.sum(-2)).sqrt())
        u = 1 / (1 + _rows(kernel, v))
        for number in range(1, self.rounds + 1):
            new = v ** (1 - RELAXATION) / (1 + _columns(kernel, u)) ** RELAXATION
            change = (new / v).log().abs().amax() if number % CHECKED == 0 else None
            v = new
            u = u ** (1 - RELAXATION) / (1 + _rows(kernel, v)) ** RELAXATION
            if change is not None and change < TOLERANCE:
                break
        return v


def _rows(kernel: Tensor, v: Tensor) -> Tensor:
    """sum_j K_ij v_j."""
    return (v[..., None, :] @ kernel.mT)[..., 0, :]


def _columns(kernel: Tensor, u: Tensor) -> Tensor:
    """sum_i u_i K_ij."""
    return (u[..., None, :] @ kernel)[..., 0, :]
