"""Networks in files: safetensors with the architecture, what it was constructed with and a card, and never a pickle.

A head passes its architectures, a class by name; each keeps its arguments (`networks.arguments.recorded`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from dlc_reg.errors import InputError
from dlc_reg.io import replacing
from dlc_reg.networks.arguments import at_most, check_arguments

KEY = "dlc_reg"
_HEADER_BYTES = 4 << 20  # the largest header that is read

Architectures = Mapping[str, type[nn.Module]]


def save_network(path: Path, network: nn.Module, card: dict[str, Any], architectures: Architectures) -> None:
    """Writes the weights as float32, replacing a file only when all is written.

    `card`: what people should know of them, in JSON's types; numbers that are not finite become null.
    """
    from safetensors.torch import save

    names = [name for name, kind in architectures.items() if kind is type(network)]
    if not names:
        raise InputError("network", type(network).__name__, f"one of {', '.join(architectures)}")
    about = {"architecture": names[0], "arguments": network.arguments, "card": _finite(card)}
    try:
        text = json.dumps(about, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise InputError("card", f"{type(card).__name__} ({error})", "nested dictionaries of JSON's types") from None
    tensors = {k: _stored(v) for k, v in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, overwrite=True) as draft:
        draft.write_bytes(save(tensors, metadata={KEY: text}))  # one entry: of several the order would change


def load_network(path: Path, architectures: Architectures) -> nn.Module:
    """The network in eval(), with its `card`. Nothing in the file is run, and nothing is allocated beyond its size.

    Raises:
        InputError: the file is damaged, or does not hold what a network of one of these architectures needs.
    """
    from safetensors import SafetensorError, safe_open

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > min(size, _HEADER_BYTES):
            _refuse(path, f"a header of {header} bytes in a file of {size}")
        with safe_open(path, framework="pt") as file:
            return _network(path, file, architectures)
    except (SafetensorError, OSError) as error:
        _refuse(path, str(error))


def _network(path: Path, file: Any, architectures: Architectures) -> nn.Module:
    about = _about(path, (file.metadata() or {}).get(KEY), architectures)
    kind = architectures[about["architecture"]]
    stored = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    shapes = {name: tuple(part.get_shape()) for name, part in stored.items()}
    if odd := [name for name, part in stored.items() if part.get_dtype() not in ("F32", "I64", "BOOL")]:
        _refuse(path, f"'{odd[0][:80]}' of type {stored[odd[0]].get_dtype()}", "float32 weights")
    arguments = check_arguments(kind, about["arguments"])
    try:
        with at_most(len(shapes), sum(math.prod(s) for s in shapes.values())):
            expected = {k: tuple(v.shape) for k, v in kind(**arguments).state_dict().items()}
    except InputError:
        raise
    except Exception as error:  # whatever a constructor makes of arguments that do not go together
        raise InputError("arguments", f"{arguments} ({error})", f"arguments of {about['architecture']}") from None
    if shapes != expected:
        differing = sorted(n for n in {*shapes, *expected} if shapes.get(n) != expected.get(n))
        given, wanted = (s.get(differing[0], "nothing") for s in (shapes, expected))
        _refuse(path, f"'{differing[0][:80]}' of shape {given}", f"{wanted}")
    with torch.random.fork_rng(devices=[]):  # what it draws is overwritten
        network = kind(**arguments).float()
    network.load_state_dict({name: _sound(path, name, file.get_tensor(name)) for name in shapes})
    object.__setattr__(network, "card", about["card"])
    return network.eval()


def _about(path: Path, text: str | None, architectures: Architectures) -> dict[str, Any]:
    """Architecture, arguments and card."""
    if text is None:
        _refuse(path, "no description of the network", "a file that save_model wrote")
    try:
        about = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"a description that is not JSON ({error})", "strict JSON")
    if not isinstance(about, dict) or set(about) != {"architecture", "arguments", "card"}:
        _refuse(path, "another description", "architecture, arguments and card")
    if not isinstance(about["card"], dict):
        _refuse(path, "a card that is no object")
    if about["architecture"] not in list(architectures):  # a list: it may be anything, also what has no hash
        _refuse(path, f"architecture {about['architecture']!r:.80}", f"one of {', '.join(architectures)}")
    return about


def _refuse(path: Path, given: str, expected: str = "a whole safetensors file that save_model wrote") -> NoReturn:
    raise InputError("weights", f"'{path}': {given}", expected)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _sound(path: Path, name: str, tensor: Tensor) -> Tensor:
    if not torch.isfinite(tensor).all():
        _refuse(path, f"'{name}' with NaN or infinity", "finite weights")
    return tensor


def _stored(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous()


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
