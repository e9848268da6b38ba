"""Soft assignment on a CUDA device, with the gradient of its energies; `soft_assignment` has checked the arguments."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dlc_reg import _core
from dlc_reg.ops import _cuda

SCRATCH = 1 << 28  # bytes: poses are taken in turns where more would be needed


class Problem(NamedTuple):
    """Contiguous tensors on one device; poses, sharpness and outlier are float64, the rest float32."""

    source: Tensor  # (B, N, 3)
    target: Tensor  # (B, M, 3)
    affinity: Tensor  # (B, N, M)
    poses: Tensor  # (K, B, 4, 4)
    sharpness: Tensor  # (B,)
    outlier: Tensor  # (B,)
    source_weight: Tensor  # (B, N)
    target_weight: Tensor  # (B, M)

    def native(self, both_ways: bool) -> _core.CudaAssignment:
        batch, n, m = self.affinity.shape
        arguments: tuple[Any, ...] = (*(x.data_ptr() for x in self), len(self.poses), batch, n, m, both_ways)
        return _core.CudaAssignment(*arguments)


def soft_assignment(problem: Problem, both_ways: bool, moments: bool) -> tuple[Tensor, Tensor | None]:
    """Energies (K, B), which carry gradients, and poses after a step (K, B, 4, 4), which do not."""
    energy, after, *_ = _Energy.apply(both_ways, moments, *problem)  # type: ignore[no-untyped-call]
    return energy, after if moments else None


def _forward(problem: Problem, both_ways: bool, moments: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count, batch = problem.poses.shape[:2]
    n, m = problem.affinity.shape[1:]
    energy = problem.poses.new_empty((count, batch))
    after = torch.empty_like(problem.poses) if moments else problem.poses.new_empty(0)
    rows = problem.source.new_empty((count, batch, n))
    columns = problem.source.new_empty((count, batch, m)) if both_ways else problem.source.new_empty(0)
    one = problem._replace(poses=problem.poses[:1]).native(both_ways).bytes(moments)
    step = max(1, SCRATCH // max(1, one))
    for first in range(0, count, step):
        some = slice(first, first + step)
        native = problem._replace(poses=problem.poses[some]).native(both_ways)
        scratch = _cuda.memory(energy, native.bytes(moments))
        native.run(
            *_cuda.call(energy),
            energy[some].data_ptr(),
            after[some].data_ptr() if moments else 0,
            rows[some].data_ptr(),
            columns[some].data_ptr() if both_ways else 0,
            scratch.data_ptr(),
        )
    return energy, after, rows, columns


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both_ways: bool, moments: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        problem = Problem(*tensors)
        answer = _forward(problem, both_ways, moments)
        ctx.both_ways = both_ways
        ctx.save_for_backward(*tensors, *answer[2:])
        ctx.mark_non_differentiable(*answer[1:])
        return answer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        problem = Problem(*ctx.saved_tensors[:8])
        return None, None, *_gradient(problem, ctx.both_ways, grad.contiguous(), *ctx.saved_tensors[8:])


def _gradient(problem: Problem, both_ways: bool, grad: Tensor, row_logs: Tensor, column_logs: Tensor) -> list[Tensor]:
    """The gradient by each of the problem's tensors. Sums over pairs of points are native; what is left is small.

    With d_ij = dL/dl_ij and l_ij = a_ij - beta |x_i - q_j|^2, x_i = R p_i + t.
    """
    native = problem.native(both_ways)
    chunks, tiles = native.parts()
    count, batch = grad.shape
    n, m = problem.affinity.shape[1:]
    affinity = torch.empty_like(problem.affinity)
    rows = affinity.new_empty((count, batch, chunks, n, 4))
    columns = affinity.new_empty((count, batch, tiles, m, 4))
    spread = grad.new_empty((count, batch, chunks * tiles))
    centers = grad.new_empty((batch, 2, 3))
    scratch = _cuda.memory(grad, native.gradient_bytes())
    native.gradient(
        *_cuda.call(grad),
        *(x.data_ptr() for x in (grad, row_logs, column_logs, affinity, rows, columns, spread, centers, scratch)),
    )
    of_row, of_column = rows.sum(2, dtype=torch.float64), columns.sum(2, dtype=torch.float64)
    source, target, center = problem.source.double(), problem.target.double(), centers[:, 1]
    rotation, translation = problem.poses[..., :3, :3], problem.poses[..., :3, 3]
    beta = problem.sharpness[:, None, None]
    moved = source @ rotation.mT + (translation - center)[..., None, :]  # (K, B, N, 3), about the target's centre
    by_moved = -2 * beta * (of_row[..., :1] * moved - of_row[..., 1:])
    by_target = 2 * beta * (of_column[..., 1:] - of_column[..., :1] * (target - center[:, None])).sum(0)
    by_poses = torch.zeros_like(problem.poses)
    by_poses[..., :3, :3] = by_moved.mT @ source
    by_poses[..., :3, 3] = by_moved.sum(-2)
    # a row's logarithm is relative to the outlier: log(total) = row_log + o, and d log(total) / do = exp(-row_log)
    half = -0.5 if both_ways else -1.0
    logs = [(problem.source_weight, row_logs), (problem.target_weight, column_logs)][: 1 + both_ways]
    by_outlier = half * torch.stack([(w.double() * (-log.double()).exp()).sum(-1) for w, log in logs]).sum(0)
    by_weights = [half * (grad[..., None] * (log.double() + problem.outlier[:, None])).sum(0) for _, log in logs]
    if not both_ways:
        by_weights.append(torch.zeros_like(problem.target_weight, dtype=torch.float64))
    return [
        (by_moved @ rotation).sum(0).float(),
        by_target.float(),
        affinity,
        by_poses,
        -spread.sum(-1).sum(0),
        (grad * by_outlier).sum(0),
        by_weights[0].float(),
        by_weights[1].float(),
    ]
