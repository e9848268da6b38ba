"""The native operators: direct calls, and the same as `torch.library` operators with shapes and gradients.

A direct call costs a few microseconds; going through the dispatcher costs five times that, so the public functions use
the dispatcher only where something watches: autograd or `torch.compile`.
"""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Parameter

from dlc_reg import _core
from dlc_reg.errors import InputError
from dlc_reg.ops import _cuda, _validate

if hasattr(os, "register_at_fork"):
    # torch's own threads do not survive a fork, and its first parallel sum in the child would wait for them for ever
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def watched(*tensors: Tensor | None) -> bool:
    """Whether a call must go through the dispatcher."""
    if torch.compiler.is_compiling():
        return True
    grad = torch.is_grad_enabled()
    for tensor in tensors:  # a loop, for this is a good part of what a small call costs
        if tensor is None:
            continue
        if type(tensor) is not Tensor and type(tensor) is not Parameter:  # fake tensors and other subclasses
            return True
        if grad and tensor.requires_grad:
            return True
    return False


def host(argument: str, tensor: Tensor) -> Tensor:
    """Finite, contiguous, in the host's memory."""
    tensor = unchecked(tensor)
    _validate.finite(argument, tensor)
    return tensor


def unchecked(tensor: Tensor) -> Tensor:
    """Contiguous, in the host's memory."""
    return tensor.detach().cpu().contiguous()


def placed(tensor: Tensor) -> Tensor:
    """Contiguous, in the memory of the CUDA device that it is on, or else the host's."""
    return tensor.detach().contiguous() if _cuda.takes(tensor) else unchecked(tensor)


def checked(argument: str, tensor: Tensor) -> Tensor:
    """The same, and finite."""
    tensor = placed(tensor)
    _validate.finite(argument, tensor)
    return tensor


