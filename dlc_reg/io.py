"""Reading and writing point clouds: arrays in float64, as the file has them, and one exception when it has none.

The suffix says what a file is, and its first bytes must agree.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dlc_reg._formats import READERS, TEXT_SUFFIXES, Array, RawCloud, Surface, as_points, from_scene, read_arrays
from dlc_reg._pcd import write_pcd
from dlc_reg._ply import write_ply
from dlc_reg.errors import InputError

__all__ = [
    "MESH_SAMPLES",
    "READERS",
    "RawCloud",
    "Surface",
    "as_points",
    "from_scene",
    "read",
    "sample_pair",
    "sample_surface",
    "write",
]

MESH_SAMPLES = 50_000  # spacing near 1/200 of the extent: finer than most scans of an object, small enough to be quick
_SIGNATURES: tuple[tuple[bytes, str, tuple[str, ...]], ...] = (
    (b"ply", "a PLY file", (".ply",)),
    (b"\x93NUMPY", "a NumPy array", (".npy",)),
    (b"PK\x03\x04", "a ZIP archive", (".npz",)),
    (b"glTF", "a binary glTF file", (".glb",)),
    (b"LASF", "a LAS file", (".las", ".laz")),
    (b"ASTM-E57", "an E57 file", (".e57",)),
    (b"# .PCD", "a PCD file", (".pcd",)),
    (b"\x89PNG", "a PNG image", ()),
    (b"\xff\xd8\xff", "a JPEG image", ()),
    (b"\x1f\x8b", "a gzip archive", ()),
    (b"%PDF", "a PDF document", ()),
)


def sample_pair() -> tuple[Path, Path]:
    """The two real scans that come with the package, as paths: source and target.

    The Stanford bunny from two sides, metres, with overlap of about 90%. `truth.json` beside them has the recorded
    pose, and `README.md` one folder up has credit and terms, which are not those of the package.

    Raises:
        InputError: The package was built without them.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "samples" / "bunny", package.parent / "datasets" / "samples" / "bunny"):
        if (folder / "truth.json").is_file():
            return folder / "bun045.ply", folder / "bun000.ply"
    raise InputError("sample_pair", f"no samples in {package}", "a package that was built with them, or a checkout")


def read(path: str | os.PathLike[str], *, argument: str = "path", seed: int = 0) -> RawCloud:
    """Reads a cloud, or samples a mesh.

    Accepts .ply, .pcd, .npy, .npz (arrays `points`, `normals`, `colors`, `viewpoint`, or a single one), text (.xyz,
    .pts, .txt, .csv, .asc, .xyzn, .xyzrgb), .stl, .obj, .off, .glb and .las; .laz needs the extra `las`, .e57 needs
    `e57`. A file with triangles is sampled evenly over their area: `MESH_SAMPLES` points with the triangles' normals.
    Any other gives its points in their order.

    An .e57 gives all its scans as one cloud, each put into the file's frame by its pose, without the points that it
    marks as invalid. `viewpoint` is the scanner's place there if the file tells it and it is one for all scans; a pose
    that is the identity tells nothing, unless the coordinates are spherical.

    Args:
        path: The file; `~` is expanded.
        argument: What the caller calls this path, for the error's text.
        seed: Of the sampling of meshes.

    Raises:
        InputError: The file is missing, unreadable, truncated, mislabelled or not of an accepted kind.
    """
    file = _expand(path, argument)
    suffix = file.suffix.lower()
    if suffix not in READERS:
        raise InputError(argument, f"'{file}', whose suffix is {suffix or 'missing'!r}", "one of " + " ".join(READERS))
    try:
        if not file.is_file() and file.exists():  # opening a pipe would wait for ever
            kind = "a directory" if file.is_dir() else "no regular file"
            raise InputError(argument, f"'{file}', which is {kind}", "a file")
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            _check_content(stream, size, suffix)
            content = READERS[suffix](stream, size, suffix)
            return sample_surface(content, MESH_SAMPLES, seed) if isinstance(content, Surface) else content
    except FileNotFoundError:
        raise InputError(argument, f"'{file}', which does not exist", "an existing file (check the path)") from None
    except PermissionError:
        raise InputError(argument, f"'{file}', which may not be read", "read permission (chmod u+r)") from None
    except InputError as error:
        if error.argument == argument:
            raise
        raise InputError(argument, f"'{file}', whose {error.argument} is {error.given}", error.expected) from None
    except ImportError as error:
        extra = {".laz": "las", ".e57": "e57"}.get(suffix)
        remedy = f'the extra: pip install "dlc_reg[{extra}]"' if extra else "that package installed"
        raise InputError(argument, f"'{file}', and {error.name} is not installed", remedy) from error
    except Exception as error:  # the parsers raise whatever they meet: whatever it is, the file is at fault
        remedy = f"a complete {suffix} file (export or download it again)"
        raise InputError(argument, f"'{file}', which cannot be read as {suffix}: {_reason(error)}", remedy) from error


