"""What every head's answer has: a verdict, and a form in strict JSON."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


class Verdict(str, enum.Enum):
    """Whether an answer can be trusted; the reasons are in its `verdict_reasons`."""

    ALIGNED = "aligned"
    AMBIGUOUS = "ambiguous"
    DOUBTFUL = "doubtful"
    FAILED = "failed"

    def __str__(self) -> str:
        return self.value


def strict_json(value: Any, **options: Any) -> str:
    """JSON of nested mappings, sequences, arrays and enums; numbers that JSON cannot say become null."""
    return json.dumps(_plain(value), allow_nan=False, **options)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
