"""PCD (https://pointclouds.org/documentation/tutorials/pcd_file_format.html) in NumPy, all three encodings.

Own code over the LZF library, because pypcd4 takes a truncated file for a shorter one and refuses headers without
COUNT, which the format allows. All errors are `ValueError`s whose text says what is wrong with the file.
"""

from __future__ import annotations

import math
import struct
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Columns = dict[str, npt.NDArray[Any]]

_TYPES = {("F", 4): "<f4", ("F", 8): "<f8", **{(k, n): f"<{k.lower()}{n}" for k in "IU" for n in (1, 2, 4, 8)}}
_DEFAULT_VIEWPOINT = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
_LZF_RATIO = 100  # liblzf packs at most 264 bytes into 3
_MAX_HEADER_BYTES = 1 << 20


def read_pcd(stream: BinaryIO, size: int) -> tuple[Columns, npt.NDArray[np.float64] | None]:
    """Reads a PCD file of `size` bytes: its fields by name, each (N,) or (N, COUNT), and the position of its VIEWPOINT.

    The position is None where the header has none or has the default pose (0 0 0 1 0 0 0), which says "unknown".
    """
    header = _read_header(stream)
    try:
        dtype, count, encoding, pose = _parse(header)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"the header is incomplete or damaged ({type(error).__name__}: {error})") from error
    left = size - stream.tell()
    numbers = sum(math.prod(dtype[name].shape) for name in dtype.names or ())
    room = {  # rows that can be there at the very most
        "ascii": (left + 1) // (2 * numbers),
        "binary": left // dtype.itemsize,
        "binary_compressed": _LZF_RATIO * left // dtype.itemsize,
    }
    if encoding not in room:
        raise ValueError(f"the header's DATA is {encoding!r}")
    if not 0 <= count <= room[encoding]:
        raise ValueError(f"truncated: the header promises {count} points, and {left} bytes follow it")
    read = {"ascii": _read_text, "binary": _read_binary, "binary_compressed": _read_compressed}[encoding]
    columns = read(stream, dtype, count) if count else {name: np.empty(0) for name in dtype.names or ()}
    return columns, None if pose == _DEFAULT_VIEWPOINT else np.array(pose[:3])


def write_pcd(stream: BinaryIO, columns: Columns) -> None:
    """Writes equally long (N,) columns as a binary PCD, each in its own type."""
    dtype = np.dtype([(name, "<" + c.dtype.str[1:]) for name, c in columns.items()])
    table = np.empty(len(next(iter(columns.values()))), dtype)
    for name, column in columns.items():
        table[name] = column
    kinds = [dtype[name].kind.upper() for name in columns]
    lines = [
        "# .PCD v0.7 - Point Cloud Data file format",
        "VERSION 0.7",
        "FIELDS " + " ".join(columns),
        "SIZE " + " ".join(str(dtype[name].itemsize) for name in columns),
        "TYPE " + " ".join(kinds),
        "COUNT " + " ".join("1" for _ in columns),
        f"WIDTH {len(table)}",
        "HEIGHT 1",
        "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {len(table)}",
        "DATA binary",
    ]
    stream.write(("\n".join(lines) + "\n").encode("ascii") + table.tobytes())


def _read_header(stream: BinaryIO) -> dict[str, list[str]]:
    header: dict[str, list[str]] = {}
    while "DATA" not in header:
        line = stream.readline(_MAX_HEADER_BYTES)
        if not line or stream.tell() > _MAX_HEADER_BYTES:
            raise ValueError("the header has no DATA line")
        key, *values = line.decode("latin-1").split() or ["#"]
        header[key.upper()] = values
    return header


def _parse(header: dict[str, list[str]]) -> tuple[np.dtype[Any], int, str, list[float]]:
    """The dtype of a row, the number of rows, the encoding and the viewpoint's pose."""
    names = [f"_{i}" if name == "_" else name for i, name in enumerate(header["FIELDS"])]  # "_" is padding, repeated
    types = [_TYPES[kind.upper(), int(size)] for kind, size in zip(header["TYPE"], header["SIZE"], strict=True)]
    counts = [int(c) for c in header.get("COUNT", ["1"] * len(names))]
    if min(counts) < 1:
        raise ValueError("COUNT below 1")
    fields: list[Any] = [
        (name, kind) if n == 1 else (name, kind, (n,)) for name, kind, n in zip(names, types, counts, strict=True)
    ]
    count = int(header["POINTS"][0]) if "POINTS" in header else int(header["WIDTH"][0]) * int(header["HEIGHT"][0])
    pose = [float(v) for v in header.get("VIEWPOINT", [])] or _DEFAULT_VIEWPOINT
    if len(pose) != 7:
        raise ValueError("VIEWPOINT without 7 numbers")
    return np.dtype(fields), count, header["DATA"][0].lower(), pose


def _read_text(stream: BinaryIO, dtype: np.dtype[Any], count: int) -> Columns:
    table = np.loadtxt(stream, ndmin=2, max_rows=count, comments=None)
    if len(table) != count:
        raise ValueError(f"truncated: {len(table)} of {count} points")
    columns: Columns = {}
    at = 0
    for name in dtype.names or ():
        base, width = dtype[name].base, math.prod(dtype[name].shape)
        if at + width > table.shape[1]:
            raise ValueError(f"its lines have {table.shape[1]} numbers, too few for {name}")
        # coordinates are kept as written: a field may be called float32 and still carry more digits
        values = table[:, at] if width == 1 else table[:, at : at + width]
        columns[name] = values if base.kind == "f" and name in ("x", "y", "z") else values.astype(base)
        at += width
    return columns


def _read_binary(stream: BinaryIO, dtype: np.dtype[Any], count: int) -> Columns:
    table = np.frombuffer(stream.read(count * dtype.itemsize), dtype, count)
    return {name: table[name] for name in dtype.names or ()}


def _read_compressed(stream: BinaryIO, dtype: np.dtype[Any], count: int) -> Columns:
    import lzf

    head = stream.read(8)
    packed, unpacked = struct.unpack("<II", head) if len(head) == 8 else (0, 0)
    data = stream.read()[:packed]  # read(packed) would take memory for what is promised
    if unpacked != count * dtype.itemsize or len(data) != packed:
        raise ValueError(f"truncated or damaged: {len(data)} compressed bytes instead of {packed}")
    raw = lzf.decompress(data, unpacked)
    if raw is None or len(raw) != unpacked:
        raise ValueError("damaged: the compressed data does not unpack")
    columns: Columns = {}
    offset = 0
    for name in dtype.names or ():  # column after column, unlike the plain encoding
        values = np.frombuffer(raw, dtype[name].base, count * math.prod(dtype[name].shape), offset)
        columns[name] = values.reshape(count, *dtype[name].shape)
        offset += values.nbytes
    return columns