def write(
    path: str | os.PathLike[str],
    points: npt.ArrayLike,
    normals: npt.ArrayLike | None = None,
    colors: npt.ArrayLike | None = None,
    *,
    overwrite: bool = False,
    argument: str = "path",
) -> None:
    """Writes a cloud as .ply or .pcd (binary), .xyz or .txt (text), .npy (points only) or .npz, whole or not at all.

    Coordinates are float32 where that is exact or rounds by no more than 2^-23 of the extent, else float64; NPY and NPZ
    always hold float64. PCL and Open3D know PCD's coordinates as float32 only (they read float64 as zeros), so a cloud
    that float32 would round by more than 1e-6 of its extent is refused as .pcd.

    Args:
        path: The file to make; `~` is expanded.
        points: (N, 3).
        normals: (N, 3) or None.
        colors: (N, 3) in [0, 1] or None; stored as 8 bits a channel (floats in NPZ).
        overwrite: Whether an existing file may be replaced.
        argument: What the caller calls this path, for the error's text.

    Raises:
        InputError: Unknown suffix, existing file, a place that cannot be written to, or coordinates that are too far
            from the origin for .pcd.
    """
    file = _expand(path, argument)
    suffix = file.suffix.lower()
    if suffix not in _WRITERS:
        raise InputError(argument, f"'{file}', whose suffix is {suffix or 'missing'!r}", "one of " + " ".join(_WRITERS))
    if file.is_dir() or (file.exists() and not overwrite):
        raise InputError(argument, f"'{file}', which exists", "a new name, or overwrite=True")
    xyz, extras = as_points(points, "points"), {"normals": normals, "colors": colors}
    rows = {name: as_points(value, name) for name, value in extras.items() if value is not None}
    for name, value in rows.items():
        if len(value) != len(xyz):
            raise InputError(name, f"{len(value)} rows", f"one for each of the {len(xyz)} points")
    try:
        with replacing(file, overwrite=overwrite) as draft, draft.open("xb") as stream:
            _WRITERS[suffix](stream, xyz, rows.get("normals"), rows.get("colors"))
    except OSError as error:
        remedy = "a folder that exists and can be written to"
        raise InputError(argument, f"'{file}': {error.strerror or error}", remedy) from error
    except _LossError as error:
        raise InputError(argument, f"'{file}' for {error}", "a suffix that holds float64, such as .ply") from None


def read_columns(
    path: str | os.PathLike[str], names: Sequence[str], maker: str, *, optional: Sequence[str] = ()
) -> dict[str, Any]:
    """The arrays of an npz that the script `maker` prepared, by name. Nothing in the file is executed.

    Raises:
        InputError: no such file, one that is damaged or holds objects, or one without an array that is not `optional`.
    """
    try:
        with open(path, "rb") as stream:
            columns = read_arrays(stream, (*names, *optional))
    except FileNotFoundError:
        raise InputError("path", f"{path}, which does not exist", f"a file that {maker} prepared") from None
    except Exception as error:  # the parsers raise whatever they meet: whatever it is, the file is at fault
        expected = f"an npz of plain arrays, as {maker} prepared"
        raise InputError("path", f"{path} ({_reason(error)})", expected) from error
    if missing := [name for name in names if name not in columns]:
        raise InputError("path", f"{path} without {', '.join(missing)}", f"{', '.join(names)}, as {maker} prepared")
    return columns


@contextlib.contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields a draft beside `path`, with its suffix, which takes the place of `path` if the block succeeds.

    Raises `FileExistsError` for a file that exists, unless `overwrite`.
    """
    if not overwrite and path.exists():
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it")
    target = Path(os.path.realpath(path))  # a link stays a link
    # by chance and not by number of process, which comes again; no longer than names may be
    draft = target.with_name(f".{target.stem[:40]}.{secrets.token_hex(6)}.part{target.suffix}")
    try:
        yield draft
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def sample_surface(surface: Surface, count: int, seed: int) -> RawCloud:
    """`count` points spread evenly over the area (Osada et al. 2002, section 4.1), with the triangles' unit normals."""
    vertices, triangles = surface.vertices, surface.triangles
    if triangles.min() < 0 or triangles.max() >= len(vertices):
        raise ValueError(f"a triangle refers to a vertex outside 0..{len(vertices) - 1}")
    corner = vertices[triangles]
    if not np.isfinite(corner).all():
        raise ValueError("the triangles have non-finite vertices")
    edges = corner[:, 1:] - corner[:, :1]
    normals = np.cross(edges[:, 0], edges[:, 1])
    lengths = np.linalg.norm(normals, axis=1)
    solid = lengths > 0
    if not solid.any():
        raise ValueError("the triangles have no area")
    corner, edges, normals, lengths = corner[solid], edges[solid], normals[solid], lengths[solid]
    rng = np.random.default_rng(seed)
    heaps = np.cumsum(lengths)
    face = np.searchsorted(heaps, rng.random(count) * heaps[-1], side="right").clip(max=len(heaps) - 1)
    a, b = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
    points = corner[face, 0] + a * (1 - b) * edges[face, 0] + a * b * edges[face, 1]
    return RawCloud(points, normals[face] / lengths[face, None], kind="mesh")


