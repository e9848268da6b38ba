"""What an architecture was constructed with: kept beside the network, and checked when it comes from a file."""

from __future__ import annotations

import functools
import inspect
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from dlc_reg.errors import InputError

Kind = TypeVar("Kind", bound=type[nn.Module])

LARGEST, LONGEST = 1 << 16, 32  # a width and a list of widths


def recorded(kind: Kind) -> Kind:
    """Makes the class keep what an instance was constructed with as `arguments`, defaults included."""
    construct: Callable[..., None] = kind.__init__
    signature = inspect.signature(construct)

    @functools.wraps(construct)
    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        if type(self) is kind:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            _, *given = bound.arguments.items()
            kept = {k: list(v) if isinstance(v, tuple | list) else v for k, v in given}
            object.__setattr__(self, "arguments", kept)

    kind.__init__ = init  # type: ignore[method-assign]
    return kind


def check_arguments(kind: type[nn.Module], arguments: Any) -> dict[str, Any]:
    """The arguments, if the class's constructor can be given them; nothing is built."""
    if not isinstance(arguments, Mapping):
        raise InputError("arguments", repr(arguments)[:80], "an object with the constructor's arguments")
    hints = typing.get_type_hints(kind.__init__)
    hints.pop("return", None)
    for name, value in arguments.items():
        if name not in hints:
            raise InputError("arguments", repr(name)[:80], f"some of {', '.join(hints)}")
        if not _fits(value, hints[name]):
            expected = getattr(hints[name], "__name__", str(hints[name]))
            raise InputError(f"arguments.{name}", repr(value)[:80], f"{expected}, numbers up to {LARGEST}")
    return dict(arguments)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if origin is not None:  # a sequence of widths
        return isinstance(value, list) and len(value) <= LONGEST and all(_fits(v, inner[0]) and v for v in value)
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value) and abs(value) <= LARGEST
    return type(value) is hint and (hint is not int or 0 <= value <= LARGEST)


@contextmanager
def at_most(parameters: int, numbers: int) -> Iterator[None]:
    """Modules built inside take no memory, and an `InputError` stops them at more parameters, or numbers in them."""
    seen, thread = [0, 0], get_ident()

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        if get_ident() != thread or parameter is None:
            return
        seen[0] += 1
        seen[1] += parameter.numel()
        if seen[0] > parameters or seen[1] > numbers:
            raise InputError("arguments", "a network larger than the weights", "those that they were made with")

    handle = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            yield
    finally:
        handle.remove()
