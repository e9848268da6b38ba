"""Training of recurrent networks: recipes, the terms of the loss, and what the loop of `training` has to know.

    total = task * sum_k w_k task_loss(omega_k) + contrastive * InfoNCE(E) + (dlc != "none") * ConvexifiedLoss

omega_k are the predictions after each step of the head's descent; a plain readout has one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dlc_reg._recipe import Convexify, Recipe, Validation, at_least
from dlc_reg._sequences_data import Adding, Item, Items, Order, SequenceBatch, Sequences, collate
from dlc_reg._terms import Draw, Losses, convexified_loss, later_weigh_more, shared_rays
from dlc_reg.convexify import Ball, ConvexifiedLoss, Sampler, Scaled, SoftmaxNoise
from dlc_reg.errors import InputError
from dlc_reg.networks.files import save_network
from dlc_reg.sequence import ARCHITECTURES, RecurrentNetwork, SequenceModel


@dataclass(frozen=True)
class Data:
    """How the sequences of a prepared file are read; or, of the adding problem, made: its file holds held-out ones."""

    order: Order = "stored"
    shrink: int = 1  # pixels of an image, along both sides, that are averaged to one
    length: int = 0  # steps after padding with normal noise at the end; 0: no padding
    generate: bool = False  # sequences of the adding problem to train on, as long as the held-out ones
    workers: int = 0  # processes that make items

    def __post_init__(self) -> None:
        at_least("data", self, shrink=1, length=0, workers=0)


@dataclass(frozen=True)
class Loss:
    """Weights of the terms (0: not computed) and their settings; radii in the unit of predictions."""

    task: float = 1.0
    smoothing: float = 0.0  # of labels
    margin: float = 0.0  # by which the true class's logit is lowered
    start_radius: float = 0.0  # descents begin within it of zero
    contrastive: float = 0.0
    temperature: float = 0.1
    negatives: int = 8
    negative_radius: float = 1.5

    def __post_init__(self) -> None:
        names = ("task", "smoothing", "margin", "start_radius", "contrastive", "negative_radius")
        at_least("loss", self, **dict.fromkeys(names, 0), negatives=1)
        if self.smoothing >= 1 or not self.temperature > 0:
            given = f"{self.smoothing}, {self.temperature}"
            raise InputError("loss.smoothing, temperature", given, "a share below 1, and a number above 0")


@dataclass(frozen=True)
class ConvexifyPredictions(Convexify):
    """Rays end within `radius` of the truth, in which |xi|^2 is measured; or go to softmax(label + radius N(0, 1))."""

    radius: float = 1.5
    sampler: Literal["ball", "softmax"] = "ball"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.radius > 0:
            raise InputError("convexify.radius", str(self.radius), "a number above 0")


@dataclass(frozen=True)
class SequenceRecipe(Recipe):
    """A training run of a recurrent network."""

    architecture: str = "recurrent"
    data: Data = field(default_factory=Data)
    loss: Loss = field(default_factory=Loss)
    convexify: ConvexifyPredictions = field(default_factory=ConvexifyPredictions)
    validation: Validation = field(default_factory=Validation)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dlc == "none" and not (self.loss.task or self.loss.contrastive):
            raise InputError("loss", "no term with a weight", "task, contrastive or dlc")


def task_loss(model: SequenceModel, omega: Tensor, truth: Tensor, classes: bool, margin: float = 0.0) -> Tensor:
    """(*lead, B): cross-entropy with labels truth (*lead, B, C), or squared error."""
    if not classes:
        return (omega - truth).square().sum(-1)
    likelihoods = (model.logits(omega) - margin * truth).log_softmax(-1)
    return -(truth * likelihoods).sum(-1)


class SequenceLosses(Losses):
    """The recipe's loss of a recurrent network."""

    def __init__(self, network: SequenceModel, recipe: SequenceRecipe) -> None:
        loss = recipe.loss
        weights = {"task": loss.task, "contrastive": loss.contrastive, "dlc": float(recipe.dlc != "none")}
        super().__init__(network, weights)
        self.recipe = recipe
        self.convexified: ConvexifiedLoss | None = None
        if recipe.dlc != "none":
            objective = network.value if recipe.dlc == "energy" else self._label_loss
            settings = recipe.convexify
            sampler: Sampler = Ball() if settings.sampler == "ball" else SoftmaxNoise()
            self.convexified = convexified_loss(
                objective,
                network.manifold,
                settings,
                radius=settings.radius,
                sampler=Scaled(sampler, settings.shortest) if settings.shortest < 1 else sampler,
            )

    def encode(self, batch: SequenceBatch) -> Any:
        half = self.recipe.optimizer.precision == "bf16"
        with torch.autocast(batch.values.device.type, torch.bfloat16, enabled=half):
            return self.network.encode(batch.values)

    def term(self, name: str, encoded: Any, batch: SequenceBatch, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        if name == "task":
            return self._task(encoded, batch, draw), {}
        if name == "contrastive":
            return self._contrastive(encoded, batch, draw), {}
        return self._convexity(encoded, batch, draw)

    def forward_pass(self, batch: SequenceBatch) -> None:
        """The cell over the sequences, and one value of the energy."""
        self.network.value(batch.truth, self.encode(batch))

    def _task(self, encoded: Any, batch: SequenceBatch, draw: Draw) -> Tensor:
        """The loss after each step of the descent; step k weighs k."""
        settings, truth = self.recipe.loss, batch.truth
        if batch.classes and settings.smoothing:
            truth = (1 - settings.smoothing) * truth + settings.smoothing / truth.shape[-1]
        reached = self._descent(encoded, batch, draw)
        losses = task_loss(self.network, reached, truth, batch.classes, settings.margin).mean(-1)
        return later_weigh_more(losses)

    def _descent(self, encoded: Any, batch: SequenceBatch, draw: Draw) -> Tensor:
        start = torch.zeros_like(batch.truth)
        if self.recipe.loss.start_radius:
            start = start + self.recipe.loss.start_radius * _inside(draw, batch.truth)
        reached: Tensor = self.network.trajectory(encoded, start)
        return reached

    def _contrastive(self, encoded: Any, batch: SequenceBatch, draw: Draw) -> Tensor:
        """InfoNCE on the energy: the truth against predictions moved from it, logits -E / temperature."""
        settings = self.recipe.loss
        moved = batch.truth + settings.negative_radius * _inside(draw, batch.truth, settings.negatives)
        logits = -self.network.value(torch.cat([batch.truth[None], moved]), encoded) / settings.temperature
        chosen: Tensor = logits.log_softmax(0)[0]
        return -chosen.mean()

    def _convexity(self, encoded: Any, batch: SequenceBatch, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        assert self.convexified is not None
        data = encoded
        if self.recipe.dlc == "label":
            data = (self._descent(encoded, batch, draw)[-1], batch.classes)
        star = shared_rays(self.convexified, batch.truth, draw)
        result = self.convexified(batch.truth, data, star=star)
        return result.total, {f"dlc_{name}": value.item() for name, value in result.terms.items()}

    def _label_loss(self, omega: Tensor, answered: tuple[Tensor, bool]) -> Tensor:
        """The label side's objective: the network has answered, and only the label moves."""
        return task_loss(self.network, answered[0], omega, answered[1])


def _inside(draw: Draw, like: Tensor, *lead: int) -> Tensor:
    """(*lead, B, C): in every direction, lengths uniform up to one."""
    directions = draw.directions(*lead, dimensions=like.shape[-1])
    return (draw.uniform(*lead)[..., None] * directions).to(like)


def validate(
    network: SequenceModel,
    held_out: Items,
    *,
    device: Any = "cpu",
    iterations: int | None = None,
    start_noise: float = 0.0,
    batch: int = 250,
) -> dict[str, float]:
    """In eval(): "success", the share of classes that are right, or the share of the values' variance that is explained
    (1: all); "loss", mean cross-entropy or squared error; "seconds" a sequence.

    `start_noise`: the deviation of normal noise that descents start from; 0: they start from zero.
    """
    training, began = network.training, time.perf_counter()
    network.eval()
    generator = torch.Generator().manual_seed(0)
    right, losses, truths = [], [], []
    for first in range(0, len(held_out), batch):
        given = collate([held_out[i] for i in range(first, min(first + batch, len(held_out)))]).to(device)
        init = start_noise * torch.randn(given.truth.shape, generator=generator).to(given.truth)
        with torch.no_grad():
            omega = network(given.values, init=init, iterations=iterations)
            losses.append(task_loss(network, omega, given.truth, given.classes).cpu())
        right.append((omega.argmax(-1) == given.truth.argmax(-1)).float().cpu())
        truths.append(given.truth.cpu())
    network.train(training)
    loss = torch.cat(losses).nan_to_num(nan=float("inf")).mean().item()
    success = torch.cat(right).mean().item()
    if not held_out.data.is_classes:
        success = 1 - loss / torch.cat(truths).var(unbiased=False).item()
    return {"success": success, "loss": loss, "seconds": (time.perf_counter() - began) / len(held_out)}


class SequencesTask:
    """Labelled sequences; a network that moves a prediction of their label."""

    recipe = SequenceRecipe
    figures = ("success", "loss", "seconds")

    def load(self, path: Path, recipe: SequenceRecipe, cache: Path, progress: bool) -> Sequences:
        return Sequences.load(path)

    def network(self, recipe: SequenceRecipe) -> RecurrentNetwork:
        if recipe.architecture not in ARCHITECTURES:
            raise InputError("architecture", repr(recipe.architecture), f"one of {', '.join(ARCHITECTURES)}")
        return RecurrentNetwork(**recipe.network)

    def losses(self, network: SequenceModel, recipe: SequenceRecipe) -> SequenceLosses:
        return SequenceLosses(network, recipe)

    def sets(self, recipe: SequenceRecipe, data: Sequences) -> tuple[Dataset[Item], Items]:
        training, validating = data.halves()
        held_out = held_out_items(validating, recipe)
        if recipe.network.get("outputs") != data.outputs or recipe.network.get("inputs") != held_out[0].values.shape[1]:
            given = f"{recipe.network.get('inputs')} and {recipe.network.get('outputs')}"
            wanted = f"{held_out[0].values.shape[1]} and {data.outputs}, as {data.title} has"
            raise InputError("network.inputs, outputs", given, wanted)
        if recipe.data.generate:
            return Adding(data.values.shape[1], recipe.seed), held_out
        if training is None:
            raise InputError("data.generate", "false, and no sequence of 'train'", "true, or data to train on")
        return _items(training, recipe.seed, recipe), held_out

    def workers(self, recipe: SequenceRecipe) -> int:
        return recipe.data.workers

    def collate(self, items: Sequence[Item]) -> SequenceBatch:
        return collate(items)

    def validate(
        self, network: SequenceModel, held_out: Items, recipe: SequenceRecipe, device: Any
    ) -> dict[str, float]:
        return validate(network, held_out, device=device)

    def rank(self, figures: dict[str, float]) -> tuple[float, float]:
        return figures["success"], -figures["loss"]

    def save(self, path: Path, network: RecurrentNetwork, card: dict[str, Any]) -> None:
        save_network(path, network, card, ARCHITECTURES)


HELD_OUT_SEED = 1_000_003  # of the noise that pads what is held out


def held_out_items(data: Sequences, recipe: SequenceRecipe) -> Items:
    """Sequences as the recipe reads them, in the order that they have."""
    return _items(data, HELD_OUT_SEED, recipe, shuffle=False)


def _items(data: Sequences, seed: int, recipe: SequenceRecipe, shuffle: bool = True) -> Items:
    read = recipe.data
    return Items(data, seed, order=read.order, shrink=read.shrink, length=read.length, shuffle=shuffle)


TASK = SequencesTask()
