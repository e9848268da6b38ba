"""The files of `fuzz.py`: small whole ones of every kind that is read, what damages them, and what reads them."""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_finding import Finding
from fuzz_seeds import page_checksums, whole_files

from dlc_reg import PointCloud
from dlc_reg.errors import InputError
from dlc_reg.io import RawCloud, as_points, read, read_columns
from dlc_reg.networks.files import load_network

SAMPLES = 50  # of a mesh: sampling is not what is tested
SLOW = (".safetensors", ".columns.npz", ".toml", ".e57", ".obj", ".glb", ".png", ".jpg", ".tif", ".bmp", ".webp")
"""Of these a third as many are made: reading one takes longer, mostly in code that is not ours."""
LARGEST = 1 << 20  # bytes of a damaged file
NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53 + 1),
    *(2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**12, 10**30, -(2**31), -(2**63), 0.5, 1e-30, 1e30, 1e308, 5e-324),
    *("nan", "inf", "-inf", "1e400", "1e-400", "0x10", "1_000", "", "-", "١٢", "1,5", "1" * 400, "9" * 5000),
)
INTEGERS = tuple(value for value in NUMBERS if isinstance(value, int))
WORDS = (
    *("x", "y", "z", "nx", "rgb", "red", "points", "normals", "viewpoint", "list", "uchar", "int", "float", "double"),
    *("vertex", "face", "vertex_indices", "ascii", "binary", "binary_compressed", "binary_big_endian", "format"),
    *("end_header", "property", "element", "comment", "FIELDS", "SIZE", "TYPE", "COUNT", "DATA", "WIDTH", "HEIGHT"),
    *("f", "v", "solid", "facet", "vertex", "OFF", "NOFF", "COFF", "mtllib", "usemtl", "../../etc/passwd", "~", "\\"),
    *("'<f8'", "'|O'", "'>f4'", "'V0'", "'<U0'", "object", "fortran_order", "True", "(", ")", "{", "}", "[", "]", '"'),
)


class Files:
    """The cases of one folder, in which each process has a folder of its own."""

    def __init__(self, folder: Path) -> None:
        import dlc_reg.io

        dlc_reg.io.MESH_SAMPLES = SAMPLES
        warnings.simplefilter("ignore")
        np.seterr(all="ignore")
        self.folder, self.process = folder, 0  # the process that has its folder already
        self.whole = whole_files(folder)
        self.kinds = [kind for kind in sorted(self.whole) for _ in range(1 if kind in SLOW else 3)]
        for kind in self.whole:  # what is imported where it is used is imported now
            for number, content in enumerate(self.whole[kind]):
                path = folder / f"whole-{number}{kind}"
                path.write_bytes(content)
                if looked_at(path, reader_of(kind)) != "read":
                    raise ValueError(f"whole-{number}{kind} is refused")
                path.unlink()

    def run(self, seed: int, number: int) -> str:
        rng = np.random.default_rng([seed, number])
        kind = self.kinds[number % len(self.kinds)]
        content = damaged(rng, kind, self.whole[kind])
        if self.process != os.getpid():
            self.process = os.getpid()
            (self.folder / str(self.process)).mkdir(exist_ok=True)
        path = self.folder / f"{self.process}/case{kind}"
        path.write_bytes(content)
        try:
            outcome = looked_at(path, reader_of(kind))
        except Finding as finding:
            raise Finding(str(finding), content, kind) from finding
        finally:
            path.unlink()
        return f"{outcome} {kind}"


def looked_at(path: Path, reader: Callable[[Path], Any]) -> str:
    """What came of reading; a `Finding` where it is neither an answer nor an `InputError`, or took too much memory."""
    try:
        reader(path)
    except InputError as error:
        cause = error.__cause__
        if isinstance(cause, MemoryError):
            raise Finding(f"memory was refused: {cause}") from error
        if "\n" in str(error):
            raise Finding(f"an error of several lines: {str(error)!r}") from error
        return "refused"
    return "read"


# --- readers ----------------------------------------------------------------------------------------------------------
def reader_of(kind: str) -> Callable[[Path], Any]:
    return OTHERS.get(kind, _cloud)


