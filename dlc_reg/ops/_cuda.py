"""The operators on a CUDA device: outputs and workspaces are torch's, the work is queued on the current stream.

Arguments are contiguous float32 tensors on one device that the callers have checked. Nothing is copied to the host but
what decides the size of an answer; what has no kernel is done by the plain torch twin, on the device.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from dlc_reg import _core
from dlc_reg.errors import InputError
from dlc_reg.ops import _reference, _validate

BRUTE_FORCE = 2048  # a cloud of so few points is searched without a tree
ORDERED_FROM = 4096  # queries along the Morton curve: threads of a warp then take the same way through the tree
_COARSE = 10  # bits an axis that the order of queries needs


def state() -> str:
    """Whether CUDA tensors can be worked on here, and if not, why."""
    if not _core.CUDA_BUILT:
        return "no CUDA kernels in this build"
    if _core.CUDA_EMULATED:
        return "CUDA kernels emulated on the host"
    return "CUDA kernels" if _core.cuda_device_count() else f"CUDA kernels, but {_core.cuda_why_no_device()}"


def has_kernels(tensor: Tensor) -> bool:
    """Whether this build's operators work where the tensor is: on the host, or on a CUDA device if it has kernels."""
    if tensor.is_cuda:
        return _core.CUDA_BUILT and not _core.CUDA_EMULATED
    return tensor.device.type == "cpu"


def takes(tensor: Tensor) -> bool:
    """Whether work on this tensor is the device's. RuntimeError where it would be, but the kernels are not built."""
    if not tensor.is_cuda:
        return False
    if not has_kernels(tensor):
        raise RuntimeError(
            f"the tensors are on {tensor.device}, but this build of dlc_reg has no CUDA kernels. Call .cpu() first, or "
            "put nvcc (CUDA 12 or newer) on the PATH and run, in the checkout, "
            "`DLC_REG_CUDA=ON pip install --no-deps --force-reinstall .`"
        )
    return True


def call(tensor: Tensor) -> tuple[int, int]:
    """What every kernel takes first: the device and the current stream."""
    if not tensor.is_cuda:  # emulated
        return 0, 0
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream


def memory(like: Tensor, size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=like.device)


@functools.cache
def _flag(device: torch.device, stream: int) -> Tensor:
    return torch.zeros(1, dtype=torch.int32, device=device)


def flag(like: Tensor) -> Tensor:
    """One int32 that is zero, for a kernel that leaves it so.

    Launches on one stream follow one another and share theirs, which saves each the launch that sets a new one. A graph
    gets its own, which it sets: it may be replayed on another stream, beside launches on the one that recorded it.
    """
    if _validate.capturing(like):
        return torch.zeros(1, dtype=torch.int32, device=like.device)
    return _flag(like.device, call(like)[1])


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class Tree:
    """A search tree over points (N, 3) on the device, N >= 1; `points` must not change afterwards."""

    def __init__(self, points: Tensor) -> None:
        self.points = points
        self.memory = memory(points, _core.cuda_tree_bytes(len(points)))
        workspace = memory(points, _core.cuda_sort_bytes(len(points)))
        _core.cuda_build_tree(
            *call(points),
            points.data_ptr(),
            len(points),
            self.memory.data_ptr(),
            workspace.data_ptr(),
            workspace.numel(),
        )


def morton_order(points: Tensor, bits: int = 21) -> Tensor:
    """(N,) int32 indices along the Morton curve with 2^bits cells an axis."""
    order = torch.empty(len(points), dtype=torch.int32, device=points.device)
    if len(points):
        workspace = memory(points, _core.cuda_sort_bytes(len(points)))
        _core.cuda_morton_order(
            *call(points),
            points.data_ptr(),
            len(points),
            bits,
            order.data_ptr(),
            workspace.data_ptr(),
            workspace.numel(),
        )
    return order


def _coarse_order(query: Tensor) -> Tensor | None:
    return morton_order(query, _COARSE) if len(query) >= ORDERED_FROM else None


