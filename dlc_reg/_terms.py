"""What every head's training loss is made of: random numbers that processes share, weighted terms, and their costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlc_reg.convexify import ConvexifiedLoss, Learned, Sampler, Star

if TYPE_CHECKING:
    from dlc_reg._recipe import Convexify


@dataclass(frozen=True)
class Draw:
    """Random numbers for the rows [begin, end) of a batch of `total`, drawn for the whole batch by every process."""

    generator: torch.Generator  # on the CPU, so that every device draws the same
    total: int
    begin: int
    end: int

    def uniform(self, *lead: int) -> Tensor:
        """(*lead, rows) in [0, 1)."""
        return torch.rand(*lead, self.total, generator=self.generator)[..., self.begin : self.end]

    def directions(self, *lead: int, dimensions: int = 3) -> Tensor:
        """(*lead, rows, dimensions), of unit length."""
        vectors = torch.randn(*lead, self.total, dimensions, generator=self.generator)
        return functional.normalize(vectors[..., self.begin : self.end, :], dim=-1)


class Losses(nn.Module):
    """The loss of a network on a batch: terms by name, each with a weight; those of weight zero are not computed.

    Parameters: those that the terms learn themselves, if any. A head says how a batch is encoded, what a term is, and
    what it takes to answer.
    """

    def __init__(self, network: nn.Module, weights: dict[str, float]) -> None:
        super().__init__()
        self._network = [network]  # in a list: its parameters are not this module's
        self.weights = {name: weight for name, weight in weights.items() if weight}

    def forward(self, batch: Any, draw: Draw, names: Sequence[str] | None = None) -> tuple[Tensor, dict[str, float]]:
        """The total of the terms called `names`, or of all, and what each is by name, with further figures of it."""
        encoded = self.encode(batch)
        chosen = list(self.weights) if names is None else names
        terms = {name: self.term(name, encoded, batch, draw) for name in chosen}
        total = torch.stack([self.weights[name] * value for name, (value, _) in terms.items()]).sum()
        figures = {name: value.item() for name, (value, _) in terms.items()}
        for _, more in terms.values():
            figures |= more
        return total, figures

    @property
    def network(self) -> Any:
        return self._network[0]

    def encode(self, batch: Any) -> Any:
        """What all terms need, computed once a batch."""
        raise NotImplementedError

    def term(self, name: str, encoded: Any, batch: Any, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        """One term, and further figures of it."""
        raise NotImplementedError

    def forward_pass(self, batch: Any) -> None:
        """The unit of cost: what the network computes for one look at a batch."""
        raise NotImplementedError


def later_weigh_more(losses: Tensor) -> Tensor:
    """The mean of the losses (K,) after each step of a descent; step k weighs k."""
    weight = torch.arange(1, len(losses) + 1, device=losses.device, dtype=losses.dtype)
    return (weight / weight.sum()) @ losses


def convexified_loss(
    objective: Callable[[Tensor, Any], Tensor],
    manifold: Any,
    settings: Convexify,
    *,
    radius: Any,
    sampler: Sampler,
    norm: Literal["radius", "tangent"] = "radius",
) -> ConvexifiedLoss:
    """A recipe's table as one call; how far rays reach, and which there are, is the head's."""
    return ConvexifiedLoss(
        objective,
        manifold,
        radius=radius,
        samples=settings.samples,
        both_signs=settings.both_signs,
        mu=Learned(settings.mu) if settings.learn_mu else settings.mu,
        rho=settings.rho,
        sampler=sampler,
        aggregate=settings.aggregate,
        terms=settings.terms,
        fraction=Learned() if settings.learn_fraction else (settings.fractions[0], settings.fractions[-1]),
        norm=norm,
        task_weight=settings.task_weight,
        check_finite=False,
    )


def shared_rays(loss: ConvexifiedLoss, center: Tensor, draw: Draw) -> Star:
    """Rays from `center` (rows, ...), drawn for the whole batch by every process, of which each takes its rows."""
    every = center[:1].expand(draw.total, *center.shape[1:]).clone()
    rows = slice(draw.begin, draw.end)
    every[rows] = center
    star = loss.draw(every, generator=draw.generator)
    return Star(center, star.tangents[:, rows], star.fractions[:, rows])


def term_costs(losses: Losses, batch: Any, draw: Draw, repeats: int = 3) -> dict[str, dict[str, float]]:
    """Seconds and forward passes of a step, gradients included, and what each term adds to it. Changes gradients alone.

    What a term adds is the step's time less that of a step without it; of the only term, the whole.
    """
    names = list(losses.weights)

    def forward() -> None:
        with torch.no_grad():
            losses.forward_pass(batch)

    def step(terms: list[str]) -> Callable[[], None]:
        return lambda: torch.autograd.backward(losses(batch, draw, terms)[0])

    runs = {"forward": forward, "step": step(names)}
    if len(names) > 1:
        runs |= {f"without {name}": step([other for other in names if other != name]) for name in names}
    seconds = _timed(runs, repeats, next(losses.network.parameters()).device)
    unit, whole = seconds["forward"], seconds["step"]
    own = {name: max(whole - seconds.get(f"without {name}", 0.0), 0.0) for name in names}
    figures = {"forward": unit, "step": whole, **own}
    return {name: {"seconds": value, "passes": value / unit} for name, value in figures.items()}


def _timed(runs: dict[str, Callable[[], None]], repeats: int, device: torch.device) -> dict[str, float]:
    """The least seconds of each in some rounds, after one that warms up; in turns, so that a busy moment hits all."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - began)
    return {name: min(values[1:]) for name, values in times.items()}
