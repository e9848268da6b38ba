"""Soft assignment on a CUDA device, with the gradient of its energies; `soft_assignment` has checked the arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dlc_reg.ops import _cuda
from dlc_reg.ops._assignment_problem import Problem

SCRATCH = 1 << 28  # bytes: poses are taken in turns where more would be needed


def soft_assignment(problem: Problem, both_ways: bool, moments: bool) -> tuple[Tensor, Tensor | None]:
    """Energies (K, B), which carry gradients, and poses after a step (K, B, 4, 4), which do not."""
    energy, after, *_ = _Energy.apply(both_ways, moments, *problem)  # type: ignore[no-untyped-call]
    return energy, after if moments else None


def _forward(problem: Problem, both_ways: bool, moments: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count, batch, n, m = problem.sizes()
    energy = problem.poses.new_empty((count, batch))
    after = torch.empty_like(problem.poses) if moments else problem.poses.new_empty(0)
    rows = problem.source.new_empty((count, batch, n))
    columns = problem.source.new_empty((count, batch, m)) if both_ways else problem.source.new_empty(0)
    one = problem._replace(poses=problem.poses[:1]).on_device(both_ways).bytes(moments)
    step = max(1, SCRATCH // max(1, one))
    for first in range(0, count, step):
        some = slice(first, first + step)
        native = problem._replace(poses=problem.poses[some]).on_device(both_ways)
        scratch = _cuda.memory(energy, native.bytes(moments))
        for row, affinity in problem.strips():
            native.sweep(*_cuda.call(energy), moments, affinity.data_ptr(), row, scratch.data_ptr())
        native.finish(
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
    def forward(ctx: Any, both_ways: bool, moments: bool, *tensors: Any) -> tuple[Tensor, ...]:
        problem = Problem(*tensors)
        answer = _forward(problem, both_ways, moments)
        ctx.both_ways = both_ways
        ctx.save_for_backward(*problem, *answer[2:])
        ctx.mark_non_differentiable(*answer[1:])
        return answer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        size = len(Problem._fields)
        problem = Problem(*ctx.saved_tensors[:size])
        return None, None, *_gradient(problem, ctx.both_ways, grad.contiguous(), *ctx.saved_tensors[size:])


def _gradient(
    problem: Problem, both_ways: bool, grad: Tensor, row_logs: Tensor, column_logs: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradient by each of the problem's tensors. Sums over pairs of points are native; what is left is small.

    With d_ij = dL/dl_ij and l_ij = a_ij - beta |x_i - q_j|^2, x_i = R p_i + t.
    """
    native = problem.on_device(both_ways)
    chunks, tiles = native.parts()
    count, batch, n, m = problem.sizes()
    rows = problem.source.new_empty((count, batch, chunks, n, 4))
    columns = problem.source.new_empty((count, batch, tiles, m, 4))
    spread = grad.new_empty((count, batch, chunks * tiles))
    centers = grad.new_empty((batch, 2, 3))
    scratch = _cuda.memory(grad, native.gradient_bytes())
    by_features, by_target_features = problem.affinity, problem.target_features
    if by_target_features is not None:
        by_features, by_target_features = torch.empty_like(by_features), torch.zeros_like(by_target_features)
    for row, strip in problem.strips():
        d = torch.empty_like(strip)
        places = (x.data_ptr() for x in (grad, row_logs, column_logs, d, rows, columns, spread, centers, scratch))
        native.gradient(*_cuda.call(grad), strip.data_ptr(), row, *places)
        if by_target_features is None or problem.target_features is None:
            by_features = d
            continue
        some = slice(row, row + strip.shape[1])
        with torch.autocast(d.device.type, enabled=False):
            by_features[:, some] = d @ problem.target_features
            by_target_features += d.mT @ problem.affinity[:, some]
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
    by_biases = [None] * 2 if by_target_features is None else [x[..., 0].sum(0).float() for x in (of_row, of_column)]
    return (
        (by_moved @ rotation).sum(0).float(),
        by_target.float(),
        by_poses,
        -spread.sum(-1).sum(0),
        (grad * by_outlier).sum(0),
        by_weights[0].float(),
        by_weights[1].float(),
        by_features,
        by_target_features,
        *by_biases,
    )
