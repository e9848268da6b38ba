"""Clouds of any kind, Open3D's first, as float64 arrays; and back to correspondences in the caller's indices."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud
from dlc_reg.ops import estimate_normals
from dlc_reg.registration.frame import Objective, Pair

Array = NDArray[np.float64]

FAR = 100.0  # extents from the origin beyond which rotations are about the cloud and not about the frame's origin


@dataclass(frozen=True)
class Cloud:
    """`points`, `normals` and `colors` (N, 3) and `covariances` (N, 3, 3), all float64, as the caller has them.

    For Doppler ICP also `dopplers` (N,), radial velocities, and `directions` (N, 3), unit vectors from the sensor.
    """

    points: Array
    normals: Array | None = None
    covariances: Array | None = None
    colors: Array | None = None
    dopplers: Array | None = None
    directions: Array | None = None

    def take(self, rows: NDArray[Any]) -> Cloud:
        """The points `rows` with what is known of them."""
        return self.map(lambda values: values[rows])

    def map(self, change: Callable[[Array], Array]) -> Cloud:
        """The cloud with `change` made to the points and to each attribute that it has."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(array) for name, array in values.items() if array is not None})


def read_cloud(cloud: Any, name: str) -> Cloud:
    """An Open3D cloud (known by its attributes), a `PointCloud`, an array or tensor (N, 3), a path or a mesh.

    Also a mapping of the names that Open3D's tensor clouds have ("positions", "normals", "colors", "dopplers",
    "directions") to arrays or tensors. Raises `TypeError` for anything else, as Open3D does, and `InputError` for a
    wrong shape.
    """
    if isinstance(cloud, Cloud):
        return cloud
    if isinstance(cloud, PointCloud):
        return _from_point_cloud(cloud)
    if hasattr(cloud, "points") and hasattr(cloud, "covariances") and hasattr(cloud, "normals"):
        return _from_arrays(cloud.points, cloud.normals, cloud.covariances, getattr(cloud, "colors", ()))
    if isinstance(cloud, Mapping) or hasattr(cloud, "point"):
        return _from_attributes(cloud if isinstance(cloud, Mapping) else cloud.point, name)
    if isinstance(cloud, (list, tuple)) or hasattr(cloud, "cpu"):
        cloud = as_array(cloud)
    if isinstance(cloud, np.ndarray):
        if cloud.ndim != 2 or cloud.shape[1] != 3 or cloud.dtype.kind not in "fiu":
            raise InputError(name, f"an array of shape {cloud.shape}, {cloud.dtype}", "numbers of shape (N, 3)")
        return Cloud(np.asarray(cloud, dtype=np.float64))
    if isinstance(cloud, (str, Path)) or hasattr(cloud, "vertex") or hasattr(cloud, "vertices"):
        return _from_point_cloud(PointCloud.from_any(cloud, name=name))
    raise TypeError(
        f"{name}: got {type(cloud).__name__}; expected an Open3D point cloud, a PointCloud, "
        "an array or tensor of shape (N, 3), or the path of a file"
    )


def as_array(values: Any) -> NDArray[Any]:
    """A NumPy array of a tensor of torch's or Open3D's, on any device, or of whatever NumPy understands."""
    if isinstance(values, torch.Tensor):
        return np.asarray(values.detach().cpu().numpy())
    if hasattr(values, "cpu") and hasattr(values, "numpy"):
        return np.asarray(values.cpu().numpy())
    return np.asarray(values)


def _from_attributes(attributes: Any, name: str) -> Cloud:
    if "positions" not in attributes:
        if isinstance(attributes, Mapping) and attributes:
            given = f"a mapping of {', '.join(map(str, attributes))}"
            raise InputError(name, given, '"positions", and if wanted "normals", "colors", ...')
        return Cloud(np.zeros((0, 3)))
    points = read_cloud(as_array(attributes["positions"]), name).points
    found = {}
    for what, width in (("normals", 3), ("colors", 3), ("dopplers", 1), ("directions", 3)):
        if what not in attributes:
            continue
        values = as_array(attributes[what]).astype(np.float64)
        if len(values) != len(points) or values.size != width * len(points):
            raise InputError(name, f"{what} of shape {values.shape}", f"shape ({len(points)}, {width})")
        found[what] = values.reshape((-1, width) if width > 1 else -1)
    if "colors" in found and as_array(attributes["colors"]).dtype == np.uint8:
        found["colors"] = found["colors"] / 255.0
    return Cloud(points, **found)


def _from_point_cloud(cloud: PointCloud) -> Cloud:
    covariances = None
    if cloud.covariances is not None:
        covariances = cloud.covariances.double().cpu().numpy()[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)
    normals = None if cloud.normals is None else cloud.normals.double().cpu().numpy()
    colors = None if cloud.colors is None else cloud.colors.double().cpu().numpy()
    return Cloud(np.asarray(cloud.to_absolute(), dtype=np.float64), normals, covariances, colors)


def _from_arrays(points: Any, *attributes: Any) -> Cloud:
    xyz = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    rows = [np.asarray(values, dtype=np.float64) for values in attributes]
    # Open3D: a cloud has normals when there are as many as points, and at least one
    return Cloud(xyz, *(values if len(values) == len(xyz) > 0 else None for values in rows))


