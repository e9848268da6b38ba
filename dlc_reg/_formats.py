"""What each kind of file holds: one small reader a format, (stream, size, suffix) -> arrays.

Every size in a header is held against the bytes that are there before memory is asked for; the libraries that know the
formats are imported where they are used. Errors are whatever the parsers raise: `dlc_reg.io` names the file.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dlc_reg._e57 import read_e57
from dlc_reg._las import read_las
from dlc_reg._pcd import read_pcd
from dlc_reg._ply import read_ply
from dlc_reg.errors import InputError

Array = npt.NDArray[np.float64]

TEXT_SUFFIXES = (".xyz", ".pts", ".txt", ".csv", ".asc", ".xyzn", ".xyzrgb")
_ZIP_RATIO = 200  # beyond what real clouds compress to
_NPY_HEADER = 10_000  # bytes, NumPy's own limit
_ZIP_FREE_BYTES = 1 << 26  # small archives may compress as they like


@dataclass(frozen=True, eq=False)
class RawCloud:
    """A cloud as it came, unchecked: float64, absolute coordinates, non-finite values kept.

    points (N, 3); normals (N, 3), colors (N, 3) in [0, 1] and covariances (N, 3, 3) or None; viewpoint (3,): where the
    sensor stood, in the points' frame, or None; kind: "points", or "mesh" when they were sampled on a surface.
    """

    points: Array
    normals: Array | None = None
    colors: Array | None = None
    covariances: Array | None = None
    viewpoint: Array | None = None
    kind: str = "points"


@dataclass(frozen=True, eq=False)
class Surface:
    """Vertices (V, 3) and triangles (F, 3)."""

    vertices: Array
    triangles: npt.NDArray[np.int64]


def as_points(values: Any, argument: str) -> Array:
    """Real numbers (integers, any float) as C-contiguous float64 (N, 3), copied if need be; masked entries are NaN."""
    array: npt.NDArray[Any] = np.asanyarray(values)
    if array.dtype.kind not in "fiu":
        raise InputError(argument, f"dtype {array.dtype}", "real numbers (float or integer)")
    if array.ndim != 2 or array.shape[1] != 3:
        remedy = "an array of shape (N, 3), one point a row"
        if array.ndim == 2 and array.shape[0] == 3:
            remedy += f": transpose it ({argument}.T)"
        elif array.ndim == 2 and array.shape[1] > 3:
            remedy += f": pass the coordinates alone ({argument}[:, :3])"
        raise InputError(argument, f"an array of shape {array.shape}", remedy)
    if isinstance(array, np.ma.MaskedArray):
        array = np.ma.filled(array.astype(np.float64), np.nan)
    return np.ascontiguousarray(array, np.float64)


def from_scene(scene: Any) -> RawCloud | Surface:
    """All triangles of a trimesh scene in its root's frame, or all points where it has no triangle."""
    vertices: list[Array] = []
    triangles: list[npt.NDArray[np.int64]] = []
    loose: list[Array] = []
    for node in sorted(scene.graph.nodes_geometry):  # the scene's own order changes from process to process
        transform, name = scene.graph[node]
        geometry = scene.geometry[name]
        moved = np.asarray(geometry.vertices, np.float64) @ transform[:3, :3].T + transform[:3, 3]
        faces = np.asarray(getattr(geometry, "faces", ()), np.int64).reshape(-1, 3)
        if len(faces):
            triangles.append(faces + sum(map(len, vertices)))
            vertices.append(moved)
        elif not hasattr(geometry, "entities"):  # of a drawing: its vertices lie on no surface
            loose.append(moved)
    if triangles:
        return Surface(np.concatenate(vertices), np.concatenate(triangles))
    if not loose:
        raise ValueError("it has neither triangles nor points")
    return RawCloud(np.concatenate(loose))


# --- readers: (stream, size, suffix) -> what it holds ----------------------------------------------------------------
def _read_ply(stream: BinaryIO, size: int, suffix: str) -> RawCloud | Surface:
    columns, triangles = read_ply(stream, size)
    cloud = _from_columns(columns)
    return cloud if triangles is None else Surface(cloud.points, triangles)


