"""What a worker of `register_many` does with one pair, and the target that it keeps ready for the next."""

from __future__ import annotations

import os
import pickle
import time
from functools import lru_cache
from typing import Any

from dlc_reg.api import Prepared, prepare, register
from dlc_reg.errors import InputError
from dlc_reg.registration.result import RegistrationResult

Answer = tuple[RegistrationResult | None, str | None, float]  # the result or why there is none, and the seconds

KEPT = 2  # targets that a process keeps ready
OF_SOURCE = ("source_viewpoint", "source_gravity")


def register_pair(source: Any, target: Any, init: Any, options: dict[str, Any]) -> Answer:
    """Without the clouds, so that what is sent back is the answer and not the data."""
    began = time.perf_counter()
    try:
        if isinstance(target, (str, os.PathLike)):
            of_source = {name: options[name] for name in OF_SOURCE if name in options}
            rest = {name: value for name, value in options.items() if name not in OF_SOURCE}
            result = _ready(os.fspath(target), rest).register(source, init=init, **of_source)
        else:  # arrays may be written to between two pairs: they are read each time
            result = register(source, target, init=init, **options)
    except Exception as error:
        return None, told(error), time.perf_counter() - began
    result.clouds = None
    return result, None, time.perf_counter() - began


def told(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def _ready(path: str, options: dict[str, Any]) -> Prepared:
    try:
        state = os.stat(path)
        written = (state.st_mtime_ns, state.st_size)
    except OSError:
        written = (0, 0)  # reading it says what is wrong
    return _prepared(path, written, pickle.dumps(sorted(options.items())))


@lru_cache(KEPT)
def _prepared(path: str, written: tuple[int, int], options: bytes) -> Prepared:
    return prepare(path, **dict(pickle.loads(options)))
