"""Other libraries' clouds and meshes as raw arrays, recognised by their class's module so that none is imported."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dlc_reg import io
from dlc_reg.errors import InputError
from dlc_reg.io import RawCloud, Surface

Array = npt.NDArray[np.float64]

_ACCEPTED = (
    "a path, an (N, 3) array or tensor, an Open3D cloud or mesh (legacy or tensor), "
    "a trimesh mesh, cloud or scene, or a PointCloud"
)


def from_object(obj: Any, *, argument: str, seed: int) -> RawCloud:
    """A cloud of an array, tensor, nested sequence, or an object of Open3D or trimesh; meshes are sampled.

    Raises:
        InputError: Anything else, or a wrong shape or dtype.
    """
    if isinstance(obj, RawCloud):
        return obj
    library = type(obj).__module__.split(".")[0]
    if library == "open3d":
        content = _from_open3d(obj, argument)
    elif library == "trimesh":
        content = _from_trimesh(obj, argument)
    else:
        content = RawCloud(io.as_points(_to_array(obj, argument), argument))
    if isinstance(content, RawCloud):
        return content
    try:
        return io.sample_surface(content, io.MESH_SAMPLES, seed)
    except ValueError as error:
        raise InputError(argument, f"a mesh that cannot be sampled: {error}", "a mesh with a surface") from error


def _to_array(obj: Any, argument: str) -> npt.NDArray[Any]:
    if isinstance(obj, torch.Tensor):
        if obj.is_complex() or obj.is_sparse or obj.dtype == torch.bool or obj.is_meta:
            raise InputError(argument, f"a tensor of {obj.dtype}, {obj.layout} on {obj.device}", "dense real numbers")
        obj = obj.detach().cpu()
        array: npt.NDArray[Any] = (obj.double() if obj.is_floating_point() else obj).numpy()  # NumPy has no bfloat16
        return array
    if not (isinstance(obj, (np.ndarray, list, tuple)) or hasattr(obj, "__array__")):
        raise InputError(argument, f"an object of type {type(obj).__name__}", _ACCEPTED)
    try:
        return np.asanyarray(obj)
    except (ValueError, TypeError) as error:  # ragged rows
        raise InputError(argument, f"a {type(obj).__name__} that is no array ({error})", _ACCEPTED) from error


def _from_trimesh(obj: Any, argument: str) -> RawCloud | Surface:
    if hasattr(obj, "graph") and hasattr(obj, "geometry"):
        try:
            return io.from_scene(obj)
        except ValueError as error:
            raise InputError(argument, f"a scene without content: {error}", _ACCEPTED) from error
    if not hasattr(obj, "vertices") or hasattr(obj, "entities"):
        raise InputError(argument, f"a trimesh {type(obj).__name__}", _ACCEPTED)
    vertices = io.as_points(np.asarray(obj.vertices), argument)
    faces = np.asarray(getattr(obj, "faces", ()), np.int64).reshape(-1, 3)
    return Surface(vertices, faces) if len(faces) else RawCloud(vertices)


def _from_open3d(obj: Any, argument: str) -> RawCloud | Surface:
    kind, tensor = type(obj).__name__, ".t." in f"{type(obj).__module__}."
    if kind == "PointCloud" and not tensor:
        return RawCloud(
            np.array(obj.points, np.float64),
            np.array(obj.normals, np.float64) if obj.has_normals() else None,
            np.array(obj.colors, np.float64) if obj.has_colors() else None,
            np.array(obj.covariances, np.float64) if obj.has_covariances() else None,
        )
    if kind == "PointCloud":
        normals, colors = (_attribute(obj.point, key) for key in ("normals", "colors"))
        return RawCloud(_positions(obj.point, argument), normals, colors)
    if kind != "TriangleMesh":
        raise InputError(argument, f"an Open3D {kind}", _ACCEPTED)
    if not tensor:
        vertices, triangles = np.array(obj.vertices, np.float64), np.array(obj.triangles, np.int64)
    else:
        vertices = _positions(obj.vertex, argument)
        indices = obj.triangle["indices"].cpu().numpy() if "indices" in obj.triangle else ()
        triangles = np.array(indices, np.int64)
    return Surface(vertices, triangles) if len(triangles) else RawCloud(vertices)


def _positions(attributes: Any, argument: str) -> Array:
    if "positions" not in attributes:
        return np.empty((0, 3))
    return io.as_points(attributes["positions"].cpu().numpy(), argument)


def _attribute(attributes: Any, key: str) -> Array | None:
    if key not in attributes:
        return None
    values = attributes[key].cpu().numpy()
    return np.asarray(values, np.float64) / (255.0 if values.dtype == np.uint8 else 1.0)