def _rows(query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return query.new_empty((len(query), k)), query.new_empty((len(query), k), dtype=torch.int64)


def tree_knn(tree: Tree, query: Tensor, k: int, limit: float) -> tuple[Tensor, Tensor]:
    if k > _core.CUDA_MAX_NEIGHBOURS:
        return _reference.knn(query, tree.points, k, limit)
    distances, indices = _rows(query, k)
    order = _coarse_order(query)
    _core.cuda_knn(
        *call(query),
        tree.memory.data_ptr(),
        len(tree.points),
        query.data_ptr(),
        address(order),
        len(query),
        k,
        limit,
        distances.data_ptr(),
        indices.data_ptr(),
    )
    return distances, indices


def knn(query: Tensor, points: Tensor, k: int, limit: float) -> tuple[Tensor, Tensor]:
    if len(points) > BRUTE_FORCE or k > _core.CUDA_MAX_NEIGHBOURS:
        return tree_knn(Tree(points), query, k, limit)
    each = torch.arange(2, device=query.device)
    return knn_ragged(query, each * len(query), points, each * len(points), k, limit, len(query))


def knn_ragged(
    query: Tensor, query_splits: Tensor, points: Tensor, point_splits: Tensor, k: int, limit: float, longest: int
) -> tuple[Tensor, Tensor]:
    """Cloud b of a batch is rows splits[b]:splits[b + 1]; indices count from its first point. k <= 128.

    Splits are (B + 1,) int64 on the device; no cloud has more than `longest` queries.
    """
    distances, indices = _rows(query, k)
    _core.cuda_knn_ragged(
        *call(query),
        points.data_ptr(),
        point_splits.data_ptr(),
        query.data_ptr(),
        query_splits.data_ptr(),
        len(query_splits) - 1,
        longest,
        k,
        limit,
        distances.data_ptr(),
        indices.data_ptr(),
    )
    return distances, indices


def knn_batch(
    query: Tensor, points: Tensor, query_mask: Tensor | None, points_mask: Tensor | None, k: int, limit: float
) -> tuple[Tensor, Tensor]:
    """Distances and indices (B, N, k) among clouds (B, N, 3) and (B, M, 3), padded where the masks are False."""
    batch, n = query.shape[:2]
    m = points.shape[1]
    # What is not finite is neither found nor finds anything, so that padding need not be packed away.
    p = points if points_mask is None else points.masked_fill(~points_mask[:, :, None], math.inf)
    if k > _core.CUDA_MAX_RAGGED_NEIGHBOURS:
        distances, indices = _rows(query.reshape(-1, 3), k)
        for b in range(batch):
            rows = slice(b * n, (b + 1) * n)
            distances[rows], indices[rows] = _reference.knn(query[b], p[b], k, limit)
        if query_mask is not None:
            padding = ~query_mask.reshape(-1, 1)
            distances, indices = distances.masked_fill(padding, math.inf), indices.masked_fill(padding, -1)
    else:
        q = query if query_mask is None else query.masked_fill(~query_mask[:, :, None], math.nan)
        each = torch.arange(batch + 1, device=query.device)
        distances, indices = knn_ragged(q.reshape(-1, 3), each * n, p.reshape(-1, 3), each * m, k, limit, n)
    return distances.reshape(batch, n, k), indices.reshape(batch, n, k)


def tree_radius(tree: Tree, query: Tensor, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    order = _coarse_order(query)
    splits = torch.zeros(len(query) + 1, dtype=torch.int64, device=query.device)
    search = (*call(query), tree.memory.data_ptr(), len(tree.points), query.data_ptr(), address(order), len(query))
    _core.cuda_radius_count(*search, radius, splits[1:].data_ptr())
    splits = splits.cumsum(0)
    total = int(splits[-1])
    distances, indices = query.new_empty(total), query.new_empty(total, dtype=torch.int64)
    keys = torch.empty_like(indices)
    _core.cuda_radius_fill(
        *search, radius, splits.data_ptr(), keys.data_ptr(), distances.data_ptr(), indices.data_ptr()
    )
    return distances, indices, splits


def local_geometry(tree: Tree, k: int, limit: float) -> tuple[Tensor, Tensor]:
    """Normals (N, 3) and covariances (N, 6) of the tree's points."""
    points = tree.points
    if k > _core.CUDA_MAX_NEIGHBOURS:
        covariances = _reference.estimate_covariances(points.double(), k, limit)
        normals = _reference.estimate_normals(points.double(), k, limit)
        return normals.float(), covariances.float().reshape(-1, 9)[:, [0, 1, 2, 4, 5, 8]]
    normals, covariances = points.new_empty((len(points), 3)), points.new_empty((len(points), 6))
    order = _coarse_order(points)
    _core.cuda_normals(
        *call(points),
        tree.memory.data_ptr(),
        points.data_ptr(),
        address(order),
        len(points),
        k,
        limit,
        normals.data_ptr(),
        covariances.data_ptr(),
    )
    return normals, covariances


def voxel_groups(points: Tensor, voxel_size: float) -> tuple[Tensor, Tensor]:
    low, high = torch.stack([points.amin(0), points.amax(0)]).tolist()
    if not all(map(math.isfinite, low + high)):
        _validate.finite("points", points)
    origin = tuple(x - voxel_size * 0.5 for x in low)
    if max((x - o) / voxel_size for x, o in zip(high, origin, strict=True)) >= 1 << 21:
        reason = "voxel_size is too small: the cloud spans more than 2^21 voxels"
        raise InputError("voxel_size", str(voxel_size), reason)
    n = len(points)
    codes = torch.empty(n, dtype=torch.int64, device=points.device)
    order = torch.empty(n, dtype=torch.int32, device=points.device)
    workspace = memory(points, _core.cuda_sort_bytes(n))
    _core.cuda_voxel_order(
        *call(points),
        points.data_ptr(),
        n,
        (origin[0], origin[1], origin[2]),
        voxel_size,
        codes.data_ptr(),
        order.data_ptr(),
        workspace.data_ptr(),
        workspace.numel(),
    )
    first = torch.ones_like(codes, dtype=torch.bool)
    torch.ne(codes[1:], codes[:-1], out=first[1:])
    starts = first.nonzero()[:, 0].contiguous()
    means, inverse = points.new_empty((len(starts), 3)), torch.empty_like(codes)
    _core.cuda_voxel_means(
        *call(points),
        points.data_ptr(),
        n,
        order.data_ptr(),
        starts.data_ptr(),
        len(starts),
        inverse.data_ptr(),
        means.data_ptr(),
    )
    return means, inverse
