"""LAS 1.0 to 1.4 (ASPRS) in NumPy, and LAZ by lazrs: coordinates and colours, and nothing else.

Own code over lazrs, because laspy follows what a header promises without looking at the file: records that are not
there keep it busy for hours, and what they would hold fills the memory. lazrs works on one thread here: its pool of
threads does not survive a fork, and a child that waits for it waits for ever.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

_COLORS = {2: 20, 3: 28, 5: 28, 7: 30, 8: 30, 10: 30}  # where red begins in a record of the format
_SIZES = (20, 28, 26, 34, 57, 63, 30, 36, 38, 59, 67)  # of a record of each format, at least
_LAYERS = {10: 9, 11: 1, 12: 2, 13: 1}  # of an item by its type; of type 14 one for each byte
_CHUNKED, _LAYERED = 2, 3
_RATIO = 1000  # beyond what real clouds compress to
_SLAB = 1 << 18  # points that are unpacked at once

Rows = npt.NDArray[Any]


def read_las(stream: BinaryIO, size: int) -> tuple[Rows, Rows | None]:
    """Points (N, 3) float64 of a LAS or LAZ file of `size` bytes, and colours (N, 3) uint16 or None."""
    head = stream.read(375)
    if len(head) < 227:
        raise ValueError(f"truncated: a header of 227 bytes or more, and the file has {size}")
    header_size, offset, extras, form, length, count = struct.unpack_from("<HIIBHI", head, 94)
    if head[25] >= 4 and len(head) == 375:
        count = struct.unpack_from("<Q", head, 247)[0] or count
    packed, form = bool(form & 0xC0), form & 0x3F
    if form >= len(_SIZES) or length < _SIZES[form] or not 227 <= header_size <= offset <= size:
        raise ValueError(f"damaged: points of format {form} in {length} bytes each, from byte {offset} of {size} on")
    if count * length > (size - offset) * (_RATIO if packed else 1):
        raise ValueError(f"truncated: {count} points promised by the header of a file of {size} bytes")
    fields: dict[str, tuple[str, int]] = {"at": ("<3i4", 0)}
    if form in _COLORS:
        fields["color"] = ("<3u2", _COLORS[form])
    formats, offsets = zip(*fields.values(), strict=True)
    record = np.dtype({"names": list(fields), "formats": formats, "offsets": offsets, "itemsize": length})
    points, colors = np.empty((count, 3)), np.empty((count, 3), np.uint16) if form in _COLORS else None
    scale, shift = (np.array(struct.unpack_from("<3d", head, at)) for at in (131, 155))
    if packed:
        about = _compression(stream, header_size, offset, extras)
        slabs = _unpacked(stream, size, offset, about, length, count)
    else:
        stream.seek(offset)
        slabs = (stream.read(min(_SLAB, count - at) * length) for at in range(0, count, _SLAB))
    done = 0
    for slab in slabs:
        rows = np.frombuffer(slab, record)
        with np.errstate(all="ignore"):  # of a scale that is not finite, which is for others to judge
            points[done : done + len(rows)] = rows["at"] * scale + shift
        if colors is not None:
            colors[done : done + len(rows)] = rows["color"]
        done += len(rows)
    return points, colors


def _compression(stream: BinaryIO, at: int, end: int, extras: int) -> bytes:
    """What the file says of its compression: the record of LASzip among those between the header and the points."""
    for _ in range(extras):
        stream.seek(at)
        head = stream.read(54)
        length = int.from_bytes(head[20:22], "little")
        if at + 54 + length > end:
            raise ValueError("truncated or damaged: a record before the points goes beyond their beginning")
        if head[2:18].rstrip(b"\0") == b"laszip encoded" and head[18:20] == b"\xbc\x56":
            return stream.read(length)
        at += 54 + length
    raise ValueError("damaged: its points are compressed, and no record says how")


def _unpacked(
    stream: BinaryIO, size: int, offset: int, about: bytes, length: int, count: int
) -> Iterator[bytes | bytearray]:
    """The records, slab by slab."""
    import lazrs

    if len(about) < 34 or len(about) < 34 + 6 * int.from_bytes(about[32:34], "little"):
        raise ValueError("damaged: the record of the compression is cut off")
    kind, chunk = struct.unpack_from("<H", about)[0], struct.unpack_from("<I", about, 12)[0]
    items = list(struct.iter_unpack("<3H", about[34 : 34 + 6 * int.from_bytes(about[32:34], "little")]))
    if kind not in (_CHUNKED, _LAYERED) or not chunk or sum(item[1] for item in items) != length:
        raise ValueError(f"damaged: compression {kind} in chunks of {chunk} points, of which one has {length} bytes")
    _check_chunks(stream, size, offset)
    if kind == _LAYERED and chunk != 0xFFFFFFFF:
        layers = sum(item[1] if item[0] == 14 else _LAYERS.get(item[0], 0) for item in items)
        _check_layers(stream, size, offset + 8, length, layers, -(-count // chunk))
    stream.seek(offset)
    try:
        unpacker = lazrs.LasZipDecompressor(stream, about)
        for at in range(0, count, _SLAB):
            slab = bytearray(min(_SLAB, count - at) * length)
            unpacker.decompress_many(slab)
            yield slab
    except BaseException as error:  # what lazrs panics with is no Exception
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"damaged: {error}") from None


def _check_chunks(stream: BinaryIO, size: int, offset: int) -> None:
    """Holds the number of chunks against the file."""
    stream.seek(offset)
    (table,) = struct.unpack("<q", stream.read(8).ljust(8, b"\0"))
    if table == -1:  # of a writer that could not go back: it is told at the end
        stream.seek(max(size - 8, 0))
        (table,) = struct.unpack("<q", stream.read(8))
    if not offset < table <= size - 8:
        raise ValueError("truncated: the table of the chunks lies outside the file")
    stream.seek(table + 4)
    (chunks,) = struct.unpack("<I", stream.read(4))
    if chunks > size:
        raise ValueError(f"truncated: {chunks} chunks promised by a file of {size} bytes")


def _check_layers(stream: BinaryIO, size: int, at: int, length: int, layers: int, chunks: int) -> None:
    """Holds the lengths of the layers against the file: a point as it is, a count, the lengths, the layers."""
    for _ in range(chunks):
        stream.seek(at + length + 4)
        sizes = stream.read(4 * layers)
        if len(sizes) == 4 * layers:
            at += length + 4 + len(sizes) + sum(value for (value,) in struct.iter_unpack("<I", sizes))
        if len(sizes) < 4 * layers or at > size:
            raise ValueError("truncated or damaged: a chunk goes beyond the end of the file")
