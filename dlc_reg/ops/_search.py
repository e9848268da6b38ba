"""Exact nearest neighbours: at once, or from an index that is built once and queried often."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from dlc_reg.ops import _library, _reference, _validate
from dlc_reg.ops._validate import Array, ArrayT


def knn(
    query: ArrayT,
    points: Array,
    k: int = 1,
    *,
    max_distance: float | None = None,
    num_threads: int | None = None,
) -> tuple[ArrayT, ArrayT]:
    """The k nearest of `points` for every row of `query`, exactly.

    Args:
        query: (N, 3) float32 or float64, N >= 0, a torch tensor or a NumPy array.
        points: (M, 3) likewise, M >= 1, in the same frame and unit.
        k: how many, at least 1; may exceed M.
        max_distance: only neighbours strictly nearer than this, in the points' unit. None: all.
        num_threads: None for all cores. The answer does not depend on it.

    Returns:
        distances (N, k) float32, Euclidean (not squared), and indices (N, k) int64 into `points`; nearest first, equal
        distances by index; missing ones are inf and -1. The kind and device of `query`.

    Distances carry gradients to `query` and `points` (zero where a distance is zero). The search is in float32:
    subtract a common origin from large coordinates first. CUDA tensors are searched on their device; more than 64
    neighbours there take a sort over all points. Works under `torch.compile(fullgraph=True)`; a CUDA graph can capture
    it, and then checks no values.

    Raises:
        InputError: wrong shape or dtype, no points, NaN or infinity, k < 1, a negative or NaN distance.
        RuntimeError: CUDA tensors, but a build without CUDA kernels.
    """
    q, p = _query_and_points(query, points)
    arguments = (q, p, _validate.count("k", k), _validate.limit("max_distance", max_distance))
    run = _library.knn_op if _library.watched(q, p) else _library.knn
    distances, indices = run(*arguments, _validate.threads(num_threads))
    return _validate.like(query, distances), _validate.like(query, indices)


def radius_search(
    query: ArrayT, points: Array, radius: float, *, num_threads: int | None = None
) -> tuple[ArrayT, ArrayT, ArrayT]:
    """All of `points` strictly nearer than `radius` (in their unit) to each row of `query`.

    Returns distances (T,) float32, indices (T,) int64 and splits (N + 1,) int64: the neighbours of query i are the
    entries splits[i]:splits[i + 1], nearest first, equal distances by index. Otherwise as `knn`, but that no CUDA graph
    can capture it: T depends on the data.
    """
    q, p = _query_and_points(query, points)
    run = _library.radius_search_op if _library.watched(q, p) else _library.radius_search
    distances, indices, splits = run(q, p, _validate.length("radius", radius), _validate.threads(num_threads))
    return _validate.like(query, distances), _validate.like(query, indices), _validate.like(query, splits)


_ALIVE: weakref.WeakValueDictionary[tuple[torch.device, int], SearchIndex] = weakref.WeakValueDictionary()


def _key(points: Tensor) -> tuple[torch.device, int]:
    """Where an index keeps its points. They are its own copy, so that while it lives no others are there."""
    return points.device, points.data_ptr()


def index_over(points: Tensor) -> SearchIndex:
    """The index whose points these are, or a new one."""
    found = _ALIVE.get(_key(points))
    if found is not None and found.points.shape == points.shape and points.is_contiguous():
        return found
    return SearchIndex(points)


class SearchIndex:
    """A search tree over points (M, 3), float32 or float64, M >= 1: built once, queried often.

    The points are copied (to float32, on their device), so later changes to them do not matter. Queries are on the same
    device. Answers are those of `knn` and `radius_search`; their distances carry gradients to the query, not to the
    points.
    """

    def __init__(self, points: Array, *, num_threads: int | None = None) -> None:
        self.points: Tensor = _library.checked("points", _validate.points("points", points)).clone()
        self.tree = _library.build_tree(self.points, _validate.threads(num_threads))
        _ALIVE[_key(self.points)] = self

    def __len__(self) -> int:
        return len(self.points)

    def __repr__(self) -> str:
        return f"SearchIndex({len(self)} points)"

    def __reduce__(self) -> tuple[Any, ...]:
        return SearchIndex, (self.points,)

    def knn(
        self, query: ArrayT, k: int = 1, max_distance: float | None = None, *, num_threads: int | None = None
    ) -> tuple[ArrayT, ArrayT]:
        """Distances (N, k) float32 and indices (N, k) int64 of the k nearest points, see `knn`."""
        q = self._query(query)
        limit = _validate.limit("max_distance", max_distance)
        distances, indices = _library.tree_knn(
            self.tree, q, _validate.count("k", k), limit, _validate.threads(num_threads)
        )
        if torch.is_grad_enabled() and q.requires_grad:
            distances = torch.where(indices >= 0, self._attach(distances, q[:, None, :], indices), distances)
        return _validate.like(query, distances), _validate.like(query, indices)

    def radius(self, query: ArrayT, radius: float, *, num_threads: int | None = None) -> tuple[ArrayT, ArrayT, ArrayT]:
        """Distances (T,) float32, indices (T,) int64 and splits (N + 1,) int64, see `radius_search`."""
        q = self._query(query)
        distances, indices, splits = _library.tree_radius(
            self.tree, q, _validate.length("radius", radius), _validate.threads(num_threads)
        )
        if torch.is_grad_enabled() and q.requires_grad:
            distances = self._attach(distances, q.repeat_interleave(splits.diff(), dim=0), indices)
        return _validate.like(query, distances), _validate.like(query, indices), _validate.like(query, splits)

    def _query(self, query: Array) -> Tensor:
        q = _validate.points("query", query, allow_empty=True)
        _validate.same_device("query", q, "the index", self.points)
        return q

    def _attach(self, distances: Tensor, query: Tensor, indices: Tensor) -> Tensor:
        """The native distances, bit for bit, with the gradient of the same distances in torch."""
        points = self.points[indices.clamp(min=0)]
        attached = _reference.root(_reference.squared_distance(query, points))
        return attached + (distances - attached).detach()


def _query_and_points(query: Array, points: Array) -> tuple[Tensor, Tensor]:
    q = _validate.points("query", query, allow_empty=True)
    p = _validate.points("points", points)
    _validate.same_device("query", q, "points", p)
    return q, p
