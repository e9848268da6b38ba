"""PLY in NumPy: the vertices complete and in order, the triangles where there are any, and nothing else.

Own code, because trimesh refuses binary files whose lists differ in length (range scans, triangles mixed with quads)
and re-indexes textured vertices, and plyfile is under the GPL. A header is never believed: every count is held against
the bytes that are there before an array is made. All errors are `ValueError`s that say what is wrong with the file.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_MAX_HEADER_BYTES = 1 << 20

Columns = dict[str, npt.NDArray[Any]]  # list properties: (count, length) when all lengths agree, else an object array


@dataclass
class _Property:
    name: str
    dtype: str
    length_dtype: str = ""  # of a list's length; empty for a scalar


@dataclass
class _Element:
    name: str
    count: int
    properties: list[_Property] = field(default_factory=list)

    @property
    def has_lists(self) -> bool:
        return any(p.length_dtype for p in self.properties)

    def row_dtype(self, lengths: dict[str, int]) -> np.dtype[Any]:
        """Of a row in a binary file whose lists have these lengths; a list becomes the fields '#name' and 'name'."""
        fields: list[Any] = []
        for p in self.properties:
            if p.length_dtype:
                fields += [(f"#{p.name}", p.length_dtype), (p.name, p.dtype, (lengths[p.name],))]
            else:
                fields.append((p.name, p.dtype))
        return np.dtype(fields)


def read_ply(stream: BinaryIO, size: int) -> tuple[Columns, npt.NDArray[np.int64] | None]:
    """Reads a PLY file of `size` bytes.

    Returns:
        The vertices' scalar properties by name, each (N,) in the file's own type (float64 in ASCII files), and the
        triangles (F, 3), larger polygons cut into fans, or None where the file has no face.
    """
    order, elements = _read_header(stream)
    names = [e.name for e in elements]
    if "vertex" not in names:
        raise ValueError("the header has no element named vertex")
    vertex = elements[names.index("vertex")]
    faces = [e for e in elements if e.name == "face" and e.count > 0]
    left = size - stream.tell()
    for element in elements:  # two bytes are the least that a number takes in text: a digit and a blank
        least = 2 * len(element.properties) if not order else _least_row_bytes(element)
        if element.count * max(least, 1) > left + 1:
            raise ValueError(f"truncated: {element.count} rows of {element.name} promised, {left} bytes there")

    needed = {e.name for e in (vertex, *faces)}
    last = max(names.index(name) for name in needed)
    source: Any = io.TextIOWrapper(stream, "ascii") if not order else [stream.read(), 0]
    columns = {e.name: (_read_binary if order else _read_text)(source, e) for e in elements[: last + 1]}
    if not order:
        source.detach()  # else closing the wrapper closes the caller's stream

    triangles = None
    for key in ("vertex_indices", "vertex_index"):
        if faces and key in columns["face"]:
            triangles = _fans(columns["face"][key])
            break
    return columns["vertex"], triangles


def write_ply(stream: BinaryIO, columns: Columns) -> None:
    """Writes equally long (N,) columns as the vertices of a binary little-endian PLY, each in its own type."""
    ply_names = {"f4": "float", "f8": "double", "u1": "uchar"}
    count = len(next(iter(columns.values())))
    table = np.empty(count, np.dtype([(name, "<" + c.dtype.str[1:]) for name, c in columns.items()]))
    for name, column in columns.items():
        table[name] = column
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    lines += [f"property {ply_names[c.dtype.str[1:]]} {name}" for name, c in columns.items()]
    stream.write(("\n".join([*lines, "end_header"]) + "\n").encode("ascii"))
    stream.write(table.tobytes())


def _read_header(stream: BinaryIO) -> tuple[str, list[_Element]]:
    """The byte order ('' for ASCII) and the elements; leaves the stream at the first byte of the data."""
    order: str | None = None
    elements: list[_Element] = []
    if stream.readline(16).strip() != b"ply":
        raise ValueError("the first line is not 'ply'")
    while stream.tell() < _MAX_HEADER_BYTES:
        raw = stream.readline(_MAX_HEADER_BYTES)
        words = raw.decode("latin-1").split()
        if not raw:
            break
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "end_header":
            if order is None:
                raise ValueError("the header has no format line")
            return order, elements
        try:
            if order is None and words[0] != "format":
                raise ValueError
            if words[0] == "format":
                order = _FORMATS[words[1]]
            elif words[0] == "element":
                elements.append(_Element(words[1], int(words[2])))
                if elements[-1].count < 0:
                    raise ValueError
            elif words[0] == "property" and words[1] == "list":
                length_dtype, dtype = f"{order}{_TYPES[words[2]]}", f"{order}{_TYPES[words[3]]}"
                elements[-1].properties.append(_Property(words[4], dtype, length_dtype))
            elif words[0] == "property":
                elements[-1].properties.append(_Property(words[2], f"{order}{_TYPES[words[1]]}"))
            else:
                raise ValueError
        except (KeyError, IndexError, ValueError):
            raise ValueError(f"the header's line {' '.join(words)[:80]!r} is not understood") from None
    raise ValueError("the header has no end_header line")


def _least_row_bytes(element: _Element) -> int:
    return sum(np.dtype(p.length_dtype or p.dtype).itemsize for p in element.properties)


# --- binary ----------------------------------------------------------------------------------------------------------
def _read_binary(source: list[Any], element: _Element) -> Columns:
    """Reads one element from source = [bytes, offset] and moves the offset on."""
    data, offset = source
    lengths: dict[str, int] = {}
    if element.has_lists and element.count:  # try the first row's lengths for all: true of most meshes
        first, _ = _walk_row(data, offset, element)
        lengths = {p.name: len(first[p.name]) for p in element.properties if p.length_dtype}
    dtype = element.row_dtype(lengths) if element.count else np.dtype("V1")
    if offset + element.count * dtype.itemsize <= len(data):
        table = np.frombuffer(data, dtype, element.count, offset)
        if all((table[f"#{name}"] == length).all() for name, length in lengths.items()):
            source[1] = offset + element.count * dtype.itemsize
            return {p.name: table[p.name] if element.count else np.empty(0) for p in element.properties}
    elif not element.has_lists:
        there = (len(data) - offset) // dtype.itemsize
        raise ValueError(f"truncated: {there} of {element.count} rows of {element.name}")
    rows = []
    for _ in range(element.count):
        row, offset = _walk_row(data, offset, element)
        rows.append(row)
    source[1] = offset
    return _columns(rows, element)


def _walk_row(data: bytes, offset: int, element: _Element) -> tuple[Columns, int]:
    """One row, each property as a 1-D array (a scalar has one value), and the offset of the next row."""
    row: Columns = {}
    for p in element.properties:
        length = 1
        if p.length_dtype:
            length = int(_take(data, offset, p.length_dtype, 1, element)[0])
            offset += np.dtype(p.length_dtype).itemsize
        row[p.name] = _take(data, offset, p.dtype, length, element)
        offset += row[p.name].nbytes
    return row, offset


def _take(data: bytes, offset: int, dtype: str, count: int, element: _Element) -> npt.NDArray[Any]:
    if count < 0 or offset + count * np.dtype(dtype).itemsize > len(data):
        raise ValueError(f"truncated or damaged: a row of {element.name} goes beyond the end of the file")
    return np.frombuffer(data, dtype, count, offset)


# --- text ------------------------------------------------------------------------------------------------------------
def _read_text(stream: io.TextIOWrapper, element: _Element) -> Columns:
    if not element.count:
        return {p.name: np.empty(0) for p in element.properties}
    if not element.has_lists:
        table = np.loadtxt(stream, max_rows=element.count, ndmin=2, comments=None)
        if len(table) != element.count:
            raise ValueError(f"truncated: {len(table)} of {element.count} rows of {element.name}")
        if table.shape[1] != len(element.properties):
            raise ValueError(f"its rows of {element.name} have {table.shape[1]} numbers, not {len(element.properties)}")
        return {p.name: table[:, i] for i, p in enumerate(element.properties)}
    rows = [_split_row(line, element) for line in islice(stream, element.count)]
    if len(rows) != element.count:
        raise ValueError(f"truncated: {len(rows)} of {element.count} rows of {element.name}")
    return _columns(rows, element)


def _split_row(line: str, element: _Element) -> Columns:
    values = np.array(line.split(), np.float64)
    row: Columns = {}
    at = 0
    for p in element.properties:
        length = 1
        if p.length_dtype:
            length = int(values[at]) if at < len(values) else -1
            at += 1
        if length < 0 or at + length > len(values):
            raise ValueError(f"truncated or damaged: {line.strip()[:60]!r} is no row of {element.name}")
        row[p.name] = values[at : at + length]
        at += length
    return row


# --- both ------------------------------------------------------------------------------------------------------------
def _columns(rows: list[Columns], element: _Element) -> Columns:
    out: Columns = {}
    for p in element.properties:
        values = [row[p.name] for row in rows]
        if not p.length_dtype:
            out[p.name] = np.concatenate(values)
        elif len({len(v) for v in values}) == 1:
            out[p.name] = np.stack(values)
        else:
            out[p.name] = np.empty(len(values), object)
            for i, v in enumerate(values):
                out[p.name][i] = v
    return out


def _fans(polygons: npt.NDArray[Any]) -> npt.NDArray[np.int64] | None:
    """Triangles (F, 3) of polygons given as (P, L) indices or as an object array of lists."""
    groups: list[npt.NDArray[Any]] = [polygons]
    if polygons.dtype == object:
        by_length: dict[int, list[npt.NDArray[Any]]] = {}
        for polygon in polygons:
            by_length.setdefault(len(polygon), []).append(polygon)
        groups = [np.stack(group) for group in by_length.values()]
    fans = [g[:, [0, i, i + 1]].astype(np.int64) for g in groups for i in range(1, g.shape[1] - 1)]
    return np.concatenate(fans) if fans else None
