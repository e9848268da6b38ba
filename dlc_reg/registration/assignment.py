"""Soft assignment: an energy over poses in which every source point matches every target point a little.

    E(omega) = - (1/N) sum_i log( sum_j exp(a_ij - beta |R p_i + t - q_j|^2) + exp(o) )

a_ij: affinity of the points' features; beta: sharpness; o: outlier level. Its expectation-maximisation step,
responsibilities and then weighted Procrustes in closed form, never raises E. With a = 0 and beta -> infinity it is ICP.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from dlc_reg import ops
from dlc_reg.errors import InputError

NEGLIGIBLE = 60.0  # below the outlier's logit: adds e^-60 of it, and an exp that underflows takes fifteen times as long


class Assignment(NamedTuple):
    """A batch of pairs with what their features say; it never changes while the pose moves."""

    source: Tensor  # (B, N, 3)
    target: Tensor  # (B, M, 3)
    affinity: Tensor | ops.Affinity  # (B, N, M), or its factors; a large negative number where a point is padding
    sharpness: Tensor  # () or (B,): beta, 1 / length^2
    outlier: Tensor | None  # () or (B,): o; None: every point has a match
    source_weight: Tensor  # (B, N): sums to one over the real points
    target_weight: Tensor  # (B, M)

    def matrix(self, rows: slice = slice(None)) -> Tensor:
        """Some rows of the affinities, (B, rows, M), all by default; formed here where their factors are given."""
        return self.affinity[..., rows, :] if isinstance(self.affinity, Tensor) else self.affinity.matrix(rows)


class SoftAssignment:
    """The energy, its responsibilities and its step. Poses are (*lead, B, 4, 4): every ray of a batch in one call.

    `both_ways` adds the same energy with source and target exchanged and takes the mean: it is then symmetric, and a
    target point that nothing explains counts too.
    """

    def __init__(self, *, both_ways: bool = False) -> None:
        self.both_ways = both_ways

    def value(self, omega: Tensor, data: Assignment) -> Tensor:
        """E, (*lead, B)."""
        native = _native(omega, data, self.both_ways, step=False)
        if native is not None:
            return native
        logits = self._logits(omega, data)
        energy = self._one_way(logits, data.source_weight, data.outlier)
        if self.both_ways:
            energy = (energy + self._one_way(logits.mT, data.target_weight, data.outlier)) / 2
        return energy

    def responsibilities(self, omega: Tensor, data: Assignment) -> Tensor:
        """(*lead, B, N, M): -dE/da, how much of the unit mass of a cloud each pair of points explains."""
        logits = self._logits(omega, data)
        shares = _shares(logits, data.outlier) * data.source_weight[..., :, None]
        if self.both_ways:
            backward = _shares(logits.mT, data.outlier) * data.target_weight[..., :, None]
            shares = (shares + backward.mT) / 2
        return shares

    def step(self, omega: Tensor, data: Assignment) -> Tensor:
        """The pose after one step of expectation-maximisation, (*lead, B, 4, 4).

        Neal and Hinton, 1998: the responsibilities make a bound of E that touches it at omega; Procrustes minimises it.
        """
        native = _native(omega, data, self.both_ways, step=True)
        if native is not None:
            return native
        return procrustes(self.responsibilities(omega, data), data.source, data.target)

    def negative_log_likelihood(self, omega: Tensor, data: Assignment, volume: float = 4 * math.pi / 3) -> Tensor:
        """(B,): E + log Z at the poses omega (B, 4, 4), Z_i = sum_j exp(a_ij) (pi / beta)^1.5 + exp(o) volume.

        A cloud is then drawn from a mixture of Gaussians about the other's points and of a uniform density over
        `volume`, so that features, beta and o can be learned at a known pose. Affinities have to be 0 or less: the sums
        are formed as they are, which takes a quarter of the exponentials that their logarithms would.
        """
        assert data.outlier is not None
        distances = squared_distances(transform(omega, data.source), data.target)
        gaussian = (-data.sharpness[..., None, None] * distances).clamp(min=data.outlier[..., None, None] - NEGLIGIBLE)
        prior = data.matrix().exp()
        joint = prior * gaussian.exp()
        uniform = data.outlier.exp()[..., None]
        inlier = (math.pi / data.sharpness)[..., None] ** 1.5
        losses = [
            (weight * (inlier * prior.sum(side) + uniform * volume).log() - weight * (joint.sum(side) + uniform).log())
            for weight, side in ((data.source_weight, -1), (data.target_weight, -2))[: 1 + self.both_ways]
        ]
        return torch.stack([loss.sum(-1) for loss in losses]).mean(0)

    @staticmethod
    def _logits(omega: Tensor, data: Assignment) -> Tensor:
        logits = data.matrix() - data.sharpness[..., None, None] * squared_distances(
            transform(omega, data.source), data.target
        )
        return logits if data.outlier is None else logits.clamp(min=data.outlier[..., None, None] - NEGLIGIBLE)

    @staticmethod
    def _one_way(logits: Tensor, weight: Tensor, outlier: Tensor | None) -> Tensor:
        explained = logits.logsumexp(-1)
        if outlier is not None:
            explained = _log_sum(explained, outlier[..., None])
        return -(weight * explained).sum(-1)


def _native(omega: Tensor, data: Assignment, both_ways: bool, step: bool) -> Tensor | None:
    """E (*lead, B), or with `step` the next poses, by the native operator; None where that has no answer."""
    source, target, affinity, sharpness, outlier, u, v = data
    if outlier is None or omega.ndim < 3:
        return None
    parts = (affinity,) if isinstance(affinity, Tensor) else affinity
    if not _plain(omega, source, target, *parts, sharpness, outlier, u, v):
        return None
    poses = omega.flatten(0, -4) if omega.ndim > 3 else omega[None]
    try:
        energy, after = ops.soft_assignment(
            source,
            target,
            affinity,
            poses,
            sharpness,
            outlier,
            u,
            v,
            both_ways=both_ways,
            moments=step,
            num_threads=torch.get_num_threads(),
        )
    except InputError:  # a pair without B, NaN on its way through: torch's answer
        return None
    return energy.to(omega).reshape(omega.shape[:-2]) if after is None else after.to(omega).reshape(omega.shape)


def _plain(*tensors: Tensor) -> bool:
    """Whether these are float32 numbers where operators work that nothing differentiates, maps over or compiles."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return False
    return all(
        type(t) in (Tensor, torch.nn.Parameter)
        and t.dtype == torch.float32
        and ops.has_kernels(t)
        and forward_ad.unpack_dual(t).tangent is None  # type: ignore[no-untyped-call]
        for t in tensors
    )


