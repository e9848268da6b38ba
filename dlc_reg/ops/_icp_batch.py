"""ICP on a batch of pairs of small clouds, from search trees to poses in one native call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlc_reg import _core
from dlc_reg.errors import InputError
from dlc_reg.ops import _cuda, _library, _validate
from dlc_reg.ops._linearize import KINDS
from dlc_reg.ops._validate import Array

_KINDS = {kind: KINDS[kind] for kind in ("point_to_plane", "point_to_point")}
_LEAST_NEIGHBOURS = 3  # of a normal
_INT32 = 2**31 - 1


@dataclass(frozen=True)
class BatchResult:
    """What `icp_batch` found, tensors on the source's device."""

    transformations: Tensor
    """(B, 4, 4) float64, T_target_source: p' = R p + t"""
    fitness: Tensor
    """(B,) float64, share of the source's points that have a correspondence at that pose"""
    inlier_rmse: Tensor
    """(B,) float64, root mean square distance of the correspondences, in the points' unit"""
    iterations: Tensor
    """(B,) int64, steps taken"""
    converged: Tensor
    """(B,) bool"""


def icp_batch(
    source: Array,
    target: Array,
    init: Array | None = None,
    *,
    max_distance: float | None,
    source_mask: Array | None = None,
    target_mask: Array | None = None,
    kind: str = "point_to_plane",
    max_iterations: int = 30,
    tolerance: float = 1e-6,
    neighbours: int = 20,
    num_threads: int | None = None,
) -> BatchResult:
    """Registers B pairs of clouds. Each pair is the job of one thread, or of one block of a CUDA device, where all
    arguments then have to be; nothing comes back to Python in between.

    A pair's answer is that of `dlc_reg.registration.icp.icp` with `PointToPoint()` or `PointToPlane()`, the target's
    normals estimated: the same steps, in Open3D's chart about the target's mean, and Open3D's rule of convergence, both
    fitness and RMSE / extent changing by less than `tolerance` (extent: the diagonal of the target's bounding box).
    There is no evidence, no robust kernel and no gradient; the search costs nothing but what it must, as there.

    Clouds of different sizes are padded, with anything, and masked. Where a cloud has fewer than 3 points, or nothing
    corresponds, `converged` is False, fitness and RMSE are 0 and the transformation is the start.

    Args:
        source: (B, N, 3) float32; float64 is rounded first, so take an offset larger than the clouds away before.
        target: (B, M, 3).
        init: (B, 4, 4), T_target_source to start from. None: identities.
        max_distance: correspondences are strictly nearer than this, in the points' unit. None: all.
        source_mask, target_mask: (B, N) and (B, M) bool, True for a real point. None: all are.
        kind: "point_to_plane" or "point_to_point".
        max_iterations: steps, at least 1.
        tolerance: see above; 0 takes every step, and `converged` is then False.
        neighbours: of each target point, itself included, for its normal ("point_to_plane"); at least 3, on a CUDA
            device at most 64.
        num_threads: None for all cores. The same bits for any number.

    Raises:
        InputError: wrong shapes, dtypes or names, NaN or infinity in a real point or a start.
    """
    kind_id = _validate.choice("kind", kind, _KINDS)
    limit = _validate.limit("max_distance", max_distance)
    if limit == 0:
        raise InputError("max_distance", "0", "a distance above 0")
    count, bound = _validate.count("max_iterations", max_iterations), _validate.length("tolerance", tolerance)
    if (k := _validate.count("neighbours", neighbours)) < _LEAST_NEIGHBOURS:
        raise InputError("neighbours", str(k), f"an integer of at least {_LEAST_NEIGHBOURS}")
    p, p_mask = _clouds("source", source, source_mask)
    q, q_mask = _clouds("target", target, target_mask)
    batch = len(p)
    if len(q) != batch:
        raise InputError("target", f"shape {tuple(q.shape)}", f"shape ({batch}, M, 3), as many clouds as source")
    start = None if init is None else _poses("init", init, batch)
    for argument, tensor in (
        ("target", q),
        ("source_mask", p_mask),
        ("target_mask", q_mask),
        ("init", start),
    ):
        if tensor is not None:
            _validate.same_device(argument, tensor, "source", p)
    here = p.device
    poses = torch.empty((batch, 4, 4), dtype=torch.float64, device=here)
    fitness, rmse = torch.empty((2, batch), dtype=torch.float64, device=here)
    iterations = torch.empty(batch, dtype=torch.int64, device=here)
    converged = torch.empty(batch, dtype=torch.bool, device=here)
    problem: tuple[Any, ...] = (
        kind_id,
        p.data_ptr(),
        q.data_ptr(),
        _cuda.address(p_mask),
        _cuda.address(q_mask),
        _cuda.address(start),
        batch,
        p.shape[1],
        q.shape[1],
        limit,
        min(count, _INT32),
        bound,
        min(k, _INT32),
        poses.data_ptr(),
        fitness.data_ptr(),
        rmse.data_ptr(),
        iterations.data_ptr(),
        converged.data_ptr(),
    )
    if _cuda.takes(p):
        if kind == "point_to_plane" and k > _core.CUDA_MAX_NEIGHBOURS:
            raise InputError("neighbours", str(k), f"at most {_core.CUDA_MAX_NEIGHBOURS} on a CUDA device")
        scratch = _cuda.memory(p, _core.cuda_icp_batch_bytes(batch, p.shape[1], q.shape[1]))
        problem = (*_cuda.call(p), *problem, scratch.data_ptr())
        _core.cuda_icp_batch(*problem)
    else:
        problem = (*problem, _validate.threads(num_threads))
        _core.icp_batch(*problem)
    return BatchResult(poses, fitness, rmse, iterations, converged)


def _clouds(argument: str, value: Array, mask: Array | None) -> tuple[Tensor, Tensor | None]:
    """(B, N, 3) float32 and the mask (B, N), contiguous; the real points are finite."""
    points = _validate.as_tensor(argument, value)
    if points.ndim != 3 or points.shape[2] != 3:
        raise InputError(argument, f"shape {tuple(points.shape)}", "shape (B, N, 3)")
    if points.dtype not in (torch.float32, torch.float64):
        raise InputError(argument, f"dtype {points.dtype}", "float32 or float64")
    points = _library.placed(points.to(torch.float32))
    if mask is None:
        _validate.finite(argument, points)
        return points, None
    real = _validate.as_tensor(f"{argument}_mask", mask)
    if real.dtype != torch.bool or real.shape != points.shape[:2]:
        expected = f"torch.bool of shape {tuple(points.shape[:2])}"
        raise InputError(f"{argument}_mask", f"{real.dtype} of shape {tuple(real.shape)}", expected)
    real = _library.placed(real)
    _validate.finite(argument, points.masked_fill(~real[:, :, None], 0.0))
    return points, real


def _poses(argument: str, value: Array, batch: int) -> Tensor:
    """(B, 4, 4) float64, contiguous, finite, with the last row (0, 0, 0, 1)."""
    poses = _validate.as_tensor(argument, value)
    if tuple(poses.shape) != (batch, 4, 4):
        raise InputError(argument, f"shape {tuple(poses.shape)}", f"shape ({batch}, 4, 4)")
    if not poses.is_floating_point():
        raise InputError(argument, f"dtype {poses.dtype}", "a floating-point dtype")
    poses = _library.checked(argument, poses.to(torch.float64))
    if not bool((poses[:, 3] == poses.new_tensor([0.0, 0.0, 0.0, 1.0])).all()):
        raise InputError(argument, "a last row that is another", "the last row (0, 0, 0, 1)")
    return poses