def _cloud(path: Path) -> None:
    found = read(path)
    _check(found)
    if len(found.points) % 4 == 0:  # of clouds as such the other half of the tool makes more, and worse ones
        PointCloud.from_any(found, remove_non_finite=True)


def _check(found: RawCloud) -> None:
    points = as_points(found.points, "points")
    if points is not found.points or not points.flags.c_contiguous:
        raise Finding(f"points of {found.points.dtype}, {found.points.shape}")
    for name in ("normals", "colors"):
        values = getattr(found, name)
        if values is not None and (values.dtype != np.float64 or values.ndim != 2 or values.shape[1] != 3):
            raise Finding(f"{name} of {values.dtype}, {values.shape}")


def _pairs(path: Path) -> None:
    from dlc_reg._many_list import read_entries

    inside = path.parent.resolve()
    for entry in read_entries(path, truths=True):
        for cloud in (entry.source, entry.target):
            if not cloud.resolve().is_relative_to(inside):
                raise Finding(f"a path that leads out: {cloud}")


def _results(path: Path) -> None:
    from dlc_reg._many_output import open_output

    open_output(path)


def _transform(path: Path) -> None:
    from dlc_reg._console import read_transform

    read_transform(path, "--init")


def _weights(path: Path) -> None:
    from dlc_reg.registration.learned.weights import ARCHITECTURES

    load_network(path, ARCHITECTURES)


def _columns(path: Path) -> None:
    read_columns(path, ("points", "labels"), "a script", optional=("normals",))


def _recipe(path: Path) -> None:
    from dlc_reg._recipe import load_recipe

    load_recipe(path)


def _image(path: Path) -> None:
    from dlc_reg._alignment_input import read_picture

    read_picture(path, None, "source")


OTHERS: dict[str, Callable[[Path], Any]] = {
    ".pairs.csv": _pairs,
    ".results.csv": _results,
    ".matrix.txt": _transform,
    ".safetensors": _weights,
    ".columns.npz": _columns,
    ".toml": _recipe,
    **dict.fromkeys((".png", ".jpg", ".tif", ".bmp", ".webp"), _image),
}


# --- damage -----------------------------------------------------------------------------------------------------------
def damaged(rng: np.random.Generator, kind: str, wholes: list[bytes]) -> bytes:
    content = wholes[rng.integers(len(wholes))]
    times = int(rng.choice([1, 1, 1, 2, 3, 6]))
    if kind.endswith(".npz") and rng.random() < 0.7:
        return _repacked(rng, content, times)
    for _ in range(times):
        content = DAMAGES[rng.integers(len(DAMAGES))](rng, content, wholes)[:LARGEST]
    return page_checksums(content) if kind == ".e57" and rng.random() < 0.9 else content


def _place(rng: np.random.Generator, content: bytes) -> int:
    """Any; in the first bytes more often than elsewhere, for headers are there."""
    return int(rng.integers(min(len(content), 300) if rng.random() < 0.6 else len(content))) if content else 0


def _bytes(rng: np.random.Generator, content: bytes, wholes: list[bytes]) -> bytes:
    out = bytearray(content)
    for _ in range(int(rng.integers(1, 5)) if out else 0):
        out[_place(rng, content)] = rng.integers(256)
    return bytes(out)


def _bit(rng: np.random.Generator, content: bytes, wholes: list[bytes]) -> bytes:
    out = bytearray(content)
    if out:
        out[_place(rng, content)] ^= 1 << rng.integers(8)
    return bytes(out)


def _cut(rng: np.random.Generator, content: bytes, wholes: list[bytes]) -> bytes:
    return content[: rng.integers(len(content) + 1)]


def _removed(rng: np.random.Generator, content: bytes, wholes: list[bytes]) -> bytes:
    at = _place(rng, content)
    return content[:at] + content[at + int(rng.integers(1, 64)) :]