def _shares(logits: Tensor, outlier: Tensor | None) -> Tensor:
    """Softmax over the last dimension and the outlier, which gets no column."""
    if outlier is None:
        return logits.softmax(-1)
    total = _log_sum(logits.logsumexp(-1, keepdim=True), outlier[..., None, None])
    return (logits - total).exp()


def _log_sum(a: Tensor, b: Tensor) -> Tensor:
    """log(exp(a) + exp(b)); torch.logaddexp's second derivative is NaN where the two lie far apart."""
    return torch.stack([a, b.expand_as(a)]).logsumexp(0)


def transform(omega: Tensor, points: Tensor) -> Tensor:
    """R p + t: poses (*lead, B, 4, 4) and points (B, N, 3) -> (*lead, B, N, 3)."""
    return points @ omega[..., :3, :3].mT + omega[..., None, :3, 3]


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2: (..., N, 3), (..., M, 3) -> (..., N, M), through one matrix product.

    Good to about 1e-6 of the squared size of the clouds in float32: enough here, too little for nearest neighbours.
    """
    cross = a @ b.mT
    return (a.square().sum(-1)[..., :, None] - 2 * cross + b.square().sum(-1)[..., None, :]).clamp(min=0)


def procrustes(weights: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """T (..., 4, 4) that minimises sum_ij w_ij |R p_i + t - q_j|^2 (Kabsch 1976; Umeyama, PAMI 1991).

    `weights` (..., N, M), `source` (..., N, 3), `target` (..., M, 3). Weights that are all (nearly) zero give no
    rotation: R is then the nearest to it that the rounding of the sums says.
    """
    of_source = weights.sum(-1)
    mass = of_source.sum(-1).clamp(min=torch.finfo(weights.dtype).tiny ** 0.5)[..., None]
    explained = weights @ target  # (..., N, 3): sum_j w_ij q_j
    mean_source = (of_source[..., None] * source).sum(-2) / mass
    mean_target = explained.sum(-2) / mass
    covariance = explained.mT @ source / mass[..., None] - mean_target[..., :, None] * mean_source[..., None, :]
    rotation = polar_rotation(covariance)
    translation = mean_target - (rotation @ mean_source[..., None])[..., 0]
    top = torch.cat([rotation, translation[..., None]], dim=-1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = 1
    return torch.cat([top, bottom], dim=-2)


def polar_rotation(matrix: Tensor) -> Tensor:
    """The rotation (..., 3, 3) nearest to `matrix`, R = U diag(1, 1, det) V^T, with a gradient that two equal singular
    values leave finite: only sums of two of them, the last with its sign, are divided by."""
    rotation: Tensor = _PolarRotation.apply(matrix)  # type: ignore[no-untyped-call]
    return rotation


class _PolarRotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        u, s, vt = torch.linalg.svd(matrix.double())
        sign = torch.det(u) * torch.det(vt)
        flip = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], dim=-1)
        rotation = (u * flip[..., None, :]) @ vt
        ctx.save_for_backward(rotation, s * flip, vt)
        nearest: Tensor = rotation.to(matrix.dtype)
        return nearest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # M = R P, P symmetric: R^T dR = X with V^T (R^T dM - dM^T R) V = S X + X S
        rotation, s, vt = ctx.saved_tensors
        inner = vt @ rotation.mT @ gradient.double() @ vt.mT
        sums = s[..., :, None] + s[..., None, :]
        # where a turn is not held, its gradient is cut off instead of growing without end
        floor = 1e-4 * s[..., :1, None].abs() + torch.finfo(torch.float32).tiny
        scaled = (inner - inner.mT) / torch.where(sums.abs() < floor, floor, sums)
        answer: Tensor = (rotation @ vt.mT @ scaled @ vt).to(gradient.dtype)
        return answer
