"""Descriptors of points and their matches, by the names of Open3D 0.20; the tensor face shares what is below them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.pipelines._clouds import Cloud, as_array, check_finite, read_cloud
from dlc_reg.pipelines._estimation import _as_float, _as_int

Array = NDArray[np.float64]

_PAIRS = 100_000  # pairs of points looked at at once: what is known of them fits a processor's cache
_EDGE = 1e-5  # of the radius: so near to it a neighbour found in float32 is judged in float64
_BINS = 11  # of each of the three histograms
_SIZE = 3 * _BINS


class Feature:
    """Descriptors of points, `data` (D, N) float64: a column a point. `Feature()` is empty, `Feature(other)` a copy."""

    def __init__(self, other: Any = None) -> None:
        self.data = np.zeros((0, 0)) if other is None else read_features(other, "other").numpy().T.copy()

    @property
    def data(self) -> Array:
        return self._data

    @data.setter
    def data(self, values: Any) -> None:
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 2:
            raise InputError("data", f"shape {array.shape}", "shape (D, N): a column a point")
        self._data = array

    def dimension(self) -> int:
        """D, the length of a descriptor."""
        return int(self._data.shape[0])

    def num(self) -> int:
        """N, the number of points."""
        return int(self._data.shape[1])

    def resize(self, dim: int, n: int) -> None:
        """Makes `data` zeros of shape (dim, n)."""
        self._data = np.zeros((_as_int("dim", dim), _as_int("n", n)))

    def select_by_index(self, indices: Sequence[int], invert: bool = False) -> Feature:
        """The descriptors of the points `indices`, in the cloud's order, or with `invert` of all the others."""
        rows = as_rows(indices, self.num())
        if invert:
            rows = np.delete(np.arange(self.num()), rows)
        selected = Feature()
        selected.data = self._data[:, rows]
        return selected

    def __repr__(self) -> str:
        return (
            f"Feature class with dimension = {self.dimension()} and num = {self.num()}\n"
            "Access its data via data member."
        )


def compute_fpfh_feature(
    input: Any, search_param: Any, indices: Sequence[int] | None = None, *, num_threads: int | None = None
) -> Feature:
    """Fast point feature histograms (Rusu et al., ICRA 2009) of a cloud with normals: 33 numbers a point.

    Args:
        input: a cloud (see the module).
        search_param: who a point's neighbours are. Open3D's `KDTreeSearchParamHybrid`, `...Radius` or `...KNN`;
            without Open3D a radius in the points' unit, or a pair (radius, largest number), either None.
        indices: only of these points, in the cloud's order and each once, as in Open3D; None: of all.
        num_threads: None for all cores. The result does not depend on it.

    The signs of the normals matter: turn them to the sensor. Computed in float64 over neighbours found in float32.

    Raises:
        InputError: no normals, non-finite points or normals, a radius or a number that is not positive.
    """
    radius, count = _as_search(search_param)
    cloud = read_cloud(input, "input")
    feature = Feature()
    feature.data = fpfh(cloud, radius, count, num_threads).numpy().T
    return feature if indices is None else feature.select_by_index(indices)


def correspondences_from_features(
    source_features: Any,
    target_features: Any,
    mutual_filter: bool = False,
    mutual_consistency_ratio: float = 0.1,
    *,
    num_threads: int | None = None,
) -> NDArray[np.int32]:
    """Rows (source index, target index), (m, 2) int32: for each source point the one of the nearest descriptor.

    With `mutual_filter` only pairs that are each other's nearest, unless fewer than `mutual_consistency_ratio` of the
    source points have one: then all, with a warning. Descriptors are `Feature`s, Open3D's or ours, or arrays (D, N).
    Raises `InputError` for descriptors of different lengths, none, or NaN.
    """
    a, b = read_features(source_features, "source_features"), read_features(target_features, "target_features")
    return match(a, b, mutual_filter, mutual_consistency_ratio, num_threads).numpy().astype(np.int32)


