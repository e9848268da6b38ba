"""Neighbourhoods in ragged batches of clouds, exact and without gradient; and small pieces that the encoders share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dlc_reg import ops
from dlc_reg.errors import InputError

ABSENT = -1e4  # the logit of padding: exp of it is 0 in every dtype


class Neighbourhoods(NamedTuple):
    """Of each point of a batch (B, N, 3), nearest first. Padding is its own neighbour, and not `real`."""

    rows: Tensor  # (B, N, K) int64, into the cloud
    real: Tensor  # (B, N, K) bool: a neighbour, not a place that was left over
    normals: Tensor | None  # (B, N, 3), signs without meaning


@torch.no_grad()
def neighbourhoods(
    points: Tensor,
    mask: Tensor | None,
    k: int,
    *,
    radius: float | None = None,
    itself: bool = True,
    normals_from: int = 0,
) -> Neighbourhoods:
    """The `k` nearest within `radius`, the point itself being the first of them or left out.

    `normals_from`: neighbours that normals are fitted to, 0 for no normals.
    """
    dtype, points = points.dtype, points.detach().float()
    skip = 0 if itself else 1
    width = max(k + skip, normals_from)
    distances, near = ops.knn_batch(points, points, width, query_mask=mask, points_mask=mask)
    wanted = slice(skip, k + skip)
    real = near[..., wanted] >= 0
    if radius is not None:
        real &= distances[..., wanted] <= radius
    own = torch.arange(points.shape[1], device=points.device)[None, :, None]
    rows = torch.where(real, near[..., wanted], own)
    if not normals_from:
        return Neighbourhoods(rows, real, None)
    normals = ops.neighbour_normals(points, near[..., :normals_from])
    return Neighbourhoods(rows, real, blanked(normals, mask).to(dtype))


def blanked(points: Tensor, mask: Tensor | None) -> Tensor:
    """The points (B, N, 3) with zeros for padding, which may hold anything, NaN too."""
    return points if mask is None else torch.where(mask[..., None], points, 0.0)


def weights(points: Tensor, mask: Tensor | None) -> Tensor:
    """(B, N): one over the number of real points, zero at padding."""
    if mask is None:
        return points.new_full(points.shape[:2], 1 / points.shape[1])
    return mask.to(points.dtype) / mask.sum(1, keepdim=True)


def gather(values: Tensor, rows: Tensor) -> Tensor:
    """values (B, N, C) at rows (B, ...): (B, ..., C)."""
    flat = rows.flatten(1)[..., None].expand(-1, -1, values.shape[-1])
    return values.gather(1, flat).reshape(*rows.shape, values.shape[-1])


def masked_max(values: Tensor, real: Tensor | None, dim: int) -> Tensor:
    """The largest of values (..., C) along `dim` (counted without C's) where `real` (...); zero where there is none."""
    if real is not None:
        values = values.masked_fill(~real[..., None], -torch.inf)
    best = values.amax(dim - 1 if dim < 0 else dim)
    return best if real is None else torch.where(real.any(dim)[..., None], best, 0.0)


def check_counts(**counts: int) -> None:
    """Raises `InputError` for a count below one."""
    for name, count in counts.items():
        if count < 1:
            raise InputError(name, str(count), "a number from 1")


def layers(widths: Sequence[int]) -> nn.Sequential:
    """Linear, LayerNorm and ReLU from each width to the next, a point at a time.

    The papers normalise over the batch; over a point's own channels, neither padding nor another pair has a say.
    """
    steps: list[nn.Module] = []
    for a, b in pairwise(widths):
        steps += [nn.Linear(a, b), nn.LayerNorm(b), nn.ReLU()]
    return nn.Sequential(*steps)
