"""The terms of the training loss, each readable beside its formula.

    total = contrastive * InfoNCE(E) + unrolled * sum_k w_k (|R_k - R*|_F^2 + |t_k - t*|^2) + matching * network's own
          + (dlc != "none") * ConvexifiedLoss

Every random number is drawn for the batch of all processes together, and each takes its rows. All terms are means over
the batch, so that the mean over processes is what one would have; but not the worst ray, convexify.aggregate = "max",
which training refuses with more than one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlc_reg._around import Around
from dlc_reg._registration_recipe import ConvexifyPoses, RegistrationRecipe
from dlc_reg._terms import Draw, Losses, convexified_loss, later_weigh_more, shared_rays
from dlc_reg.convexify import Ambient, Ball, Box, ConvexifiedLoss, Sampler, Scaled
from dlc_reg.errors import InputError
from dlc_reg.manifold import SE3
from dlc_reg.protocols import PairBatch
from dlc_reg.registration.learned.frame import RegistrationNetwork

ENTRIES = (0, 1, 2, 4, 5, 6, 8, 9, 10, 3, 7, 11)  # of a flattened pose: R row by row, then t


def poses_about(around: Around, angle_deg: float, length: float, draw: Draw, *lead: int) -> Tensor:
    """Poses (*lead, B, 4, 4): the truth turned by up to the angle about any axis, and moved by up to the length."""
    turn = math.radians(angle_deg) * draw.uniform(*lead)[..., None] * draw.directions(*lead)
    move = length * draw.uniform(*lead)[..., None] * draw.directions(*lead)
    xi = torch.cat([turn, move], dim=-1).to(around.local)
    return around.place @ SE3().retract(around.local, xi)


def pose_loss(estimate: Tensor, truth: Tensor) -> Tensor:
    """|R - R*|_F^2 + |t - t*|^2, (..., B), of poses (..., B, 4, 4). The first is 4 (1 - cos angle)."""
    return (estimate - truth)[..., :3, :].square().sum((-2, -1))


def contrastive(
    network: RegistrationNetwork, encoded: Any, around: Around, recipe: RegistrationRecipe, draw: Draw
) -> Tensor:
    """InfoNCE on the energy: the truth against poses moved from it, logits -E / temperature."""
    loss = recipe.loss
    moved = poses_about(around, loss.negative_angle_deg, loss.negative_translation, draw, loss.negatives)
    logits = -network.value(torch.cat([around.truth[None], moved]), encoded).float() / loss.temperature
    return -logits.log_softmax(0)[0].mean()


def unrolled(
    network: RegistrationNetwork, encoded: Any, around: Around, recipe: RegistrationRecipe, draw: Draw
) -> Tensor:
    """The pose loss after each of a few steps of the network's own update; step k weighs k."""
    losses = pose_loss(predict(network, encoded, around, recipe, draw), around.truth).mean(-1)
    return later_weigh_more(losses)


def predict(
    network: RegistrationNetwork, encoded: Any, around: Around, recipe: RegistrationRecipe, draw: Draw
) -> Tensor:
    """The poses after each unrolled step, (steps, B, 4, 4), from the recipe's start."""
    start = network.start(around.truth)
    if recipe.loss.start == "truth":
        start = poses_about(around, recipe.loss.start_angle_deg, recipe.loss.start_translation, draw)
    return network.trajectory(encoded, start, recipe.loss.unrolled_steps)


class RegistrationLosses(Losses):
    """The recipe's loss of a registration network. Figures of ConvexifiedLoss's own terms are called "dlc_..."."""

    def __init__(self, network: RegistrationNetwork, recipe: RegistrationRecipe) -> None:
        weights = recipe.loss
        named = {"contrastive": weights.contrastive, "unrolled": weights.unrolled, "matching": weights.matching}
        super().__init__(network, {**named, "dlc": float(recipe.dlc != "none")})
        self.recipe = recipe
        if weights.matching and not hasattr(network, "matching_loss"):
            given = f"{weights.matching} for {type(network).__name__}, which has no such loss"
            raise InputError("loss.matching", given, "0")
        self.convexified: ConvexifiedLoss | None = None
        if recipe.dlc != "none":
            objective = network.value if recipe.dlc == "energy" else _label_loss
            self.convexified = convexified(objective, recipe.convexify)

    def encode(self, batch: PairBatch) -> tuple[Any, Around]:
        """Features, in the recipe's precision, and the truths."""
        half, device = self.recipe.optimizer.precision == "bf16", batch.source.device.type
        with torch.autocast(device, torch.bfloat16, enabled=half):
            encoded = self.network.encode(batch.source, batch.target, batch.source_mask, batch.target_mask)
        return encoded, Around.truths(batch)

    def term(self, name: str, encoded: Any, batch: Any, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        features, around = encoded
        if name == "matching":
            return self.network.matching_loss(features, around.truth).mean(), {}
        if name == "dlc":
            return self._convexity(features, around, draw)
        function: Callable[..., Tensor] = {"contrastive": contrastive, "unrolled": unrolled}[name]
        return function(self.network, features, around, self.recipe, draw), {}

    def forward_pass(self, batch: PairBatch) -> None:
        """The encoder and one value of the energy."""
        features, around = self.encode(batch)
        self.network.value(around.truth, features)

    def _convexity(self, encoded: Any, around: Around, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        assert self.convexified is not None
        data = encoded
        if self.recipe.dlc == "label":
            data = predict(self.network, encoded, around, self.recipe, draw)[-1]
        star = shared_rays(self.convexified, around.local, draw)
        result = self.convexified(around.local, (data, around), star=star)
        return result.total, {f"dlc_{name}": value.item() for name, value in result.terms.items()}


def _local(objective: Callable[[Tensor, Any], Tensor]) -> Callable[[Tensor, Any], Tensor]:
    """The objective over local poses, of data and where they are."""
    return lambda omega, data: data[1].objective(objective)(omega, data[0])


def _label_loss(omega: Tensor, estimate: Tensor) -> Tensor:
    """The label side's objective: the network has answered, and only the label moves."""
    return pose_loss(estimate, omega)


def convexified(objective: Callable[[Tensor, Any], Tensor], settings: ConvexifyPoses) -> ConvexifiedLoss:
    """The recipe's table as one call."""
    turn, move = math.radians(settings.radius_deg), settings.radius_translation
    entries = settings.space == "entries"
    reach = [settings.radius_entries] * 9 + [move] * 3 if entries else [turn] * 3 + [move] * 3
    sampler: Sampler = Box() if entries else Ball((3, 3))
    return convexified_loss(
        _local(objective),
        Ambient((4, 4), ENTRIES) if entries else SE3(),
        settings,
        radius=reach,
        sampler=Scaled(sampler, settings.shortest) if settings.shortest < 1 else sampler,
        norm="tangent" if entries else "radius",
    )