def fpfh(cloud: Cloud, radius: float | None, count: int | None, num_threads: int | None = None) -> Tensor:
    """(N, 33) float64 over the at most `count` nearest within `radius` of each point, the point itself included."""
    if cloud.normals is None and len(cloud.points):
        raise InputError(
            "input",
            f"a cloud of {len(cloud.points)} points without normals",
            "normals: call input.estimate_normals() on an Open3D cloud, or PointCloud.from_any(input).with_normals()",
        )
    check_finite(cloud, "input")
    total = len(cloud.points)
    if not total:
        return torch.zeros(0, _SIZE, dtype=torch.float64)
    points = torch.from_numpy(cloud.points - cloud.points.mean(axis=0))
    normals = torch.from_numpy(cast(Array, cloud.normals))
    columns = points.T.contiguous(), normals.T.contiguous()
    own, found = torch.zeros(total, _SIZE, dtype=torch.float64), []
    for first, last, splits, near in _neighbourhoods(points, radius, count, num_threads):
        sizes = splits.diff()
        centre = torch.arange(first, last).repeat_interleave(sizes)
        angles, squared = _pair_angles(*columns, centre, near)
        bins = (angles * _BINS).long().clamp_(0, _BINS - 1)
        cells = bins + torch.arange(0, _SIZE, _BINS)[:, None] + (centre - first) * _SIZE
        counts = torch.bincount(cells.flatten(), minlength=(last - first) * _SIZE).view(-1, _SIZE)
        own[first:last] = counts * (100.0 / sizes.clamp(min=1).double())[:, None]
        found.append((first, last, splits, near, torch.where(squared > 0, 1.0 / squared, 0.0)))
    features = own.clone()
    for first, last, splits, near, weights in found:
        sums = embedding_bag(near, own, splits, mode="sum", per_sample_weights=weights, include_last_offset=True)
        scale = sums.view(-1, 3, _BINS).sum(-1, keepdim=True)
        features[first:last] += (100.0 * sums.view(-1, 3, _BINS) / torch.where(scale > 0, scale, 1.0)).view(-1, _SIZE)
    return features


