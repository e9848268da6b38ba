"""The terms of image alignment's training loss, at each level of the feature maps, then the mean over levels.

    total = contrastive * InfoNCE(E) + unrolled * sum_k w_k log(1 + |c_k - c*|^2 / s^2)
          + (dlc != "none") * ConvexifiedLoss

c: where the template's corners lie. Homographies move by the corners: xi = J^-1 d, J the motion of the four corners
along the tangent, d their displacements, so that lengths are pixels whatever the coordinate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlc_reg._alignment_objective import ImageAlignment, Level, level_of, motion, thinned
from dlc_reg._image_pairs import ImageBatch
from dlc_reg._images_recipe import ImageRecipe
from dlc_reg._rays import Neighbourhood
from dlc_reg._terms import Draw, Losses, convexified_loss, later_weigh_more, shared_rays
from dlc_reg._warping import SQUARE, inverse, normaliser, project
from dlc_reg.convexify import ConvexifiedLoss
from dlc_reg.manifold import Homography
from dlc_reg.networks.images import LEVELS, FeatureEncoder
from dlc_reg.updates import GaussNewton

TOLERANCE = 0.05  # s: half of the template's side times this is where the unrolled loss turns from square to logarithm
OBJECTIVE, MANIFOLD = ImageAlignment(), Homography()


@dataclass(frozen=True)
class Encoded:
    """A batch's levels, finest first, the input being the objective's source, and the truths (B, 3, 3)."""

    levels: list[Level]
    truth: Tensor


def tangents_of(displacements: Tensor) -> Tensor:
    """Tangent vectors (..., 8) that move the corners of [-1, 1]^2 by displacements (..., 8) to first order."""
    back = torch.linalg.inv(motion(SQUARE).reshape(8, 8))
    tangents: Tensor = displacements @ back.to(displacements).mT
    return tangents


def corner_loss(estimate: Tensor, truth: Tensor) -> Tensor:
    """log(1 + |c - c*|^2 / s^2) (..., B), the mean over the template's corners."""
    square = SQUARE.to(truth)
    there, right = (project(inverse(omega), square) for omega in (estimate, truth))
    distance: Tensor = (there - right).square().sum(-1)
    return (distance / TOLERANCE**2).log1p().mean(-1)


def label_loss(omega: Tensor, estimate: Tensor) -> Tensor:
    """The label side's objective: the network has answered, and only the label moves."""
    return corner_loss(estimate.expand_as(omega), omega)


def encode_pairs(encoder: FeatureEncoder, batch: ImageBatch, stride: int = 1) -> Encoded:
    """The template, which is the pair's source, becomes the objective's target, for it lies inside the input.

    `stride`: at the finest level only every so manieth pixel of the template counts, along x and y.
    """
    template, whole = encoder(batch.source, 0), encoder(batch.target, 1)
    sizes = [(image.shape[-2], image.shape[-1]) for image in (batch.target, batch.source)]
    levels = []
    for k in range(LEVELS):
        masks = [torch.ones_like(maps[:, :1]) for maps in (whole[k], template[k])]
        levels.append(level_of(whole[k], template[k], (sizes[0], sizes[1]), 1 << k, (masks[0], masks[1])))
    levels[0] = thinned(levels[0], (template[0].shape[-2], template[0].shape[-1]), stride)
    back = torch.linalg.inv(normaliser(sizes[0], device=batch.truth.device))
    truth = normaliser(sizes[1], device=batch.truth.device) @ torch.linalg.inv(batch.truth) @ back
    return Encoded(levels, (truth / torch.linalg.det(truth)[:, None, None] ** (1 / 3)).to(batch.source))


def moved(truth: Tensor, reach: float, draw: Draw, *lead: int) -> Tensor:
    """(*lead, B, 3, 3): truths whose corners are displaced by up to `reach` each way."""
    box = torch.stack([2 * draw.uniform(*lead) - 1 for _ in range(8)], dim=-1)
    return MANIFOLD.retract(truth, tangents_of(reach * box).to(truth))


def contrastive(level: Level, truth: Tensor, reach: float, recipe: ImageRecipe, draw: Draw) -> Tensor:
    """InfoNCE on E: the truth against homographies moved from it, logits -E / temperature."""
    others = moved(truth, reach, draw, recipe.loss.negatives)
    logits = -OBJECTIVE.value(torch.cat([truth[None], others]), level) / recipe.loss.temperature
    return -logits.log_softmax(0)[0].mean()


