"""The terms of the training loss, each readable beside its formula.

    total = contrastive * InfoNCE(E) + unrolled * sum_k w_k (|R_k - R*|_F^2 + |t_k - t*|^2) + matching * network's own
          + (dlc != "none") * ConvexifiedLoss

Every random number is drawn for the batch of all processes together, and each takes its rows. All terms are means over
the batch, so that the mean over processes is what one would have; but not the worst ray, convexify.aggregate = "max",
which training refuses with more than one.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlc_reg._around import Around
from dlc_reg._recipe import Convexify, Recipe
from dlc_reg.convexify import Ambient, Ball, Box, ConvexifiedLoss, Learned, Sampler, Scaled, Star
from dlc_reg.errors import InputError
from dlc_reg.manifold import SE3
from dlc_reg.protocols import PairBatch
from dlc_reg.registration.learned.frame import RegistrationNetwork

ENTRIES = (0, 1, 2, 4, 5, 6, 8, 9, 10, 3, 7, 11)  # of a flattened pose: R row by row, then t


@dataclass(frozen=True)
class Draw:
    """Random poses about truths for the rows [begin, end) of a batch of `total` pairs."""

    generator: torch.Generator  # on the CPU, so that every device draws the same
    total: int
    begin: int
    end: int

    def uniform(self, *lead: int) -> Tensor:
        """(*lead, rows) in [0, 1)."""
        return torch.rand(*lead, self.total, generator=self.generator)[..., self.begin : self.end]

    def directions(self, *lead: int) -> Tensor:
        """(*lead, rows, 3), of unit length."""
        vectors = torch.randn(*lead, self.total, 3, generator=self.generator)[..., self.begin : self.end, :]
        return functional.normalize(vectors, dim=-1)

    def poses(self, around: Around, angle_deg: float, length: float, *lead: int) -> Tensor:
        """Poses (*lead, B, 4, 4): the truth turned by up to the angle about any axis, and moved by up to the length."""
        turn = math.radians(angle_deg) * self.uniform(*lead)[..., None] * self.directions(*lead)
        move = length * self.uniform(*lead)[..., None] * self.directions(*lead)
        xi = torch.cat([turn, move], dim=-1).to(around.local)
        return around.place @ SE3().retract(around.local, xi)


def pose_loss(estimate: Tensor, truth: Tensor) -> Tensor:
    """|R - R*|_F^2 + |t - t*|^2, (..., B), of poses (..., B, 4, 4). The first is 4 (1 - cos angle)."""
    return (estimate - truth)[..., :3, :].square().sum((-2, -1))


def contrastive(network: RegistrationNetwork, encoded: Any, around: Around, recipe: Recipe, draw: Draw) -> Tensor:
    """InfoNCE on the energy: the truth against poses moved from it, logits -E / temperature."""
    loss = recipe.loss
    moved = draw.poses(around, loss.negative_angle_deg, loss.negative_translation, loss.negatives)
    logits = -network.value(torch.cat([around.truth[None], moved]), encoded).float() / loss.temperature
    return -logits.log_softmax(0)[0].mean()


def unrolled(network: RegistrationNetwork, encoded: Any, around: Around, recipe: Recipe, draw: Draw) -> Tensor:
    """The pose loss after each of a few steps of the network's own update; step k weighs k."""
    losses = pose_loss(predict(network, encoded, around, recipe, draw), around.truth).mean(-1)
    weight = torch.arange(1, len(losses) + 1, device=losses.device, dtype=losses.dtype)
    return (weight / weight.sum()) @ losses


def predict(network: RegistrationNetwork, encoded: Any, around: Around, recipe: Recipe, draw: Draw) -> Tensor:
    """The poses after each unrolled step, (steps, B, 4, 4), from the recipe's start."""
    start = network.start(around.truth)
    if recipe.loss.start == "truth":
        start = draw.poses(around, recipe.loss.start_angle_deg, recipe.loss.start_translation)
    return network.trajectory(encoded, start, recipe.loss.unrolled_steps)