def real_points(argument: str, points: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Clouds (B, N, 3) and their mask (B, N), both `placed`; what is not padding is finite."""
    points = placed(points)
    if mask is None:
        _validate.finite(argument, points)
        return points, None
    if not _validate.capturing(points):
        _validate.finite(argument, points.masked_fill(~mask[:, :, None], 0.0))
    return points, placed(mask)


Tree: TypeAlias = _core.KdTree | _cuda.Tree


def build_tree(points: Tensor, num_threads: int) -> Tree:
    """Over points that `checked` has been through; a tree on a device keeps them."""
    if _cuda.takes(points):
        return _cuda.Tree(points)
    return _core.KdTree(points.data_ptr(), len(points), num_threads)


# --- nearest neighbours ---


def tree_knn(tree: Tree, query: Tensor, k: int, limit: float, num_threads: int) -> tuple[Tensor, Tensor]:
    q = checked("query", query)
    if isinstance(tree, _cuda.Tree):
        return _cuda.tree_knn(tree, q, k, limit)
    distances = torch.empty((len(q), k), dtype=torch.float32)
    indices = torch.empty((len(q), k), dtype=torch.int64)
    tree.knn(q.data_ptr(), len(q), k, limit, distances.data_ptr(), indices.data_ptr(), num_threads)
    return distances, indices


def knn(query: Tensor, points: Tensor, k: int, limit: float, num_threads: int) -> tuple[Tensor, Tensor]:
    p = checked("points", points)
    if _cuda.takes(p):
        return _cuda.knn(checked("query", query), p, k, limit)
    return tree_knn(build_tree(p, num_threads), query, k, limit, num_threads)


def tree_radius(tree: Tree, query: Tensor, radius: float, num_threads: int) -> tuple[Tensor, Tensor, Tensor]:
    q = checked("query", query)
    if isinstance(tree, _cuda.Tree):
        return _cuda.tree_radius(tree, q, radius)
    splits = torch.empty(len(q) + 1, dtype=torch.int64)
    total = tree.radius_count(q.data_ptr(), len(q), radius, splits.data_ptr(), num_threads)
    distances = torch.empty(total, dtype=torch.float32)
    indices = torch.empty(total, dtype=torch.int64)
    tree.radius_fill(
        q.data_ptr(), len(q), radius, splits.data_ptr(), distances.data_ptr(), indices.data_ptr(), num_threads
    )
    return distances, indices, splits


def radius_search(query: Tensor, points: Tensor, radius: float, num_threads: int) -> tuple[Tensor, Tensor, Tensor]:
    return tree_radius(build_tree(checked("points", points), num_threads), query, radius, num_threads)


# --- groups of points ---


def voxel_groups(points: Tensor, voxel_size: float, num_threads: int) -> tuple[Tensor, Tensor]:
    if _cuda.takes(points):
        return _cuda.voxel_groups(placed(points), voxel_size)
    p = checked("points", points)
    inverse = torch.empty(len(p), dtype=torch.int64)
    means = torch.empty((len(p), 3), dtype=torch.float32)
    try:
        m = _core.voxel_downsample(p.data_ptr(), len(p), voxel_size, inverse.data_ptr(), means.data_ptr(), num_threads)
    except ValueError as error:  # the grid does not fit
        raise InputError("voxel_size", str(voxel_size), str(error)) from None
    return means[:m].clone(), inverse


def morton_order(points: Tensor, num_threads: int) -> Tensor:
    p = checked("points", points)
    if _cuda.takes(p):
        return _cuda.morton_order(p).long()
    order = torch.empty(len(p), dtype=torch.int64)
    _core.morton_order(p.data_ptr(), len(p), order.data_ptr(), num_threads)
    return order


def tree_geometry(tree: Tree, points: Tensor, k: int, limit: float, num_threads: int) -> tuple[Tensor, Tensor]:
    if isinstance(tree, _cuda.Tree):
        return _cuda.local_geometry(tree, k, limit)
    normals = torch.empty((len(points), 3), dtype=torch.float32)
    covariances = torch.empty((len(points), 6), dtype=torch.float32)
    _core.normals(
        tree, points.data_ptr(), len(points), k, limit, normals.data_ptr(), covariances.data_ptr(), num_threads
    )
    return normals, covariances


def local_geometry(points: Tensor, k: int, limit: float, num_threads: int) -> tuple[Tensor, Tensor]:
    p = checked("points", points)
    return tree_geometry(build_tree(p, num_threads), p, k, limit, num_threads)


# --- the same, for the dispatcher ---

knn_op = torch.library.custom_op(
    "dlc_reg::knn",
    knn,
    mutates_args=(),
    schema="(Tensor query, Tensor points, int k, float limit, int num_threads) -> (Tensor, Tensor)",
)
radius_search_op = torch.library.custom_op(
    "dlc_reg::radius_search",
    radius_search,
    mutates_args=(),
    schema="(Tensor query, Tensor points, float radius, int num_threads) -> (Tensor, Tensor, Tensor)",
)
voxel_groups_op = torch.library.custom_op(
    "dlc_reg::voxel_groups",
    voxel_groups,
    mutates_args=(),
    schema="(Tensor points, float voxel_size, int num_threads) -> (Tensor, Tensor)",
)
morton_order_op = torch.library.custom_op(
    "dlc_reg::morton_order", morton_order, mutates_args=(), schema="(Tensor points, int num_threads) -> Tensor"
)
# Without a gradient formula on purpose: autograd refuses to go through it instead of going around it.
local_geometry_op = torch.library.custom_op(
    "dlc_reg::local_geometry",
    local_geometry,
    mutates_args=(),
    schema="(Tensor points, int k, float limit, int num_threads) -> (Tensor, Tensor)",
)


@knn_op.register_fake
def _(query: Tensor, points: Tensor, k: int, limit: float, num_threads: int) -> tuple[Tensor, Tensor]:
    shape = (query.shape[0], k)
    return query.new_empty(shape), query.new_empty(shape, dtype=torch.int64)


@radius_search_op.register_fake
def _(query: Tensor, points: Tensor, radius: float, num_threads: int) -> tuple[Tensor, Tensor, Tensor]:
    total = torch.library.get_ctx().new_dynamic_size()
    splits = query.new_empty((query.shape[0] + 1,), dtype=torch.int64)
    return query.new_empty((total,)), query.new_empty((total,), dtype=torch.int64), splits


@voxel_groups_op.register_fake
def _(points: Tensor, voxel_size: float, num_threads: int) -> tuple[Tensor, Tensor]:
    voxels = torch.library.get_ctx().new_dynamic_size()
    return points.new_empty((voxels, 3)), points.new_empty((points.shape[0],), dtype=torch.int64)


@morton_order_op.register_fake
def _(points: Tensor, num_threads: int) -> Tensor:
    return points.new_empty((points.shape[0],), dtype=torch.int64)


@local_geometry_op.register_fake
def _(points: Tensor, k: int, limit: float, num_threads: int) -> tuple[Tensor, Tensor]:
    n = points.shape[0]
    return points.new_empty((n, 3)), points.new_empty((n, 6))


def pair_gradients(grad: Tensor, query: Tensor, points: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of distances |query[rows] - points[columns]| (P,); zero where the distance is or a column is -1."""
    found = columns >= 0
    if len(points) == 0:  # nothing was found
        return torch.zeros_like(query), torch.zeros_like(points)
    columns = columns.clamp(min=0)
    difference = torch.where(found[:, None], query[rows] - points[columns], 0.0)  # padding may hold NaN
    squared = (difference * difference).sum(dim=1)
    usable = found & (squared > 0)
    length = torch.where(usable, squared, torch.ones_like(squared)).sqrt()
    step = torch.where(usable, grad / length, torch.zeros_like(grad))[:, None] * difference
    return (
        torch.zeros_like(query).index_add(0, rows, step),
        torch.zeros_like(points).index_add(0, columns, -step),
    )


def _save_neighbours(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], *output[1:])


def _knn_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    query, points, indices = ctx.saved_tensors
    n, k = indices.shape
    rows = torch.arange(n, device=query.device)[:, None].expand(n, k).reshape(-1)
    return *pair_gradients(grad.reshape(-1), query, points, rows, indices.reshape(-1)), None, None, None


def _radius_backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    query, points, indices, splits = ctx.saved_tensors
    at = torch.arange(indices.shape[0], device=query.device)
    rows = torch.searchsorted(splits, at, right=True) - 1
    return *pair_gradients(grad, query, points, rows, indices), None, None


def _save_groups(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    means, inverse = output
    ctx.save_for_backward(inverse)
    ctx.groups = means.shape[0]


def _voxel_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    (inverse,) = ctx.saved_tensors
    members = torch.zeros(ctx.groups, dtype=grad.dtype, device=grad.device)
    members = members.index_add(0, inverse, torch.ones_like(inverse, dtype=grad.dtype))
    return (grad / members[:, None])[inverse], None, None


knn_op.register_autograd(_knn_backward, setup_context=_save_neighbours)
radius_search_op.register_autograd(_radius_backward, setup_context=_save_neighbours)
voxel_groups_op.register_autograd(_voxel_backward, setup_context=_save_groups)
