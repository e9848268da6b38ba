"""Checks of arguments. Each says which argument is wrong, what was given and what is expected.

Shapes and dtypes are checked where a function is called; values (finite numbers) only where the data is real, since
under `torch.compile` the shapes are all that is known.
"""

from __future__ import annotations

import math
import operator
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlc_reg.errors import InputError

Array: TypeAlias = Tensor | npt.NDArray[Any]
ArrayT = TypeVar("ArrayT", Tensor, npt.NDArray[Any])

MAX_POINTS = 2**31 - 1  # the tree's indices are int32


def as_tensor(argument: str, value: object) -> Tensor:
    """The tensor itself, or a NumPy array as a tensor (sharing memory where NumPy allows writing to it)."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        try:
            native = value.dtype.newbyteorder("=")  # torch knows no other order of bytes
            array = np.require(value, native, requirements=["C", "W"])
            if min(array.strides, default=0) < 0:  # of a single row, which NumPy calls contiguous all the same
                array = array.copy()
            return torch.from_numpy(array)
        except TypeError:
            raise InputError(argument, f"an array of {value.dtype}", "numbers") from None
    raise InputError(argument, f"a {type(value).__name__}", "a torch tensor or a NumPy array")


def like(original: Array, tensor: Tensor) -> Any:
    """`tensor` as the kind of array that `original` is."""
    return tensor if isinstance(original, Tensor) else tensor.detach().numpy()


def rows(argument: str, value: object, width: int, count: int | None = None) -> Tensor:
    """`value` as a float32 tensor (N, width); `count` is the N that it must have."""
    tensor = as_tensor(argument, value)
    expected = f"({'N' if count is None else count}, {width})"
    if tensor.ndim != 2 or tensor.shape[1] != width or (count is not None and tensor.shape[0] != count):
        raise InputError(argument, f"shape {tuple(tensor.shape)}", f"shape {expected}")
    if tensor.dtype not in (torch.float32, torch.float64):
        raise InputError(argument, f"dtype {tensor.dtype}", "float32 or float64")
    if not torch.compiler.is_compiling() and tensor.shape[0] > MAX_POINTS:
        raise InputError(argument, f"{tensor.shape[0]} rows", f"at most {MAX_POINTS}")
    return tensor.to(torch.float32)


def points(argument: str, value: object, *, allow_empty: bool = False) -> Tensor:
    """`value` as a float32 tensor of points (N, 3), N >= 1 unless `allow_empty`."""
    tensor = rows(argument, value, 3)
    if not allow_empty and tensor.shape[0] == 0:
        raise InputError(argument, "no points", "at least one point")
    return tensor


def clouds(argument: str, value: object, mask: object | None) -> tuple[Tensor, Tensor | None]:
    """`value` as a float32 tensor (B, N, 3), and its mask (B, N) of real points on the same device."""
    tensor = as_tensor(argument, value)
    if tensor.ndim != 3 or tensor.shape[2] != 3:
        raise InputError(argument, f"shape {tuple(tensor.shape)}", "shape (B, N, 3)")
    if tensor.dtype not in (torch.float32, torch.float64):
        raise InputError(argument, f"dtype {tensor.dtype}", "float32 or float64")
    if mask is None:
        return tensor.to(torch.float32), None
    real = as_tensor(f"{argument}_mask", mask)
    if real.dtype != torch.bool or real.shape != tensor.shape[:2]:
        expected = f"torch.bool of shape {tuple(tensor.shape[:2])}"
        raise InputError(f"{argument}_mask", f"{real.dtype} of shape {tuple(real.shape)}", expected)
    same_device(f"{argument}_mask", real, argument, tensor)
    return tensor.to(torch.float32), real


def capturing(tensor: Tensor) -> bool:
    """Whether a CUDA graph records what is done to this tensor: then nothing may wait for a value of it."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def finite(argument: str, tensor: Tensor) -> None:
    """Raises if any number of a tensor (N, ...) is NaN or infinite; not while a CUDA graph records."""
    if capturing(tensor):
        return
    if tensor.is_cuda:
        if bool(torch.isfinite(tensor).all()):
            return
    else:
        with np.errstate(all="ignore"):  # NaN and inf survive a sum: one pass, no temporary, no threads to wake
            if math.isfinite(np.add.reduce(tensor.numpy(), axis=None)):
                return
    bad = ~torch.isfinite(tensor).reshape(len(tensor), -1).all(dim=1)
    if (count := int(bad.sum())) > 0:
        first = int(bad.nonzero()[0])
        raise InputError(argument, f"{count} rows with NaN or infinity (the first is row {first})", "finite numbers")


def same_device(argument: str, tensor: Tensor, other_argument: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise InputError(argument, f"a tensor on {tensor.device}", f"the device of {other_argument}, {other.device}")


def count(argument: str, value: object) -> int:
    """An integer >= 1."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(argument, repr(value), "an integer of at least 1") from None
    if number < 1:
        raise InputError(argument, str(number), "an integer of at least 1")
    return number


def threads(value: int | None) -> int:
    """What the native core takes: 0 for all cores."""
    return 0 if value is None else count("num_threads", value)


def length(argument: str, value: object, *, positive: bool = False) -> float:
    """A number >= 0 (> 0 and finite if `positive`)."""
    expected = "a positive finite number" if positive else "a number of at least 0"
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InputError(argument, repr(value), expected) from None
    if not number >= 0 or (positive and not 0 < number < math.inf):  # comparisons alone, which torch.compile follows
        raise InputError(argument, str(number), expected)
    return number


def limit(argument: str, value: float | None) -> float:
    """A length; None is no limit."""
    return math.inf if value is None else length(argument, value)


def matrix(argument: str, value: object) -> Tensor:
    """A floating-point tensor (4, 4); its numbers are not looked at."""
    tensor = as_tensor(argument, value)
    if tensor.shape != (4, 4):
        raise InputError(argument, f"shape {tuple(tensor.shape)}", "shape (4, 4)")
    if not tensor.is_floating_point():
        raise InputError(argument, f"dtype {tensor.dtype}", "a floating-point dtype")
    return tensor


def pose(argument: str, value: object) -> Tensor:
    """A (4, 4) float64 tensor on the CPU, row-major in memory, finite, with the last row (0, 0, 0, 1)."""
    tensor = matrix(argument, value).detach().to("cpu", torch.float64).contiguous()
    values = tensor.flatten().tolist()
    if not all(map(math.isfinite, values)):
        raise InputError(argument, "NaN or infinity", "finite numbers")
    if values[12:] != [0.0, 0.0, 0.0, 1.0]:
        raise InputError(argument, f"the last row {values[12:]}", "the last row (0, 0, 0, 1)")
    return tensor


def choice(argument: str, value: object, options: dict[str, int]) -> int:
    """The number that `options` gives to the name `value`."""
    if not isinstance(value, str) or value not in options:
        raise InputError(argument, repr(value), "one of " + ", ".join(map(repr, options)))
    return options[value]
