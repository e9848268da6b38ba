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

    Works under `torch.compile(fullgraph=True)`, and can be captured in a CUDA graph, which checks no values. A backward
    pass through it raises.

    Raises:
        InputError: wrong shapes, dtypes, devices or names, NaN or infinity in a real point or a start.
    """
    kind_id = _validate.choice("kind", kind, _KINDS)
    limit = _validate.limit("max_distance", max_distance)
    if limit == 0:
        raise InputError("max_distance", "0", "a distance above 0")
    count, bound = _validate.count("max_iterations", max_iterations), _validate.length("tolerance", tolerance)
    if (k := _validate.count("neighbours", neighbours)) < _LEAST_NEIGHBOURS:
        raise InputError("neighbours", str(k), f"an integer of at least {_LEAST_NEIGHBOURS}")
    p, p_mask = _validate.clouds("source", source, source_mask)
    q, q_mask = _validate.clouds("target", target, target_mask)
    batch = p.shape[0]
    if q.shape[0] != batch:
        raise InputError("target", f"shape {tuple(q.shape)}", f"shape ({batch}, M, 3), as many clouds as source")
    _validate.same_device("target", q, "source", p)
    start = None if init is None else _starts(init, batch)
    if start is not None:
        _validate.same_device("init", start, "source", p)
    run = icp_batch_op if _library.watched(p, q, start) else _icp_batch
    workers = _validate.threads(num_threads)
    return BatchResult(*run(p, q, p_mask, q_mask, start, kind_id, limit, count, bound, k, workers))


def _icp_batch(
    source: Tensor,
    target: Tensor,
    source_mask: Tensor | None,
    target_mask: Tensor | None,
    init: Tensor | None,
    kind: int,
    limit: float,
    max_iterations: int,
    tolerance: float,
    neighbours: int,
    num_threads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `BatchResult`, of arguments of the right shapes and dtypes."""
    p, p_mask = _library.real_points("source", source, source_mask)
    q, q_mask = _library.real_points("target", target, target_mask)
    start = None if init is None else _checked_starts(init)
    batch, here = len(p), p.device
    poses = torch.empty((batch, 4, 4), dtype=torch.float64, device=here)
    fitness = torch.empty(batch, dtype=torch.float64, device=here)
    rmse = torch.empty(batch, dtype=torch.float64, device=here)
    iterations = torch.empty(batch, dtype=torch.int64, device=here)
    converged = torch.empty(batch, dtype=torch.bool, device=here)
    problem = _core.IcpBatch(
        kind,
        p.data_ptr(),
        q.data_ptr(),
        _cuda.address(p_mask),
        _cuda.address(q_mask),
        _cuda.address(start),
        batch,
        p.shape[1],
        q.shape[1],
        limit,
        min(max_iterations, _INT32),
        tolerance,
        min(neighbours, _INT32),
        poses.data_ptr(),
        fitness.data_ptr(),
        rmse.data_ptr(),
        iterations.data_ptr(),
        converged.data_ptr(),
    )
    if _cuda.takes(p):
        if kind == KINDS["point_to_plane"] and neighbours > _core.CUDA_MAX_NEIGHBOURS:
            raise InputError("neighbours", str(neighbours), f"at most {_core.CUDA_MAX_NEIGHBOURS} on a CUDA device")
        scratch = _cuda.memory(p, _core.cuda_icp_batch_bytes(batch, p.shape[1], q.shape[1]))
        _core.cuda_icp_batch(*_cuda.call(p), problem, scratch.data_ptr())
    else:
        problem.run(num_threads)
    return poses, fitness, rmse, iterations, converged


# Without a gradient formula on purpose: autograd refuses to go through it instead of going around it.
icp_batch_op = torch.library.custom_op(
    "dlc_reg::icp_batch",
    _icp_batch,
    mutates_args=(),
    schema="(Tensor source, Tensor target, Tensor? source_mask, Tensor? target_mask, Tensor? init, int kind,"
    " float limit, int max_iterations, float tolerance, int neighbours, int num_threads)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@icp_batch_op.register_fake
def _(source: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch = source.shape[0]
    float64 = torch.float64
    return (
        source.new_empty((batch, 4, 4), dtype=float64),
        source.new_empty((batch,), dtype=float64),
        source.new_empty((batch,), dtype=float64),
        source.new_empty((batch,), dtype=torch.int64),
        source.new_empty((batch,), dtype=torch.bool),
    )


def _starts(value: Array, batch: int) -> Tensor:
    """(B, 4, 4) float64."""
    poses = _validate.as_tensor("init", value)
    if tuple(poses.shape) != (batch, 4, 4):
        raise InputError("init", f"shape {tuple(poses.shape)}", f"shape ({batch}, 4, 4)")
    if not poses.is_floating_point():
        raise InputError("init", f"dtype {poses.dtype}", "a floating-point dtype")
    return poses.to(torch.float64)


def _checked_starts(poses: Tensor) -> Tensor:
    """Contiguous, finite, with the last row (0, 0, 0, 1); a CUDA graph records no check."""
    poses = _library.checked("init", poses)
    if not _validate.capturing(poses) and not bool((poses[:, 3] == poses.new_tensor([0.0, 0.0, 0.0, 1.0])).all()):
        raise InputError("init", "a last row that is another", "the last row (0, 0, 0, 1)")
    return poses
