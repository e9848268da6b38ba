"""Points in groups: voxels, and the normals and covariances of neighbourhoods."""

from __future__ import annotations

from typing import Any, overload

import numpy.typing as npt
import torch
from torch import Tensor

from dlc_reg import _core
from dlc_reg.errors import InputError
from dlc_reg.ops import _cuda, _library, _validate
from dlc_reg.ops._search import SearchIndex
from dlc_reg.ops._validate import Array, ArrayT


def voxel_groups(points: ArrayT, voxel_size: float, *, num_threads: int | None = None) -> tuple[ArrayT, ArrayT]:
    """The mean of the points in each occupied voxel, and the voxel of each point.

    Args:
        points: (N, 3) float32 or float64, N >= 1, a torch tensor or a NumPy array.
        voxel_size: edge of the cubic voxels, in the points' unit. The grid starts half a voxel below the least
            coordinates, as Open3D's does.

    Returns:
        means (M, 3) float32, voxels in Morton order, and inverse (N,) int64: point i is in voxel inverse[i]. The kind
        and device of `points`. The means carry gradients to the points. M depends on the data, so that no CUDA graph
        can capture this.

    Raises:
        InputError: wrong shape or dtype, no points, NaN or infinity, a voxel size that is not positive and finite or
            leaves more than 2^21 voxels along an axis.
    """
    p = _validate.points("points", points)
    run = _library.voxel_groups_op if _library.watched(p) else _library.voxel_groups
    means, inverse = run(p, _validate.length("voxel_size", voxel_size, positive=True), _validate.threads(num_threads))
    return _validate.like(points, means), _validate.like(points, inverse)


def voxel_downsample(points: ArrayT, voxel_size: float, *, num_threads: int | None = None) -> ArrayT:
    """One point per occupied voxel, the mean of its points: (M, 3) float32, see `voxel_groups`."""
    return voxel_groups(points, voxel_size, num_threads=num_threads)[0]


def morton_order(points: ArrayT, *, num_threads: int | None = None) -> ArrayT:
    """Indices (N,) int64 that sort points (N, 3) along the Morton curve: near in the order is near in space.

    Queries in this order find the search tree's nodes in the cache. Equal codes keep their order. Works under
    `torch.compile(fullgraph=True)`; a CUDA graph can capture it.
    """
    p = _validate.points("points", points, allow_empty=True)
    run = _library.morton_order_op if _library.watched(p) else _library.morton_order
    order: ArrayT = _validate.like(points, run(p, _validate.threads(num_threads)))
    return order


@overload
def estimate_normals(
    points: ArrayT, k: int = ..., *, max_distance: float | None = ..., num_threads: int | None = ...
) -> ArrayT: ...
@overload
def estimate_normals(
    points: SearchIndex, k: int = ..., *, max_distance: float | None = ..., num_threads: int | None = ...
) -> Tensor: ...
def estimate_normals(
    points: Array | SearchIndex,
    k: int = 20,
    *,
    max_distance: float | None = None,
    num_threads: int | None = None,
) -> Array:
    """Unit normals (N, 3) float32: the direction of least spread among each point's k nearest, itself included.

    Args:
        points: (N, 3) float32 or float64, N >= 1, a torch tensor or a NumPy array, or a `SearchIndex` over them, which
            saves building another.
        k: neighbours, at least 1.
        max_distance: only neighbours strictly nearer than this, in the points' unit. None: all.

    A normal's sign carries no meaning: the component that is largest in size is positive. Fewer than 3 neighbours, or
    neighbours all in one place, give (0, 0, 1). Not differentiable: a backward pass through it raises. Otherwise as
    `knn`; for a CUDA graph, with up to 64 neighbours.
    """
    return _local_geometry(points, k, max_distance, num_threads)[0]


@overload
def estimate_covariances(
    points: ArrayT, k: int = ..., *, max_distance: float | None = ..., num_threads: int | None = ...
) -> ArrayT: ...
@overload
def estimate_covariances(
    points: SearchIndex, k: int = ..., *, max_distance: float | None = ..., num_threads: int | None = ...
) -> Tensor: ...
def estimate_covariances(
    points: Array | SearchIndex,
    k: int = 20,
    *,
    max_distance: float | None = None,
    num_threads: int | None = None,
) -> Array:
    """Covariances (N, 3, 3) float32 of each point's k nearest, itself included: squares divided by their number.

    In the points' unit squared; zeros where there are fewer than 3 neighbours. Otherwise as `estimate_normals`.
    """
    packed = _local_geometry(points, k, max_distance, num_threads)[1]
    return packed[:, _UNPACK].reshape(-1, 3, 3)


def intensity_gradients(
    index: SearchIndex,
    intensities: Array,
    normals: Array,
    k: int = 30,
    *,
    max_distance: float | None = None,
    num_threads: int | None = None,
) -> Tensor:
    """Each point's intensity and the gradient along its tangent plane: (N, 4) float32, per unit of length.

    The gradient g fits the differences to the k nearest in least squares with one more row, (count - 1) g . normal = 0,
    and is then projected onto the plane: Park, Zhou and Koltun (ICCV 2017) as Open3D 0.20 computes it, without their
    projection of the neighbours, which changes terms of second order. It is zero with fewer than 4 neighbours, the
    point itself included; along a line of neighbours only the slope along the line is known. Not differentiable.
    Made on the host; an index on a CUDA device costs a copy of its points and another tree.

    Args:
        index: over the points (N, 3).
        intensities, normals: (N, 1) and (N, 3), of the points; normals of any length and sign.
        k: neighbours, at least 1, the point itself included.
        max_distance: only neighbours strictly nearer than this, in the points' unit. None: all.

    Raises:
        InputError: wrong shapes or dtypes, NaN or infinity.
    """
    k, limit = _validate.count("k", k), _validate.limit("max_distance", max_distance)
    workers = _validate.threads(num_threads)
    if not isinstance(index, SearchIndex):
        raise InputError("index", f"a {type(index).__name__}", "a SearchIndex")
    values = _library.host("intensities", _validate.rows("intensities", intensities, 1, len(index)))
    directions = _library.host("normals", _validate.rows("normals", normals, 3, len(index)))
    tree = index.tree
    if isinstance(tree, _cuda.Tree):
        points = _library.unchecked(index.points)
        tree = _core.KdTree(points.data_ptr(), len(points), workers)
    found = torch.empty((len(index), 4), dtype=torch.float32)
    addresses = (values.data_ptr(), directions.data_ptr())
    _core.intensity_gradients(tree, *addresses, k, limit, found.data_ptr(), workers)
    return found.to(index.points.device)


_UNPACK = [0, 1, 2, 1, 3, 4, 2, 4, 5]


def _local_geometry(
    points: Array | SearchIndex, k: int, max_distance: float | None, num_threads: int | None
) -> tuple[Tensor | npt.NDArray[Any], Tensor | npt.NDArray[Any]]:
    k, limit = _validate.count("k", k), _validate.limit("max_distance", max_distance)
    workers = _validate.threads(num_threads)
    if isinstance(points, SearchIndex):
        return _library.tree_geometry(points.tree, points.points, k, limit, workers)
    p = _validate.points("points", points)
    run = _library.local_geometry_op if _library.watched(p) else _library.local_geometry
    normals, covariances = run(p, k, limit, workers)
    return _validate.like(points, normals), _validate.like(points, covariances)