def trajectory(level: Level, start: Tensor, steps: int) -> Tensor:
    """The homographies after 1, ..., `steps` of Gauss and Newton's steps, (steps, B, 3, 3), with their gradients."""
    update, omega = GaussNewton(MANIFOLD), start
    state, _ = update.init(OBJECTIVE, omega, level)
    reached = []
    for _ in range(steps):
        omega, state, _ = update.step(OBJECTIVE, omega, level, state)
        reached.append(omega)
    return torch.stack(reached)


def unrolled(level: Level, truth: Tensor, reach: float, recipe: ImageRecipe, draw: Draw) -> Tensor:
    """The corner loss after each of a few steps; step k weighs k."""
    losses = corner_loss(trajectory(level, moved(truth, reach, draw), recipe.loss.unrolled_steps), truth).mean(-1)
    return later_weigh_more(losses)


@dataclass(frozen=True)
class CornerBox:
    """Rays that displace each corner by up to the radius each way, times U(shortest, 1)."""

    shortest: float

    def __call__(self, count: int, near: Neighbourhood) -> Tensor:
        box = near.radius * (2 * near.uniform(count, 8) - 1)
        return tangents_of(box) * (self.shortest + (1 - self.shortest) * near.uniform(count, 1))


class ImageLosses(Losses):
    """The recipe's loss of an encoder. Figures of ConvexifiedLoss's own terms are called "dlc_..."."""

    def __init__(self, network: FeatureEncoder, recipe: ImageRecipe) -> None:
        weights = {"contrastive": recipe.loss.contrastive, "unrolled": recipe.loss.unrolled}
        super().__init__(network, {**weights, "dlc": float(recipe.dlc != "none")})
        self.recipe = recipe
        objective = label_loss if recipe.dlc == "label" else OBJECTIVE.value
        levels = [k for k in range(LEVELS) if recipe.dlc != "none" and recipe.convexify.reach[k]]
        settings = recipe.convexify
        sampler = CornerBox(settings.shortest)
        self.convexified = torch.nn.ModuleDict(
            {
                str(k): convexified_loss(objective, MANIFOLD, settings, radius=settings.reach[k], sampler=sampler)
                for k in levels
            }
        )

    def encode(self, batch: ImageBatch) -> Encoded:
        half, device = self.recipe.optimizer.precision == "bf16", batch.source.device.type
        with torch.autocast(device, torch.bfloat16, enabled=half):
            maps = encode_pairs(self.network, batch, self.recipe.loss.stride)
        return maps

    def term(self, name: str, encoded: Encoded, batch: Any, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        if name == "dlc":
            return self._convexity(encoded, draw)
        loss = self.recipe.loss
        function, reach = {"contrastive": (contrastive, loss.negative_reach), "unrolled": (unrolled, loss.start_reach)}[
            name
        ]
        values = [
            function(encoded.levels[k], encoded.truth, reach[k], self.recipe, draw) for k in range(LEVELS) if reach[k]
        ]
        return torch.stack(values).mean(), {}

    def forward_pass(self, batch: ImageBatch) -> None:
        """The encoder and one value of E at each level."""
        encoded = self.encode(batch)
        for level in encoded.levels:
            OBJECTIVE.value(encoded.truth, level)

    def _convexity(self, encoded: Encoded, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        totals: list[Tensor] = []
        figures: dict[str, float] = {}
        for k, loss in self.convexified.items():
            assert isinstance(loss, ConvexifiedLoss)
            level, settings = encoded.levels[int(k)], self.recipe.loss
            star = shared_rays(loss, encoded.truth, draw)
            data: Any = level
            if self.recipe.dlc == "label":
                start = moved(encoded.truth, settings.start_reach[int(k)] or 0.25, draw)
                data = trajectory(level, start, settings.unrolled_steps)[-1]
            result = loss(encoded.truth, data, star=star)
            totals.append(result.total)
            figures |= {f"dlc_{name}_{k}": value.item() for name, value in result.terms.items()}
        return torch.stack(totals).mean(), figures
