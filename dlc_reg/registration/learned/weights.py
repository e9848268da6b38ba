"""Weights of registration networks: files, and those that come with the package.

save_model("softicp.safetensors", network, card={"recipe": ..., "figures": ...})
network = load_model("softicp.safetensors")      # or the name of weights that come with the package
network.card
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

from dlc_reg.errors import InputError
from dlc_reg.networks.files import load_network, save_network
from dlc_reg.registration.learned.frame import ARCHITECTURES, RegistrationNetwork

SUFFIX = ".safetensors"
_FOLDER = resources.files("dlc_reg") / "weights"


def save_model(path: str | PathLike[str], network: RegistrationNetwork, card: dict[str, Any]) -> None:
    """Writes the weights as float32, replacing a file only when all is written.

    `card`: what people should know of them, in JSON's types; numbers that are not finite become null.
    """
    save_network(Path(path), network, card, ARCHITECTURES)


def load_model(name_or_path: str | PathLike[str], *, device: Any = "cpu") -> RegistrationNetwork:
    """The network in eval(), with its `card`.

    Args:
        name_or_path: the name of weights that come with the package, or a file that `save_model` wrote.

    Raises:
        InputError: no such file, or one that is damaged, or does not hold what an architecture's network needs. Nothing
            in a file is run, and nothing is allocated beyond the file's size.
    """
    with weights_file(name_or_path) as path:
        network = load_network(path, ARCHITECTURES)
    assert isinstance(network, RegistrationNetwork)
    return network.to(device)


@contextmanager
def weights_file(name_or_path: str | PathLike[str]) -> Iterator[Path]:
    """The file that `load_model` reads, while the context lasts."""
    name = name_or_path if isinstance(name_or_path, str) else None
    if name in shipped_models():
        with resources.as_file(_FOLDER / f"{name}{SUFFIX}") as path:
            yield path
        return
    path = Path(name_or_path)
    if not path.is_file():
        known = ", ".join(shipped_models()) or "none"
        raise InputError("name_or_path", f"'{name_or_path}'", f"a weights file, or a name that is shipped ({known})")
    yield path


def shipped_models() -> list[str]:
    """The names of the weights that come with the package."""
    if not _FOLDER.is_dir():
        return []
    return sorted(f.name.removesuffix(SUFFIX) for f in _FOLDER.iterdir() if f.name.endswith(SUFFIX))
