"""Reads pickles of NumPy arrays and plain containers, and nothing else: no code of the file is ever called.

Python's pickles name functions to call. Only those few that rebuild arrays are admitted, each under its own name; any
other makes the reading stop. An array's type is its name and byte order alone: types with fields or objects, and states
that disagree with the name, could make NumPy take numbers for addresses. PyTorch's `torch.save` files are pickles in a
zip archive, or before 1.6 in a row.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from typing import Any

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch.save before 1.6
NDARRAY = object()  # what the name numpy.ndarray stands for: cannot be called


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes at protocol 2; only the one encoding it uses."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


def _reconstruct(kind: object, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """NumPy's empty array that the state then fills."""
    if kind is not NDARRAY or shape != (0,):
        raise pickle.UnpicklingError(f"an array that starts as {kind}{shape}")
    return np.empty(0, "b")


def _dtype(name: str, *_: object) -> np.dtype:
    """A type of numbers or text, by its name; one of its own, never NumPy's, so that a state cannot change others."""
    if not isinstance(name, str) or (kind := np.dtype(name, copy=True)).hasobject or kind.fields or kind.subdtype:
        raise pickle.UnpicklingError(f"an array of {name!r:.80}")
    return kind


def _frombuffer(data: bytes, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """NumPy's arrays at protocol 5."""
    return np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: np.dtype, data: bytes = b"") -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise pickle.UnpicklingError(f"a scalar of {dtype}")
    return np.frombuffer(data, dtype, count=1)[0]


ADMITTED: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): NDARRAY,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
}


class _Unpickler(pickle._Unpickler):  # the one written in Python, whose steps can be watched
    dispatch = pickle._Unpickler.dispatch.copy()

    def load_build(self) -> None:
        """States of arrays and their types, and of nothing else; a type's may add a byte order to it."""
        state, kind = self.stack[-1], self.stack[-2]
        if not isinstance(kind, np.ndarray | np.dtype):
            raise pickle.UnpicklingError(f"a state for {type(kind).__name__}")
        if isinstance(kind, np.dtype) and state[2:] != kind.__reduce__()[2][2:]:
            raise pickle.UnpicklingError(f"a state that does not belong to the type {kind}")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"names {module}.{name}, which is not an array or a plain container") from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("holds a torch tensor, not an array")


def load(data: bytes, name: str = "pickle") -> Any:
    """The object of a pickle; stops with a message for anything but arrays, numbers, text, lists, tuples and dicts."""
    return _load(io.BytesIO(data), name)


def load_saved(data: bytes, name: str = "file") -> Any:
    """The object of a `torch.save` file, which must hold a NumPy array or plain containers of them."""
    stream = io.BytesIO(data)
    if not zipfile.is_zipfile(stream):
        stream.seek(0)
        if _load(stream, name) != MAGIC or _load(stream, name) != PROTOCOL:
            raise SystemExit(f"{name}: not a file of torch.save")
        _load(stream, name)  # about the machine that wrote it
        return _load(stream, name)
    with zipfile.ZipFile(stream) as archive:
        inside = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(inside) != 1:
            raise SystemExit(f"{name}: not a file of torch.save")
        return load(archive.read(inside[0]), name)


def _load(stream: io.BytesIO, name: str) -> Any:
    try:
        return _Unpickler(stream).load()
    except Exception as error:  # whatever a damaged or hostile file brings about
        raise SystemExit(f"{name}: refused ({type(error).__name__}: {error})") from None