class Losses(nn.Module):
    """The recipe's loss of a network on a batch. Parameters: those that the DLC learns itself, if any."""

    def __init__(self, network: RegistrationNetwork, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self._network = [network]  # in a list: its parameters are not this module's
        weights = recipe.loss
        self.weights = {"contrastive": weights.contrastive, "unrolled": weights.unrolled, "matching": weights.matching}
        self.weights = {name: weight for name, weight in self.weights.items() if weight}
        if "matching" in self.weights and not hasattr(network, "matching_loss"):
            given = f"{weights.matching} for {type(network).__name__}, which has no such loss"
            raise InputError("loss.matching", given, "0")
        self.convexified: ConvexifiedLoss | None = None
        if recipe.dlc != "none":
            objective = network.value if recipe.dlc == "energy" else _label_loss
            self.convexified = convexified_loss(objective, recipe.convexify)
            self.weights["dlc"] = 1.0

    def forward(self, batch: PairBatch, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        """The total, and what each term adds to it by name, with ConvexifiedLoss's own terms as "dlc_..."."""
        encoded, around = self.encode(batch), Around.truths(batch)
        terms = {name: self.term(name, encoded, around, draw) for name in self.weights}
        total = torch.stack([self.weights[name] * value for name, (value, _) in terms.items()]).sum()
        figures = {name: value.item() for name, (value, _) in terms.items()}
        for _, more in terms.values():
            figures |= more
        return total, figures

    def encode(self, batch: PairBatch) -> Any:
        """Features once a batch, in the recipe's precision."""
        half, device = self.recipe.optimizer.precision == "bf16", batch.source.device.type
        with torch.autocast(device, torch.bfloat16, enabled=half):
            return self.network.encode(batch.source, batch.target, batch.source_mask, batch.target_mask)

    def term(self, name: str, encoded: Any, around: Around, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        """One term, and further figures of it."""
        network, recipe = self.network, self.recipe
        if name == "matching":
            return network.matching_loss(encoded, around.truth).mean(), {}  # type: ignore[operator]
        if name == "dlc":
            return self._convexity(encoded, around, draw)
        function: Callable[..., Tensor] = {"contrastive": contrastive, "unrolled": unrolled}[name]
        return function(network, encoded, around, recipe, draw), {}

    @property
    def network(self) -> RegistrationNetwork:
        return self._network[0]

    def _convexity(self, encoded: Any, around: Around, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        assert self.convexified is not None
        data = encoded
        if self.recipe.dlc == "label":
            data = predict(self.network, encoded, around, self.recipe, draw)[-1]
        every = self.convexified.draw(around.local[:1].expand(draw.total, 4, 4), generator=draw.generator)
        rows = slice(draw.begin, draw.end)
        star = Star(around.local, every.tangents[:, rows], every.fractions[:, rows])
        result = self.convexified(around.local, (data, around), star=star)
        return result.total, {f"dlc_{name}": value.item() for name, value in result.terms.items()}


def _local(objective: Callable[[Tensor, Any], Tensor]) -> Callable[[Tensor, Any], Tensor]:
    """The objective over local poses, of data and where they are."""
    return lambda omega, data: data[1].objective(objective)(omega, data[0])


def _label_loss(omega: Tensor, estimate: Tensor) -> Tensor:
    """The label side's objective: the network has answered, and only the label moves."""
    return pose_loss(estimate, omega)


def convexified_loss(objective: Callable[[Tensor, Any], Tensor], settings: Convexify) -> ConvexifiedLoss:
    """The recipe's table as one call."""
    turn, move = math.radians(settings.radius_deg), settings.radius_translation
    entries = settings.space == "entries"
    reach = [settings.radius_entries] * 9 + [move] * 3 if entries else [turn] * 3 + [move] * 3
    sampler: Sampler = Box() if entries else Ball((3, 3))
    low, high = settings.fractions[0], settings.fractions[-1]
    return ConvexifiedLoss(
        _local(objective),
        Ambient((4, 4), ENTRIES) if entries else SE3(),
        radius=reach,
        samples=settings.samples,
        both_signs=settings.both_signs,
        mu=Learned(settings.mu) if settings.learn_mu else settings.mu,
        rho=settings.rho,
        sampler=Scaled(sampler, settings.shortest) if settings.shortest < 1 else sampler,
        aggregate=settings.aggregate,
        terms=settings.terms,
        fraction=Learned() if settings.learn_fraction else (low, high),
        norm="tangent" if entries else "radius",
        task_weight=settings.task_weight,
        check_finite=False,
    )


def term_costs(
    network: RegistrationNetwork, recipe: Recipe, batch: PairBatch, draw: Draw, repeats: int = 3
) -> dict[str, dict[str, float]]:
    """Seconds and forward passes of a step, gradients included, and what each term adds to it.

    A forward pass is the encoder and one value of the energy, without gradients. What a term adds is the step's time
    less that of a step without it; of the only term, the whole.
    """
    losses = Losses(copy.deepcopy(network).train(), recipe).to(batch.source.device)
    names, around = list(losses.weights), Around.truths(batch)

    def forward() -> None:
        with torch.no_grad():
            losses.network.value(around.truth, losses.encode(batch))

    def step(terms: list[str]) -> Callable[[], None]:
        def run() -> None:
            encoded = losses.encode(batch)
            values = [losses.term(name, encoded, around, draw)[0] for name in terms]
            torch.autograd.backward(torch.stack(values).sum())

        return run

    runs = {"forward": forward, "step": step(names)}
    if len(names) > 1:
        runs |= {f"without {name}": step([other for other in names if other != name]) for name in names}
    seconds = _timed(runs, repeats, batch)
    unit, whole = seconds["forward"], seconds["step"]
    own = {name: max(whole - seconds.get(f"without {name}", 0.0), 0.0) for name in names}
    figures = {"forward": unit, "step": whole, **own}
    return {name: {"seconds": value, "passes": value / unit} for name, value in figures.items()}


def _timed(runs: dict[str, Callable[[], None]], repeats: int, batch: PairBatch) -> dict[str, float]:
    """The least seconds of each in some rounds, after one that warms up; in turns, so that a busy moment hits all."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if batch.source.is_cuda:
                torch.cuda.synchronize(batch.source.device)
            times[name].append(time.perf_counter() - began)
    return {name: min(values[1:]) for name, values in times.items()}