def read_correspondences(corres: Any, source_count: int, target_count: int) -> NDArray[np.int64]:
    """Rows (source index, target index), (m, 2) int64, checked against the clouds' sizes."""
    pairs = np.asarray(corres)
    if pairs.size == 0:
        return np.zeros((0, 2), np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise TypeError(f"corres: got shape {pairs.shape}, {pairs.dtype}; expected integers of shape (m, 2)")
    wrong = (pairs < 0).any(axis=1) | (pairs >= (source_count, target_count)).any(axis=1)
    if wrong.any():
        first = tuple(int(x) for x in pairs[wrong][0])
        raise InputError(
            "corres",
            f"row {first}",
            f"indices below {source_count} (points in source) and {target_count} (points in target)",
        )
    return pairs.astype(np.int64)


def prepare_pair(
    source: Cloud,
    target: Cloud,
    objective: Objective,
    *,
    max_distance: float,
    source_count: int | None = None,
    num_threads: int | None = None,
) -> Pair:
    """The pair in local frames, with the update's pivot where Open3D has it: at the origin of the target's frame.

    Where the target lies more than `FAR` extents from that origin, a rotation about it moves the cloud so far that the
    chart is useless (and float64 runs out): then the pivot is the target's own origin.
    """
    local_target = _to_local(target, "target")
    far = float(np.abs(local_target.origin).max()) > FAR * _extent(target.points) > 0.0
    pivot = np.zeros(3) if far else -local_target.origin
    return Pair.prepare(
        _to_local(source, "source"),
        local_target,
        objective,
        max_distance=max_distance,
        pivot=pivot,
        source_count=source_count,
        num_threads=num_threads,
    )


def drop_non_finite(source: Cloud) -> tuple[Cloud, NDArray[np.int64] | None]:
    """The source without its non-finite points (said in a warning), and the indices of the points kept."""
    finite = np.asarray(np.isfinite(source.points).all(axis=1))
    if finite.all():
        return source, None
    warnings.warn(
        f"source: {int((~finite).sum())} of {len(finite)} points are not finite and have no correspondence; "
        "they still count in the fitness, as in Open3D",
        stacklevel=4,
    )
    kept = np.flatnonzero(finite)
    return source.take(kept), kept


def check_finite(cloud: Cloud, name: str) -> None:
    for what in (field.name for field in fields(cloud)):
        values = getattr(cloud, what)
        if values is not None and not np.isfinite(values).all():
            count = int((~np.isfinite(values.reshape(len(values), -1)).all(axis=1)).sum())
            raise InputError(
                name,
                f"{count} non-finite {what} of {len(values)}",
                f"finite {what}: remove them, for instance by {name}.remove_non_finite_points()",
            )


def covariances_from_normals(cloud: Cloud, epsilon: float) -> Cloud:
    """Covariances with variance `epsilon` along the normal and 1 across, where the cloud has none of its own.

    C = R diag(epsilon, 1, 1) R^T with R the rotation that takes e1 into the normal, except that R is identity for
    normals within acos(0.99) of -e1 (Open3D's rule, kept so that results agree).
    """
    if cloud.covariances is not None or not len(cloud.points):
        return cloud
    normals = cloud.normals
    if normals is None:
        centred = torch.from_numpy((cloud.points - cloud.points.mean(axis=0)).astype(np.float32))
        normals = estimate_normals(centred, k=20).double().numpy()
    cross = np.zeros((len(normals), 3, 3))
    cross[:, 0, 1], cross[:, 0, 2] = -normals[:, 1], -normals[:, 2]
    cross[:, 1, 0], cross[:, 2, 0] = normals[:, 1], normals[:, 2]
    cosine = normals[:, 0, None, None]
    rotation = np.eye(3) + cross + cross @ cross / np.where(cosine < -0.99, 1.0, 1.0 + cosine)
    rotation = np.where(cosine < -0.99, np.eye(3), rotation)
    return replace(cloud, covariances=rotation * [epsilon, 1.0, 1.0] @ rotation.transpose(0, 2, 1))


def _to_local(cloud: Cloud, name: str) -> PointCloud:
    points = cloud.points
    # scans are often stored as float32 near the origin: those stay exactly as they are
    near = bool(np.abs(points).max(initial=0.0) <= 4 * _extent(points))
    exact = near and np.array_equal(points, points.astype(np.float32))
    origin = np.zeros(3) if exact or not len(points) else points.mean(axis=0)
    covariances = None if cloud.covariances is None else cloud.covariances.reshape(-1, 9)[:, [0, 1, 2, 4, 5, 8]]
    return PointCloud(
        points=_tensor(points - origin),
        origin=origin,
        normals=None if cloud.normals is None else _tensor(cloud.normals),
        covariances=None if covariances is None else _tensor(covariances),
        colors=None if cloud.colors is None else _tensor(cloud.colors),
        name=name,
    )


def _extent(points: Array) -> float:
    return float(np.ptp(points, axis=0).max()) if len(points) else 0.0


def _tensor(values: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