def _repeated(rng: np.random.Generator, content: bytes, wholes: list[bytes]) -> bytes:
    at, count = _place(rng, content), int(rng.integers(1, 100))
    return content[:at] + content[at : at + count] * int(rng.choice([2, 3, 50, 1000])) + content[at + count :]


def _spliced(rng: np.random.Generator, content: bytes, wholes: list[bytes]) -> bytes:
    other = wholes[rng.integers(len(wholes))]
    return content[: _place(rng, content)] + other[_place(rng, other) :]


def _number(rng: np.random.Generator, content: bytes, wholes: list[bytes]) -> bytes:
    """A number in text becomes another."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?(e-?\d+)?", content[:4096]))
    if not found:
        return _bytes(rng, content, wholes)
    at = found[rng.integers(len(found))]
    return content[: at.start()] + str(NUMBERS[rng.integers(len(NUMBERS))]).encode() + content[at.end() :]


def _word(rng: np.random.Generator, content: bytes, wholes: list[bytes]) -> bytes:
    """A word becomes another, or is there twice, or not at all."""
    found = list(re.finditer(rb"[A-Za-z_|<>]+\d?", content[:4096]))
    if not found:
        return _bytes(rng, content, wholes)
    at = found[rng.integers(len(found))]
    words = (WORDS[rng.integers(len(WORDS))].encode(), at[0] + b" " + at[0], b"")
    return content[: at.start()] + words[rng.choice(3, p=[0.7, 0.15, 0.15])] + content[at.end() :]


def _integer(rng: np.random.Generator, content: bytes, wholes: list[bytes]) -> bytes:
    """Bytes that may be a size become another."""
    wide = int(rng.choice([1, 2, 4, 8]))
    value = INTEGERS[rng.integers(len(INTEGERS))] % (1 << 8 * wide)
    at = _place(rng, content)
    return content[:at] + value.to_bytes(wide, "little" if rng.random() < 0.7 else "big") + content[at + wide :]


def _lines(rng: np.random.Generator, content: bytes, wholes: list[bytes]) -> bytes:
    """Two lines change places, or one is there twice, or not at all."""
    lines = content.split(b"\n")
    a, b = rng.integers(len(lines), size=2)
    how = rng.integers(3)
    if how == 0:
        lines[a], lines[b] = lines[b], lines[a]
    elif how == 1:
        lines.insert(int(b), lines[a])
    else:
        del lines[a]
    return b"\n".join(lines)


DAMAGES = (_bytes, _bit, _cut, _removed, _repeated, _spliced, _number, _number, _word, _integer, _integer, _lines)


def _repacked(rng: np.random.Generator, content: bytes, times: int) -> bytes:
    """An archive that is whole, of damaged entries, sometimes one that unpacks to much, or that lies about its size."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    names = list(entries)
    for _ in range(times):
        name = names[rng.integers(len(names))]
        entries[name] = DAMAGES[rng.integers(len(DAMAGES))](rng, entries[name], list(entries.values()))[:LARGEST]
    bomb = rng.random() < 0.002
    if bomb:
        entries[names[0]] += bytes(1 << 27)
    if rng.random() < 0.1:
        entries[str(rng.choice(["normals.npy", "viewpoint.npy", "colors.npy", "points", "a/../points.npy"]))] = b"x"
    stream = io.BytesIO()
    packing = (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)[
        0 if bomb else rng.choice(4, p=[0.5, 0.4, 0.05, 0.05])
    ]
    with zipfile.ZipFile(stream, "w", packing, compresslevel=1) as archive:
        for name, entry in entries.items():
            archive.writestr(name, entry)
    out = bytearray(stream.getvalue())
    if rng.random() < 0.2:  # a lie in the central directory: sizes, the kind of packing, flags
        at = out.find(b"PK\x01\x02") + int(rng.choice([8, 10, 20, 24, 42]))
        out[at : at + 4] = struct.pack("<I", int(rng.choice([0, 1, 8, 12, 14, 99, 2**31, 2**32 - 1])))
    if rng.random() < 0.1:
        at = _place(rng, bytes(out))
        out[at : at + 4] = struct.pack("<I", zlib.crc32(bytes(out[:at])))
    return bytes(out)
