"""Neighbours in batches of clouds that are padded to one length, all in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlc_reg import _core
from dlc_reg.errors import InputError
from dlc_reg.ops import _cuda, _library, _validate
from dlc_reg.ops._validate import Array, ArrayT


def knn_batch(
    query: ArrayT,
    points: Array,
    k: int = 1,
    *,
    query_mask: Array | None = None,
    points_mask: Array | None = None,
    max_distance: float | None = None,
    num_threads: int | None = None,
) -> tuple[ArrayT, ArrayT]:
    """`knn` in each cloud of a batch: the k nearest of points[b] for every row of query[b], exactly.

    Args:
        query: (B, N, 3) float32 or float64, B >= 0, N >= 0, a torch tensor or a NumPy array.
        points: (B, M, 3) likewise, M >= 0.
        k: how many, at least 1; may exceed the number of points.
        query_mask, points_mask: (B, N) and (B, M) bool, True for a real point; the rest is padding and may hold
            anything. None: all are real.
        max_distance: only neighbours strictly nearer than this, in the points' unit. None: all.
        num_threads: None for all cores; a cloud is the job of one. The answer does not depend on it.

    Returns:
        distances (B, N, k) float32 and indices (B, N, k) int64, rows of points[b] with the padding counted; nearest
        first, equal distances by index; missing ones, and all those of padding, are inf and -1. The kind and device of
        `query`.

    Distances carry gradients as those of `knn`. CUDA tensors are searched on their device without anything copied to
    the host; the search can be captured in a CUDA graph (which checks no values), as it can be compiled with
    `torch.compile(fullgraph=True)`. Every query is compared with every point of its cloud there, and more than 128
    neighbours take a sort over them.

    Raises:
        InputError: wrong shape, dtype or device, NaN or infinity in a real point, k < 1, a negative or NaN distance.
        RuntimeError: CUDA tensors, but a build without CUDA kernels.
    """
    q, q_mask = _validate.clouds("query", query, query_mask)
    p, p_mask = _validate.clouds("points", points, points_mask)
    if p.shape[0] != q.shape[0]:
        raise InputError("points", f"{p.shape[0]} clouds", f"{q.shape[0]}, as many as query")
    _validate.same_device("query", q, "points", p)
    run = knn_batch_op if _library.watched(q, p) else _knn_batch
    distances, indices = run(
        q,
        p,
        q_mask,
        p_mask,
        _validate.count("k", k),
        _validate.limit("max_distance", max_distance),
        _validate.threads(num_threads),
    )
    return _validate.like(query, distances), _validate.like(query, indices)


def neighbour_normals(points: ArrayT, indices: Array, *, num_threads: int | None = None) -> ArrayT:
    """Unit normals (B, N, 3) float32 of neighbourhoods that are known already, as from `knn_batch`.

    Args:
        points: (B, M, 3) float32 or float64; rows that nothing names may hold anything.
        indices: (B, N, K) int64, rows of points[b], nearest first, K >= 1; those outside [0, M) name nothing.

    Where the nearest is the point itself the answer is that of `estimate_normals` with k = K, to the bit on the host. A
    NaN or infinity is not looked for: it spoils the normals that it enters. Not differentiable: a backward pass through
    it raises. Otherwise as `knn_batch`.

    Raises:
        InputError: wrong shape, dtype or device.
    """
    p, _ = _validate.clouds("points", points, None)
    rows = _validate.as_tensor("indices", indices)
    if rows.ndim != 3 or rows.shape[0] != p.shape[0] or rows.shape[2] == 0 or rows.dtype != torch.int64:
        given, expected = f"{rows.dtype} of shape {tuple(rows.shape)}", f"int64 of shape ({p.shape[0]}, N, K), K >= 1"
        raise InputError("indices", given, expected)
    _validate.same_device("indices", rows, "points", p)
    run = neighbour_normals_op if _library.watched(p) else _neighbour_normals
    normals: ArrayT = _validate.like(points, run(p, rows, _validate.threads(num_threads)))
    return normals


# --- the work, direct or from the dispatcher ---


def _knn_batch(
    query: Tensor,
    points: Tensor,
    query_mask: Tensor | None,
    points_mask: Tensor | None,
    k: int,
    limit: float,
    num_threads: int,
) -> tuple[Tensor, Tensor]:
    q, q_mask = _library.real_points("query", query, query_mask)
    p, p_mask = _library.real_points("points", points, points_mask)
    if _cuda.takes(q):
        return _cuda.knn_batch(q, p, q_mask, p_mask, k, limit)
    distances = torch.empty((*q.shape[:2], k), dtype=torch.float32)
    indices = torch.empty((*q.shape[:2], k), dtype=torch.int64)
    _core.knn_batch(
        q.data_ptr(),
        _cuda.address(q_mask),
        q.shape[1],
        p.data_ptr(),
        _cuda.address(p_mask),
        p.shape[1],
        q.shape[0],
        k,
        limit,
        distances.data_ptr(),
        indices.data_ptr(),
        num_threads,
    )
    return distances, indices


def _neighbour_normals(points: Tensor, indices: Tensor, num_threads: int) -> Tensor:
    p, rows = _library.placed(points), _library.placed(indices)
    batch, n, k = rows.shape
    normals = p.new_empty((batch, n, 3))
    arguments = (p.data_ptr(), p.shape[1], rows.data_ptr(), batch, n, k, normals.data_ptr())
    if _cuda.takes(p):
        _core.cuda_normals_of_rows(*_cuda.call(p), *arguments)
    else:
        _core.normals_of_rows(*arguments, num_threads)
    return normals


knn_batch_op = torch.library.custom_op(
    "dlc_reg::knn_batch",
    _knn_batch,
    mutates_args=(),
    schema="(Tensor query, Tensor points, Tensor? query_mask, Tensor? points_mask, int k, float limit, int num_threads)"
    " -> (Tensor, Tensor)",
)
# Without a gradient formula on purpose, as `local_geometry`.
neighbour_normals_op = torch.library.custom_op(
    "dlc_reg::neighbour_normals",
    _neighbour_normals,
    mutates_args=(),
    schema="(Tensor points, Tensor indices, int num_threads) -> Tensor",
)


@knn_batch_op.register_fake
def _(
    query: Tensor,
    points: Tensor,
    query_mask: Tensor | None,
    points_mask: Tensor | None,
    k: int,
    limit: float,
    num_threads: int,
) -> tuple[Tensor, Tensor]:
    shape = (*query.shape[:2], k)
    return query.new_empty(shape), query.new_empty(shape, dtype=torch.int64)


@neighbour_normals_op.register_fake
def _(points: Tensor, indices: Tensor, num_threads: int) -> Tensor:
    return points.new_empty((*indices.shape[:2], 3))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    """Of the whole batch as of one cloud."""
    query, points, indices = ctx.saved_tensors
    batch, n, k = indices.shape
    m = points.shape[1]
    first = m * torch.arange(batch, device=indices.device)[:, None, None]
    columns = torch.where(indices >= 0, indices + first, indices).reshape(-1)
    rows = torch.arange(batch * n, device=indices.device)[:, None].expand(-1, k).reshape(-1)
    by_query, by_points = _library.pair_gradients(
        grad.reshape(-1), query.reshape(-1, 3), points.reshape(-1, 3), rows, columns
    )
    return by_query.reshape(batch, n, 3), by_points.reshape(batch, m, 3), None, None, None, None, None


knn_batch_op.register_autograd(_backward, setup_context=_save)