def _read_pcd(stream: BinaryIO, size: int, suffix: str) -> RawCloud:
    columns, viewpoint = read_pcd(stream, size)
    return replace(_from_columns(columns), viewpoint=viewpoint)


def _read_npy(stream: BinaryIO, size: int, suffix: str) -> RawCloud:
    return RawCloud(as_points(_load_array(stream, size), "array"))


def _read_npz(stream: BinaryIO, size: int, suffix: str) -> RawCloud:
    """Takes the arrays `points`, `normals`, `colors` and `viewpoint`, or the only array as the points."""
    with zipfile.ZipFile(stream) as archive:
        entries = _entries(archive)
        if "points" not in entries and len(entries) != 1:
            raise ValueError(f"it has the arrays {', '.join(sorted(entries)) or 'none'}; name the coordinates `points`")
        points = "points" if "points" in entries else next(iter(entries))
        arrays = _entry_arrays(archive, (points, "normals", "colors", "viewpoint"))
    rows = {name: as_points(arrays[name], name) for name in ("normals", "colors") if name in arrays}
    viewpoint = np.asarray(arrays["viewpoint"], np.float64) if "viewpoint" in arrays else None
    if viewpoint is not None and viewpoint.shape != (3,):
        raise ValueError(f"`viewpoint` has the shape {viewpoint.shape} instead of (3,)")
    colors = _unit_colors(rows["colors"]) if "colors" in rows else None
    return RawCloud(as_points(arrays[points], points), rows.get("normals"), colors, viewpoint=viewpoint)


