"""The one container for point clouds, the checks that every cloud passes once, and the frames that keep it accurate.

A cloud is float32 relative to a float64 origin of its own, so that coordinates of 10^7 m keep the accuracy of the
cloud's size and not of its place. The origin is the mean: of all choices it makes the local coordinates smallest in the
sense of squares, which is what the linear systems of registration see, and it makes every result independent of where
the cloud stands. `localize` and `globalize` carry transforms between the two frames.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlc_reg import io, ops
from dlc_reg._convert import from_object
from dlc_reg.errors import InputError

Array = npt.NDArray[np.float64]

MIN_POINTS = 3
MAX_MAGNITUDE = 1e15  # squares of float32 lengths stay finite up to 1e19 and normal down to 1e-19
COLLINEAR = 1e-6  # second to first standard deviation: above float32's rounding (6e-8), far below any sensor's noise
MAX_EXTENT_RATIO = 100.0
_SPACING_QUERIES = 4096
_EXTENT_SAMPLES = 100_000


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Points with what is known of each, in the user's unit. Make one with `from_any`; it is not to be changed.

    Attributes:
        points: (N, 3) float32 on the CPU, relative to `origin`.
        origin: (3,) float64; absolute coordinates are `points + origin`.
        normals: (N, 3) float32 unit vectors, or None.
        covariances: (N, 6) float32, the upper triangle xx xy xz yy yz zz of each point's covariance, or None.
        colors: (N, 3) float32 in [0, 1], or None.
        viewpoint: (3,) float64, where the sensor stood in absolute coordinates, or None when that is unknown.
        kept: (N,) int64, the row of each point in the cloud as it was given, or None when it is the same row.
        dropped: How many non-finite points were removed.
        name: What to call the cloud in messages.
    """

    points: Tensor
    origin: Array
    normals: Tensor | None = None
    covariances: Tensor | None = None
    colors: Tensor | None = None
    viewpoint: Array | None = None
    kept: Tensor | None = None
    dropped: int = 0
    name: str = "source"

    @classmethod
    def from_any(
        cls,
        obj: Any,
        *,
        name: str = "source",
        viewpoint: npt.ArrayLike | None = None,
        remove_non_finite: bool = False,
        seed: int = 0,
    ) -> PointCloud:
        """Makes a cloud of whatever holds points, and checks it.

        Args:
            obj: A path (see `dlc_reg.io.read`); an array, tensor or nested sequence of shape (N, 3), integers or any
                float, on any device; an Open3D cloud or mesh, legacy or tensor; a trimesh mesh, cloud or scene; a
                `RawCloud`; a `PointCloud`, which is returned as it is. Meshes are sampled on their surface.
            name: The caller's name of the argument, for messages.
            viewpoint: Where the sensor stood, (3,) in the cloud's own frame; it goes before the file's.
            remove_non_finite: Drop points with NaN or infinite coordinates instead of raising.
            seed: Of the sampling of meshes.

        Given normals are normalised, and ignored as a whole when some are zero or not finite.

        Raises:
            InputError: Not a cloud, unreadable, wrong shape or dtype, non-finite or absurdly large or small
                coordinates, fewer than 3 points, all points equal or on one line.
        """
        stood = None if viewpoint is None else check_viewpoint(viewpoint, f"{name}_viewpoint")
        if isinstance(obj, PointCloud):
            return obj if stood is None else replace(obj, viewpoint=stood)
        if isinstance(obj, (str, os.PathLike)):
            raw = io.read(obj, argument=name, seed=seed)
        else:
            raw = from_object(obj, argument=name, seed=seed)
        if stood is None and raw.viewpoint is not None:
            stood = check_viewpoint(raw.viewpoint, f"{name}'s viewpoint")

        finite = check_points(raw.points, name, remove_non_finite=remove_non_finite)
        keep = None if finite.all() else np.flatnonzero(finite)
        points = raw.points if keep is None else raw.points[keep]
        origin = np.array([column.mean() for column in points.T])  # by columns: NumPy is ten times slower along rows
        _check_spread(points, origin, name)

        def kept_rows(values: Array | None, what: str) -> Array | None:
            if values is not None and len(values) != len(raw.points):
                raise InputError(name, f"{len(values)} {what} for {len(raw.points)} points", "one for each point")
            return values if values is None or keep is None else values[keep]

        normals = _unit(kept_rows(raw.normals, "normals"))
        covariances = kept_rows(raw.covariances, "covariances")
        if covariances is not None:
            covariances = covariances[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
        return cls(
            points=_single(points - origin),
            origin=origin,
            normals=None if normals is None else _single(normals),
            covariances=None if covariances is None else _single(covariances),
            colors=None if raw.colors is None else _single(kept_rows(raw.colors, "colors")),
            viewpoint=stood,
            kept=None if keep is None else torch.from_numpy(keep),
            dropped=len(raw.points) - len(points),
            name=name,
        )

    def __len__(self) -> int:
        return len(self.points)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_index"}  # it is quick to build again

    def __repr__(self) -> str:
        known = [k for k in ("normals", "covariances", "colors", "viewpoint") if getattr(self, k) is not None]
        return f"PointCloud({self.name}: {len(self)} points{''.join(', ' + k for k in known)})"

    @property
    def intensities(self) -> Tensor | None:
        """(N, 1) float32: the means of red, green and blue, or None."""
        return None if self.colors is None else self.colors.mean(dim=1, keepdim=True)

    @cached_property
    def extent(self) -> float:
        """The diagonal of the bounding box."""
        return float(torch.linalg.vector_norm((self.points.amax(0) - self.points.amin(0)).double()))

    @cached_property
    def spacing(self) -> float:
        """The median distance to the nearest other point, over evenly chosen points; repeated points count once."""
        median = _median_gap(self.search_index())
        return median or _median_gap(ops.SearchIndex(torch.unique(self.points, dim=0)))

    def search_index(self, num_threads: int | None = None) -> ops.SearchIndex:
        """The search tree over `points`, built when it is first asked for."""
        index: ops.SearchIndex | None = self.__dict__.get("_index")
        if index is None:
            index = self.__dict__["_index"] = ops.SearchIndex(self.points, num_threads=num_threads)
        return index

    @property
    def local_viewpoint(self) -> Tensor | None:
        """(3,) float32: the viewpoint relative to the origin."""
        return None if self.viewpoint is None else _single(self.viewpoint - self.origin)

    def to_absolute(self) -> Array:
        """(N, 3) float64: the points in the user's coordinates."""
        absolute: Array = self.points.numpy().astype(np.float64) + self.origin
        return absolute

    def select(self, indices: Tensor | npt.NDArray[Any]) -> PointCloud:
        """The points at these indices (M,), or where this mask (N,) is true, with all that belongs to them."""
        chosen = torch.as_tensor(indices)
        chosen = chosen.nonzero().squeeze(1) if chosen.dtype == torch.bool else chosen.long()
        return replace(
            self,
            points=self.points[chosen],
            normals=None if self.normals is None else self.normals[chosen],
            covariances=None if self.covariances is None else self.covariances[chosen],
            colors=None if self.colors is None else self.colors[chosen],
            kept=chosen if self.kept is None else self.kept[chosen],
        )

    def voxel_downsample(self, voxel_size: float) -> PointCloud:
        """One point for each occupied voxel: means of points, covariances, colours and (normalised) normals."""
        means, inverse = ops.voxel_groups(self.points, voxel_size)
        counts = torch.bincount(inverse, minlength=len(means))[:, None]

        def mean(values: Tensor | None) -> Tensor | None:
            if values is None:
                return None
            sums = torch.zeros((len(means), values.shape[1]), dtype=torch.float64)
            return (sums.index_add_(0, inverse, values.double()) / counts).float()

        normals = mean(self.normals)
        if normals is not None and self.normals is not None:
            lengths = torch.linalg.vector_norm(normals, dim=1, keepdim=True)
            member = torch.empty(len(means), dtype=torch.int64)
            member[inverse] = torch.arange(len(inverse))
            # both sides of a thin sheet in one voxel cancel out: then one of them stands for it
            normals = torch.where(lengths > 1e-3, normals / lengths.clamp_min(1e-3), self.normals[member])
        return replace(
            self,
            points=means,
            normals=normals,
            covariances=mean(self.covariances),
            colors=mean(self.colors),
            kept=None,
        )

    def with_normals(self, k: int = 20, *, num_threads: int | None = None) -> PointCloud:
        """With normals: the given ones, else estimated from k neighbours; turned to the viewpoint where it is known."""
        normals = self.normals
        if normals is None:
            normals = ops.estimate_normals(self.search_index(num_threads), k, num_threads=num_threads)
        viewpoint = self.local_viewpoint
        if viewpoint is not None:
            normals = turned_to(viewpoint, self.points, normals)
        return self.attach(normals=normals)

    def attach(self, **attributes: Any) -> PointCloud:
        """The same points, with their search tree if there is one, and other normals, covariances or colors."""
        made = replace(self, **attributes)
        if "_index" in self.__dict__:
            made.__dict__["_index"] = self.__dict__["_index"]
        return made


def turned_to(viewpoint: Tensor, points: Tensor, normals: Tensor) -> Tensor:
    """`normals` (N, 3) of `points` (N, 3) with their signs turned to `viewpoint` (3,), in the points' frame."""
    away = ((viewpoint - points) * normals).sum(dim=1, keepdim=True) < 0
    return torch.where(away, -normals, normals)


def check_points(points: Array, argument: str, *, remove_non_finite: bool = False) -> npt.NDArray[np.bool_]:
    """Which of the (N, 3) points are finite; raises InputError where they cannot be used."""
    if len(points) == 0:
        raise InputError(argument, "an empty cloud", f"at least {MIN_POINTS} points")
    entries = np.isfinite(points)
    finite = np.ones(len(points), np.bool_) if bool(entries.all()) else np.all(entries, axis=1)
    bad = len(points) - int(finite.sum())
    if bad and not remove_non_finite:
        first = int(np.argmin(finite))
        given = f"{bad} of {len(points)} points with NaN or infinite coordinates, the first in row {first}"
        raise InputError(argument, given, "finite coordinates, or remove_non_finite=True to drop those points")
    left = len(points) - bad
    if left < MIN_POINTS:
        given = f"{left} points" + (f" after dropping {bad} non-finite ones" if bad else "")
        raise InputError(argument, given, f"at least {MIN_POINTS}")
    return finite


def _check_spread(points: Array, mean: Array, argument: str) -> None:
    """Raises InputError unless finite points (N, 3) have a usable size and do not lie on one line."""
    low, high = (np.array([extreme(column) for column in points.T]) for extreme in (np.min, np.max))
    largest = max(-low.min(), high.max())
    if largest > MAX_MAGNITUDE:
        raise InputError(
            argument, f"coordinates up to {largest:.3g}", f"at most {MAX_MAGNITUDE:.0e}: are they damaged?"
        )
    extent = float(np.linalg.norm(high - low))
    if extent == 0:
        raise InputError(argument, f"{len(points)} points that are all equal", "points spread over a surface")
    if extent < 1 / MAX_MAGNITUDE:
        raise InputError(
            argument, f"a cloud {extent:.3g} wide", f"at least {1 / MAX_MAGNITUDE:.0e}: use a smaller unit"
        )
    centred = (points - mean) / extent
    spread = np.sqrt(np.linalg.eigvalsh(centred.T @ centred).clip(min=0))  # right to 1e-8: the limit's square is 1e-12
    if spread[1] <= COLLINEAR * spread[2]:
        raise InputError(argument, f"{len(points)} points on one line", "points spread over a surface")


def check_viewpoint(value: npt.ArrayLike, argument: str) -> Array:
    """Three finite numbers as (3,) float64."""
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
        if array.dtype.kind in "fiu" and array.shape == (3,) and np.isfinite(array).all():
            return array.astype(np.float64)
    except ValueError:  # ragged
        pass
    raise InputError(argument, repr(value)[:80], "three finite numbers, where the sensor stood in this cloud's frame")


def check_pair(source: PointCloud, target: PointCloud) -> None:
    """Raises InputError when the middle parts of the clouds (2% to 98%) differ in size by 100 times or more."""
    sizes = [_robust_extent(cloud) for cloud in (source, target)]
    ratio = max(sizes) / min(sizes)
    if ratio >= MAX_EXTENT_RATIO:
        given = f"{source.name} {sizes[0]:.3g} and {target.name} {sizes[1]:.3g} wide, {ratio:.0f} times apart"
        raise InputError(
            "source, target", given, "clouds in one unit (mm and m?): scale one of them, or crop the larger"
        )


def _median_gap(index: ops.SearchIndex) -> float:
    step = -(-len(index) // _SPACING_QUERIES)
    return float(index.knn(index.points[::step].contiguous(), k=2)[0][:, 1].median())


def _robust_extent(cloud: PointCloud) -> float:
    step = -(-len(cloud) // _EXTENT_SAMPLES)
    low, high = np.quantile(cloud.points[::step].numpy(), (0.02, 0.98), axis=0)
    return float(np.linalg.norm(high - low)) or cloud.extent


def nearly_rigid(matrix: Array) -> bool:
    """Whether (4, 4) is a rotation and a translation to the digits that recorded poses have."""
    rotation = matrix[:3, :3]
    turns = np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-3 and np.linalg.det(rotation) > 0
    return bool(np.isfinite(matrix).all() and turns and np.abs(matrix[3] - [0, 0, 0, 1]).max() < 1e-6)


def apply_transform(transform: npt.ArrayLike, points: npt.ArrayLike) -> Array:
    """p' = R p + t in float64: transform (4, 4), points (N, 3)."""
    matrix = np.asarray(transform, np.float64)
    moved: Array = np.asarray(points, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    return moved


def localize(transform: npt.ArrayLike, source: PointCloud, target: PointCloud) -> Array:
    """T_local = Trans(-o_target) T Trans(o_source): from source-local to target-local; (4, 4) float64."""
    return _shift(transform, source.origin, -target.origin)


def globalize(transform: npt.ArrayLike, source: PointCloud, target: PointCloud) -> Array:
    """T = Trans(o_target) T_local Trans(-o_source): between the users' coordinates; (4, 4) float64."""
    return _shift(transform, -source.origin, target.origin)


def _shift(transform: npt.ArrayLike, before: Array, after: Array) -> Array:
    """Trans(after) T Trans(before), the translation summed in extended precision, for its large terms nearly cancel."""
    out = np.array(transform, np.float64)
    wide = np.longdouble
    terms = out[:3, :3].astype(wide) @ before.astype(wide) + out[:3, 3].astype(wide) + after.astype(wide)
    out[:3, 3] = terms.astype(np.float64)
    return out


def _unit(normals: Array | None) -> Array | None:
    if normals is None:
        return None
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    usable = bool(np.isfinite(lengths).all() and (lengths > 0).all())
    return normals / lengths if usable else None


def _single(values: Array | None) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