# --- checks before reading -------------------------------------------------------------------------------------------
def _expand(path: str | os.PathLike[str], argument: str) -> Path:
    text = os.fspath(path)
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise InputError(argument, f"{text!r}", "a path as text")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(argument, f"{text!r} ({error})", "a path whose ~ names a known user") from None


def _check_content(stream: BinaryIO, size: int, suffix: str) -> None:
    """Raises ValueError unless the first bytes agree with the suffix; leaves the stream at its start."""
    head = stream.read(4096)
    stream.seek(0)
    if not head:
        raise ValueError("it is empty")
    if suffix == ".stl" and _is_binary_stl(head, size):
        return  # its first 80 bytes may be anything
    found = next(((what, suffixes) for magic, what, suffixes in _SIGNATURES if head.startswith(magic)), None)
    if found is None:
        found = ("text", TEXT_SUFFIXES) if b"\0" not in head else ("binary data of an unknown kind", ())
        if suffix == ".pcd" and b"FIELDS" in head and b"DATA" in head:
            return
        if suffix in (".obj", ".off", ".stl") and found[0] == "text":
            return
    if suffix not in found[1]:
        remedy = f"; rename it to {found[1][0]}" if found[1] and found[0] != "text" else ""
        raise ValueError(f"its content is {found[0]}{remedy}")


def _is_binary_stl(head: bytes, size: int) -> bool:
    return len(head) >= 84 and size == 84 + 50 * int(struct.unpack_from("<I", head, 80)[0])


def _reason(error: Exception) -> str:
    """Of its text one line, of a length that can be read."""
    lines = str(error).splitlines() or [""]
    return lines[0][:300] or type(error).__name__


class _LossError(Exception):
    """A format that cannot hold these coordinates."""


# --- writers: (stream, points, normals, colors) ----------------------------------------------------------------------
def _coordinate_type(points: Array) -> str:
    rounded = points.astype(np.float32)
    if len(points) == 0 or (rounded == points).all():
        return "f4"
    return "f4" if _largest(points) <= 2 * _extent(points) else "f8"


def _extent(points: Array) -> float:
    finite = points[np.isfinite(points).all(axis=1)]
    return float(np.linalg.norm(np.ptp(finite, axis=0))) if len(finite) else 0.0


def _largest(values: Array) -> float:
    return float(np.abs(values[np.isfinite(values)]).max(initial=0))


def _columns(points: Array, normals: Array | None, colors: Array | None) -> dict[str, npt.NDArray[Any]]:
    columns = dict(zip("xyz", points.astype(_coordinate_type(points)).T, strict=True))
    if normals is not None:
        columns |= dict(zip(("nx", "ny", "nz"), normals.astype("f4").T, strict=True))
    if colors is not None:
        columns |= dict(zip(("red", "green", "blue"), np.rint(colors.clip(0, 1) * 255).astype("u1").T, strict=True))
    return columns


def _write_ply(stream: BinaryIO, points: Array, normals: Array | None, colors: Array | None) -> None:
    write_ply(stream, _columns(points, normals, colors))


def _write_pcd(stream: BinaryIO, points: Array, normals: Array | None, colors: Array | None) -> None:
    columns = _columns(points, normals, colors)
    single = points.astype(np.float32)
    finite = np.isfinite(points)
    if _largest(single[finite] - points[finite]) > 1e-6 * _extent(points):
        raise _LossError(f"coordinates up to {_largest(points):.3g}, which .pcd would round")
    columns |= dict(zip("xyz", single.T, strict=True))
    if colors is not None:
        red, green, blue = (columns.pop(name).astype("u4") for name in ("red", "green", "blue"))
        columns["rgb"] = (red << 16 | green << 8 | blue).view("f4")  # as PCL packs it
    names = {"nx": "normal_x", "ny": "normal_y", "nz": "normal_z"}
    write_pcd(stream, {names.get(name, name): column for name, column in columns.items()})


def _write_text(stream: BinaryIO, points: Array, normals: Array | None, colors: Array | None) -> None:
    columns = _columns(points, normals, colors)
    form = {"f4": "%.9g", "f8": "%.17g", "u1": "%d"}  # the fewest digits that give every bit back
    np.savetxt(
        stream,
        np.column_stack([c.astype(np.float64) for c in columns.values()]),
        fmt=" ".join(form[c.dtype.str[1:]] for c in columns.values()),
        header="" if list(columns) in ([*"xyz"], [*"xyz", "nx", "ny", "nz"]) else " ".join(columns),
        comments="",
    )


def _write_npy(stream: BinaryIO, points: Array, normals: Array | None, colors: Array | None) -> None:
    np.save(stream, points, allow_pickle=False)


def _write_npz(stream: BinaryIO, points: Array, normals: Array | None, colors: Array | None) -> None:
    arrays = {"points": points, "normals": normals, "colors": colors}
    np.savez(stream, allow_pickle=False, **{name: array for name, array in arrays.items() if array is not None})


_WRITERS: dict[str, Callable[[BinaryIO, Array, Array | None, Array | None], None]] = {
    ".ply": _write_ply,
    ".pcd": _write_pcd,
    ".xyz": _write_text,
    ".txt": _write_text,
    ".npy": _write_npy,
    ".npz": _write_npz,
}