def _pair_angles(points: Tensor, normals: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    """Darboux angles (3, P) of the pairs, scaled to [0, 1], and the squared distances (P,); points and normals (3, N).

    The angles of `ops.fpfh`, whose frame u, v, w stands on the point whose normal u is closer to the line d, from dot
    products alone: with s = |d x u|, theta = atan2((d.m - u.d u.m) / s, u.m), v.m = det(d, u, m) / s and phi = u.d. As
    in Open3D, a pair without a frame counts as one whose three angles are zero.
    """
    d, n1, n2 = points[:, j] - points[:, i], normals[:, i], normals[:, j]
    squared = _dot(d, d)
    length = squared.sqrt()
    first, second, both = _dot(n1, d) / length, _dot(n2, d) / length, _dot(n1, n2)
    swapped = first.abs() < second.abs()
    phi, other = torch.where(swapped, -second, first), torch.where(swapped, -first, second)
    volume = _dot(d, torch.linalg.cross(n1, n2, dim=0)) / length  # the same for both frames
    across = (1.0 - phi.square()).clamp_(min=0).sqrt()
    theta = torch.atan2((other - phi * both) / across, both)
    angles = torch.stack([theta / (2 * math.pi) + 0.5, (volume / across + 1) / 2, (phi + 1) / 2])
    return torch.where((length > 0) & (across > 0), angles, 0.5), squared


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _neighbourhoods(
    points: Tensor, radius: float | None, count: int | None, num_threads: int | None
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """The neighbours of points first to last, without the nearest, which is the point itself: splits and indices."""
    index = ops.SearchIndex(points.float(), num_threads=num_threads)
    wider = None if radius is None else radius * (1 + _EDGE)
    step = len(points) if count is None else max(1, _PAIRS // min(count, len(points)))
    for first in range(0, len(points), step):
        query = index.points[first : first + step]
        rows = torch.arange(first, first + len(query))
        if count is None:
            distances, near, splits = index.radius(query, cast(float, wider), num_threads=num_threads)
            keep = torch.ones(len(near), dtype=torch.bool)
            keep[splits[:-1]] = False  # there is always one: the point itself
            centre, near, distances = rows.repeat_interleave(splits.diff())[keep], near[keep], distances[keep]
        else:
            distances, near = index.knn(query, min(count, len(points)), wider, num_threads=num_threads)
            keep = near[:, 1:] >= 0
            centre = rows.repeat_interleave(keep.sum(1))
            near, distances = near[:, 1:][keep], distances[:, 1:][keep]
        if radius is not None:
            edge = (distances > radius * (1 - _EDGE)).nonzero()[:, 0]
            outside = edge[(points[near[edge]] - points[centre[edge]]).norm(dim=1) >= radius]
            keep = torch.ones(len(near), dtype=torch.bool)
            keep[outside] = False
            centre, near = centre[keep], near[keep]
        sizes = torch.bincount(centre - first, minlength=len(query))
        yield first, first + len(query), torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]), near


def match(a: Tensor, b: Tensor, mutual: bool, consistency: float, num_threads: int | None = None) -> Tensor:
    """Rows (K, 2) int64 of indices into descriptors a (N, D) and b (M, D), see `correspondences_from_features`."""
    if not len(a) or not len(b):
        return torch.zeros(0, 2, dtype=torch.int64)
    if a.shape[1] != b.shape[1]:
        raise InputError("target_features", f"descriptors of length {b.shape[1]}", f"length {a.shape[1]}")
    if mutual:
        pairs, _ = ops.mutual_matches(a, b, num_threads=num_threads)
        if len(pairs) >= int(consistency * len(a)):
            return pairs
        warnings.warn(
            f"mutual_filter: {len(pairs)} of {len(a)} descriptors are mutually nearest, fewer than the share "
            f"{consistency:g} asked for; all nearest ones are used instead",
            stacklevel=3,
        )
    nearest, _ = ops.nearest_features(a, b, num_threads=num_threads)
    return torch.stack([torch.arange(len(a)), nearest], 1)


def read_features(features: Any, name: str) -> Tensor:
    """(N, D) float64 of a `Feature`, ours or Open3D's, or of an array (D, N); `TypeError` for anything else."""
    values = getattr(features, "data", None) if hasattr(features, "dimension") else features
    return as_descriptors(values, name, f"{type(features).__name__}; expected a Feature or an array of shape (D, N)").T


def as_descriptors(values: Any, name: str, wrong: str) -> Tensor:
    """A matrix of float64; `TypeError` with the words `wrong` for anything else."""
    try:
        array = np.asarray(as_array(values), dtype=np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.ndim != 2:
        raise TypeError(f"{name}: got {wrong}")
    return torch.from_numpy(np.ascontiguousarray(array))


def as_rows(indices: Any, count: int) -> NDArray[np.int64]:
    """The indices in rising order, each once: how Open3D selects."""
    rows = np.asarray(indices)
    if rows.size and (rows.ndim != 1 or rows.dtype.kind not in "iu"):
        raise TypeError(f"indices: got shape {rows.shape}, {rows.dtype}; expected integers of shape (m,)")
    if rows.size and not 0 <= rows.min() <= rows.max() < count:
        raise InputError("indices", f"{rows.min()} to {rows.max()}", f"indices from 0 to {count - 1}")
    return np.unique(rows).astype(np.int64)


def _as_search(given: Any) -> tuple[float | None, int | None]:
    """(radius, largest number of neighbours) of Open3D's parameters, a number, or a pair."""
    if hasattr(given, "radius") or hasattr(given, "max_nn") or hasattr(given, "knn"):
        radius, count = getattr(given, "radius", None), getattr(given, "max_nn", getattr(given, "knn", None))
    elif isinstance(given, (tuple, list)) and len(given) == 2:
        radius, count = given
    elif hasattr(given, "__float__"):
        radius, count = given, None
    else:
        raise TypeError(
            f"search_param: got {type(given).__name__}; expected a KDTreeSearchParam, a radius, or (radius, number)"
        )
    return checked_search(radius, count, "search_param", 1)


def checked_search(radius: Any, count: Any, name: str, least: int) -> tuple[float | None, int | None]:
    radius = None if radius is None else _as_float(name, radius)
    count = None if count is None else _as_int(name, count)
    if radius is None and count is None:
        raise InputError(name, "neither a radius nor a number of neighbours", "one of them, or both")
    if radius is not None and not 0 < radius < float("inf"):
        raise InputError(name, f"radius {radius:g}", "a radius above 0")
    if count is not None and count < least:
        raise InputError(name, f"{count} neighbours", f"a number of at least {least}")
    return radius, count
