"""E57 (ASTM E2807): every scan of a file in its common frame, by libE57Format in pye57 (extra `e57`)."""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

CARTESIAN = ("cartesianX", "cartesianY", "cartesianZ")
SPHERICAL = ("sphericalRange", "sphericalAzimuth", "sphericalElevation")
COLORS = ("colorRed", "colorGreen", "colorBlue")
_POINTS_A_BYTE = 8  # a point that differs from the one before it takes a bit at least
_LONGEST_XML = 1 << 28


def read_e57(stream: BinaryIO, size: int) -> tuple[Array, Array | None, Array | None]:
    """Points (N, 3) of all scans, one after the other, in the file's frame; colours in [0, 1] or None; viewpoint (3,).

    Points that the file marks as invalid are left out. Colours are there if every scan has them. The viewpoint is where
    the scanner stood, if the file says so and it is one place for all scans: the translation of a pose, unless the pose
    is the identity, which writers put where they know none; with spherical coordinates always.

    Raises whatever libE57Format and the checks here meet.
    """
    from pye57 import libe57

    _check_header(stream, size)
    image = libe57.ImageFile(stream.name, "r")
    try:
        root = image.root()
        scans = root["data3D"] if root.isDefined("data3D") else []
        found = [_read_scan(libe57, image, scans[n], size) for n in range(len(scans))]
    finally:
        image.close()
    if not found:
        raise ValueError("it has no scan")
    points, colors, places = zip(*found, strict=True)
    coloured = all(part is not None for part in colors)
    first = places[0]
    same = first is not None and all(place is not None and (place == first).all() for place in places)
    return np.concatenate(points), np.concatenate(colors) if coloured else None, first if same else None


def _check_header(stream: BinaryIO, size: int) -> None:
    """Holds the lengths in the header against the file's, and refuses XML that defines entities of its own."""
    head = stream.read(48)
    if len(head) < 48:
        raise ValueError(f"truncated: a header of 48 bytes, and the file has {size}")
    length, offset, xml_length, page = struct.unpack("<4Q", head[16:])
    if length != size:
        raise ValueError(f"truncated: the header promises {length} bytes, and the file has {size}")
    if page < 8 or page > 1 << 20 or offset >= size or xml_length > min(size, _LONGEST_XML):
        raise ValueError("damaged: its header points outside the file")
    stream.seek(offset - offset % page)
    pages = -(-(offset % page + xml_length) // (page - 4)) + 1
    raw = stream.read(page * pages)
    stream.seek(0)
    # each page ends with four bytes of checksum
    text = b"".join(raw[start : start + page - 4] for start in range(0, len(raw), page))
    if b"<!DOCTYPE" in text[offset % page :][:xml_length]:
        raise ValueError("its XML has a document type of its own, which E57 has not")


def _read_scan(libe57: Any, image: Any, scan: Any, size: int) -> tuple[Array, Array | None, Array | None]:
    records = scan["points"]
    count = records.childCount()
    if count > _POINTS_A_BYTE * size:
        raise ValueError(f"truncated: {count} points promised by a file of {size} bytes")
    prototype = libe57.StructureNode(records.prototype())
    kind = next((names for names in (CARTESIAN, SPHERICAL) if all(map(prototype.isDefined, names))), None)
    if kind is None:
        raise ValueError("a scan has neither cartesian nor spherical coordinates")
    invalid = "cartesianInvalidState" if kind is CARTESIAN else "sphericalInvalidState"
    coloured = all(map(prototype.isDefined, COLORS))
    names = [*kind, *(COLORS if coloured else ()), *([invalid] if prototype.isDefined(invalid) else ())]
    columns = {name: np.zeros(count) for name in names}
    if count:
        buffers = libe57.VectorSourceDestBuffer()
        for name, column in columns.items():
            buffers.append(libe57.SourceDestBuffer(image, name, column, count, True, True))
        reader = records.reader(buffers)
        read = reader.read()
        reader.close()
        if read != count:
            raise ValueError(f"truncated: {read} of {count} points")
    valid = columns[invalid] == 0 if invalid in columns else np.ones(count, np.bool_)
    at = np.column_stack([columns[name][valid] for name in kind])
    if kind is SPHERICAL:
        distance, azimuth, elevation = at.T
        level = distance * np.cos(elevation)
        at = np.column_stack([level * np.cos(azimuth), level * np.sin(azimuth), distance * np.sin(elevation)])
    rotation, translation = _pose(scan)
    known = kind is SPHERICAL or bool((rotation != np.eye(3)).any() or (translation != 0).any())
    colors = None
    if coloured:
        scaled = [_to_unit(columns[name][valid], name, scan, prototype) for name in COLORS]
        colors = np.column_stack(scaled)
    with np.errstate(all="ignore"):  # of coordinates that are not finite, which are for others to judge
        points = at @ rotation.T + translation
    return points, colors, translation if known else None


def _pose(scan: Any) -> tuple[Array, Array]:
    """Rotation (3, 3) and translation (3,) from the scanner's frame into the file's."""
    pose = scan["pose"] if scan.isDefined("pose") else None
    w, x, y, z = _numbers(pose, "rotation", "wxyz", (1.0, 0.0, 0.0, 0.0))
    norm = np.sqrt(w * w + x * x + y * y + z * z)
    translation = np.array(_numbers(pose, "translation", "xyz", (0.0, 0.0, 0.0)))
    if not (0 < norm < np.inf and np.isfinite(translation).all()):
        raise ValueError("a scan's pose has numbers that are no rotation and translation")
    w, x, y, z = (part / norm for part in (w, x, y, z))
    rotation = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.array(rotation), translation


def _numbers(node: Any, name: str, parts: str, missing: tuple[float, ...]) -> tuple[float, ...]:
    if node is None or not node.isDefined(name):
        return missing
    return tuple(float(node[name][part].value()) for part in parts)


def _to_unit(values: Array, name: str, scan: Any, prototype: Any) -> Array:
    """From the scan's own limits of a colour, else from those of its type, else from 0 to 255."""
    low, high = 0.0, 255.0
    limits = scan["colorLimits"] if scan.isDefined("colorLimits") else None
    if limits is not None and limits.isDefined(name + "Minimum") and limits.isDefined(name + "Maximum"):
        low, high = (float(limits[name + end].value()) for end in ("Minimum", "Maximum"))
    elif hasattr(prototype[name], "maximum"):
        low, high = float(prototype[name].minimum()), float(prototype[name].maximum())
    if not low < high:
        low, high = 0.0, 255.0
    return np.clip((values - low) / (high - low), 0.0, 1.0)
