"""What a training needs to go on, as bytes: tensors in safetensors' form, the rest in JSON, and never a pickle."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

_REST = "rest"  # the tensor that holds the JSON


def packed(state: dict[str, Any]) -> bytes:
    """Nested dictionaries, lists and tuples of tensors and JSON's scalars; keys are text or integers."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors[str(len(tensors))] = value.detach().cpu().contiguous().clone()  # two may share their memory
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(value, dict):
            return {"dict": [[key, plain(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return {type(value).__name__: [plain(item) for item in value]}
        return value

    text = json.dumps(plain(state)).encode()
    return bytes(save({**tensors, _REST: torch.frombuffer(bytearray(text), dtype=torch.uint8)}))


def unpacked(content: bytes) -> dict[str, Any]:
    """The same, tensors on the CPU. Raises ValueError for anything that `packed` did not make."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    def nested(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, inner),) = value.items()
        if kind == "tensor":
            return tensors[inner]
        if kind == "dict":
            return {key: nested(item) for key, item in inner}
        items = [nested(item) for item in inner]
        return tuple(items) if kind == "tuple" else items

    try:
        tensors = load(content)
        state = nested(json.loads(bytes(tensors[_REST].numpy())))
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"it is damaged ({error})") from None
    if not isinstance(state, dict):
        raise ValueError("it holds something else")
    return state