def read_arrays(stream: BinaryIO, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Those of an npz's arrays that have one of these names. Nothing is unpickled."""
    with zipfile.ZipFile(stream) as archive:
        return _entry_arrays(archive, names)


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    return {info.filename.removesuffix(".npy"): info for info in archive.infolist()}


def _entry_arrays(archive: zipfile.ZipFile, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    entries = _entries(archive)
    arrays = {}
    for name in names:
        if name in entries and name not in arrays:
            info = entries[name]
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # NumPy writes no others, and a few bytes of LZMA can ask for 4 GiB.
                raise ValueError(f"{info.filename} is packed in a way that numpy.savez does not; save it anew")
            if info.file_size > _ZIP_FREE_BYTES + _ZIP_RATIO * info.compress_size:
                raise ValueError(f"{info.compress_size} bytes that unpack to {info.file_size} are no plain arrays")
            with archive.open(info) as entry:
                arrays[name] = _load_array(entry, info.file_size)
    return arrays


def _load_array(stream: Any, size: int) -> npt.NDArray[Any]:
    version = np.lib.format.read_magic(stream)
    length = int.from_bytes(stream.read(2 if version == (1, 0) else 4), "little")
    if length > _NPY_HEADER:
        raise ValueError(f"damaged: a header of {length} bytes")
    stream.seek(np.lib.format.MAGIC_LEN)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects, which are never loaded; save numbers")
    if math.prod(shape) * dtype.itemsize > size - stream.tell():
        raise ValueError(f"truncated: the header promises shape {shape} of {dtype}, and the file has {size} bytes")
    stream.seek(0)
    array: npt.NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _read_las(stream: BinaryIO, size: int, suffix: str) -> RawCloud:
    points, colors = read_las(stream, size)
    return RawCloud(points, colors=None if colors is None else _unit_colors(colors))


def _read_e57(stream: BinaryIO, size: int, suffix: str) -> RawCloud:
    points, colors, viewpoint = read_e57(stream, size)
    return RawCloud(points, colors=colors, viewpoint=viewpoint)


def _read_mesh(stream: BinaryIO, size: int, suffix: str) -> RawCloud | Surface:
    import trimesh

    content = io.BytesIO(stream.read())  # from a file, read(n) would take memory for the n that a header promises
    scene = trimesh.load_scene(content, file_type=suffix[1:], process=False, skip_materials=True)
    return from_scene(scene)


def _read_text(stream: BinaryIO, size: int, suffix: str) -> RawCloud:
    """Columns by a header's names, or else x y z followed by what their number and the suffix say."""
    lines = stream.read().decode("utf-8-sig").splitlines()
    lines = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise ValueError("it has no line of numbers")
    names: list[str] = []
    promised = None
    words = re.split(r"[\s,;]+", lines[0].strip().lstrip("/").strip(" ,;"))
    if len(words) == 1 and words[0].isdigit():
        promised, lines = int(words[0]), lines[1:]
    elif not is_number(words[0]):
        names, lines = [w.strip("\"'").lower() for w in words], lines[1:]
    if not lines:
        raise ValueError("it has no line of numbers")
    delimiter = next((c for c in ",;" if c in lines[0]), None)
    table = np.loadtxt(lines, delimiter=delimiter, ndmin=2)
    if promised not in (None, len(table)):
        raise ValueError(f"truncated: {len(table)} of {promised} points")
    if table.shape[1] < 3:
        raise ValueError(f"its lines have {table.shape[1]} numbers instead of three or more")
    if {"x", "y", "z"} <= set(names):
        return _from_columns({name: table[:, i] for i, name in enumerate(names[: table.shape[1]])})
    rest = table[:, 3:]
    if suffix == ".xyzrgb" and rest.shape[1] < 3:
        raise ValueError(f"its lines have {table.shape[1]} numbers instead of x y z r g b")
    if suffix == ".xyzrgb" or (suffix == ".pts" and rest.shape[1] in (3, 4)):  # Leica: x y z [intensity] r g b
        return RawCloud(table[:, :3].copy(), colors=_unit_colors(rest[:, -3:]))
    normals = rest[:, :3] if rest.shape[1] >= 3 else None
    if normals is not None and not np.allclose(np.linalg.norm(normals, axis=1), 1, atol=0.01):
        normals = None  # three further columns of another meaning
    return RawCloud(table[:, :3].copy(), normals)


def is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


# --- columns ---------------------------------------------------------------------------------------------------------
def _from_columns(columns: dict[str, npt.NDArray[Any]]) -> RawCloud:
    """Points, normals and colours by the names that files give their columns."""

    def column(name: str) -> npt.NDArray[Any]:
        if columns[name].ndim != 1:  # a PCD's COUNT
            raise ValueError(f"{name} has {columns[name].shape[1]} numbers for a point instead of one")
        return columns[name]

    def triple(*alternatives: str) -> npt.NDArray[Any] | None:
        for names in alternatives:
            if set(names.split()) <= set(columns):
                return np.column_stack([column(name) for name in names.split()])
        return None

    points = triple("x y z")
    if points is None:
        raise ValueError(f"it has the columns {', '.join(columns)} and lacks x, y or z")
    normals = triple("nx ny nz", "normal_x normal_y normal_z")
    colors = triple("red green blue", "r g b", "diffuse_red diffuse_green diffuse_blue")
    packed = next((column(name) for name in ("rgb", "rgba") if name in columns), None)
    if colors is None and packed is not None and packed.dtype.itemsize == 4:
        bits = np.ascontiguousarray(packed).view(np.uint32)
        colors = np.column_stack([bits >> 16, bits >> 8, bits]).astype(np.uint8)
    return RawCloud(
        np.ascontiguousarray(points, np.float64),
        None if normals is None else normals.astype(np.float64),
        None if colors is None else _unit_colors(colors),
    )


def _unit_colors(colors: npt.NDArray[Any]) -> Array:
    """To [0, 1]: 16 bits a channel above 255, 8 bits above 1 or in a type of 8 bits, else as they are."""
    top = float(colors.max(initial=0))
    scale = 65535.0 if top > 255 else 255.0 if top > 1 or colors.dtype.itemsize == 1 else 1.0
    return np.asarray(colors, np.float64) / scale


READERS: dict[str, Callable[[BinaryIO, int, str], RawCloud | Surface]] = {
    ".ply": _read_ply,
    ".pcd": _read_pcd,
    ".npy": _read_npy,
    ".npz": _read_npz,
    **dict.fromkeys(TEXT_SUFFIXES, _read_text),
    **dict.fromkeys((".stl", ".obj", ".off", ".glb"), _read_mesh),
    **dict.fromkeys((".las", ".laz"), _read_las),
    ".e57": _read_e57,
}
