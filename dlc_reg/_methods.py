"""The methods that evaluations compare. A method gets clouds and gives poses: no ground truth is within its reach."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlc_reg._baselines import METHODS, REFINEMENTS, polished
from dlc_reg.errors import InputError
from dlc_reg.protocols import stack_ragged
from dlc_reg.registration.assignment import polar_rotation
from dlc_reg.registration.learned.frame import RegistrationNetwork

Array = NDArray[Any]

TOGETHER = 32  # pairs that a method is given at once


@dataclass(frozen=True, eq=False)
class Clouds:
    """All that a method sees of a pair: source (N, 3) and target (M, 3), float64."""

    source: Array
    target: Array


class Method(Protocol):
    """Poses T_target_source (B, 4, 4) float64 of a batch; `about` says what else a results file should know."""

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> dict[str, Any]: ...

    def __call__(self, pairs: Sequence[Clouds]) -> Array: ...


@dataclass(frozen=True, eq=False)
class OneByOne:
    """A method that knows one pair at a time: (source, target) -> (4, 4)."""

    name: str
    function: Callable[[Array, Array], Array]
    about: dict[str, Any] = field(default_factory=dict)

    def __call__(self, pairs: Sequence[Clouds]) -> Array:
        return np.stack([np.asarray(self.function(p.source, p.target), dtype=np.float64) for p in pairs])


@dataclass(frozen=True, eq=False)
class Learned:
    """A network in eval(), without gradients, started from the identity."""

    name: str
    network: RegistrationNetwork
    iterations: int | None = None
    device: str | torch.device = "cpu"
    about: dict[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, pairs: Sequence[Clouds]) -> Array:
        network = self.network.to(self.device).eval()
        poses = []
        for start in range(0, len(pairs), TOGETHER):
            batch = pairs[start : start + TOGETHER]
            source, source_mask = _padded([p.source for p in batch], self.device)
            target, target_mask = _padded([p.target for p in batch], self.device)
            solution = network(source, target, source_mask, target_mask, iterations=self.iterations)
            poses.append(orthonormal(solution.omega))
        return np.concatenate(poses)


@dataclass(frozen=True, eq=False)
class Polished:
    """A method with ICP after it. An evaluation that has the method's poses already asks `after` alone."""

    name: str
    method: Method
    refine: Callable[[Array, Array, Array], Array] = polished

    @property
    def about(self) -> dict[str, Any]:
        return self.method.about

    def __call__(self, pairs: Sequence[Clouds]) -> Array:
        return self.after(pairs, self.method(pairs))

    def after(self, pairs: Sequence[Clouds], poses: Array) -> Array:
        """The method's poses (B, 4, 4), polished."""
        return np.stack([self.refine(p.source, p.target, T) for p, T in zip(pairs, poses, strict=True)])


def method(name: str, **options: Any) -> Method:
    """The method of this name: one of `METHODS`, or learned:WEIGHTS of a file or a shipped name, which +polish or +icp
    may follow, one of `REFINEMENTS`.

    `options` are `learned`'s, for learned ones.

    Raises:
        InputError: no such method, no such weights, or its library is not installed.
    """
    if name.startswith("learned:"):
        plain, _, after = name.rpartition("+")
        if after not in REFINEMENTS:
            plain, after = name, ""
        found = learned(plain.removeprefix("learned:"), name=plain, **options)
        return Polished(name, found, REFINEMENTS[after]) if after else found
    if name not in METHODS:
        raise InputError("method", repr(name), f"{', '.join(METHODS)}, or learned:WEIGHTS[+polish|+icp]")
    function, library = METHODS[name]
    about: dict[str, Any] = {}
    if library is not None:
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise InputError("method", f"{name!r}, and {library} cannot be imported ({error})", library) from None
        about = {library: importlib.metadata.version(library)}
    return OneByOne(name, function, about)


def learned(
    weights: str,
    *,
    name: str = "",
    iterations: int | None = None,
    passes: int | None = None,
    device: str | torch.device = "cpu",
) -> Learned:
    """The network of a weights file, or of a shipped name; `passes` replaces how often it encodes the clouds anew."""
    from dlc_reg.registration.learned.passes import Repeated
    from dlc_reg.registration.learned.weights import load_model

    network, about = load_model(weights), about_weights(weights)
    if passes is not None:
        if not isinstance(network, Repeated):
            raise InputError("passes", f"{passes}, for {weights!r}, which encodes clouds once", "DCP, PRNet or RPM-Net")
        network.passes, about["passes"] = passes, passes
    return Learned(name or f"learned:{weights}", network, iterations, device, about)


def about_weights(weights: str) -> dict[str, Any]:
    """The file or the shipped name, and the SHA-256 of the file that it means."""
    from dlc_reg.registration.learned.weights import weights_file

    with weights_file(weights) as path:
        return {"weights": weights, "weights_checksum": hashlib.sha256(path.read_bytes()).hexdigest()}


def orthonormal(poses: Tensor) -> Array:
    """The nearest rigid poses (..., 4, 4), float64: a rotation in float32 is one only to 1e-7. Of NaN the identity."""
    exact = poses.detach().double().cpu()
    finite = exact.isfinite().all(-1).all(-1)[..., None, None]
    exact = torch.where(finite, exact, torch.eye(4, dtype=exact.dtype))  # the SVD would stop all of the batch
    exact[..., :3, :3] = polar_rotation(exact[..., :3, :3])
    rigid: Array = exact.numpy()
    return rigid


def installed() -> list[str]:
    """Names of the methods whose libraries are there."""
    there = {library: importlib.util.find_spec(library) is not None for library in ("open3d", "small_gicp")}
    return [name for name, (_, library) in METHODS.items() if library is None or there[library]]


def _padded(clouds: list[Array], device: Any) -> tuple[Tensor, Tensor | None]:
    """(B, N, 3) float32 and a mask, None where all clouds have the same size."""
    points, mask = stack_ragged([torch.from_numpy(c).float() for c in clouds])
    return points.to(device), None if mask is None else mask.to(device)
