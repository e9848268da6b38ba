"""Training of features for image alignment: what the loop of `training` has to know."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlc_reg._alignment_solve import descend
from dlc_reg._image_pairs import PROTOCOL, ImageBatch, ImagePair, ImagePairs, Pictures, collate_images
from dlc_reg._images_losses import ImageLosses, encode_pairs
from dlc_reg._images_recipe import ImageRecipe
from dlc_reg._warping import corner_error, normaliser
from dlc_reg.alignment import ARCHITECTURES, save_features
from dlc_reg.errors import InputError
from dlc_reg.networks.images import LEVELS, FeatureEncoder


class ImageTask:
    """Pairs of images that the protocol makes of pictures; features whose energy is descended."""

    recipe = ImageRecipe
    figures = ("below_1", "below_3", "below_10", "median", "seconds")

    def load(self, path: Path, recipe: ImageRecipe, cache: Path, progress: bool) -> Pictures:
        return Pictures.load(path)

    def network(self, recipe: ImageRecipe) -> FeatureEncoder:
        if recipe.architecture not in ARCHITECTURES:
            raise InputError("architecture", repr(recipe.architecture), f"one of {', '.join(ARCHITECTURES)}")
        return FeatureEncoder(**recipe.network)

    def losses(self, network: FeatureEncoder, recipe: ImageRecipe) -> ImageLosses:
        return ImageLosses(network, recipe)

    def sets(self, recipe: ImageRecipe, data: Pictures) -> tuple[ImagePairs, ImagePairs]:
        settings, held_out = recipe.data, recipe.validation

        def pairs(split: str, seed: int, count: int) -> ImagePairs:
            return ImagePairs(
                data.select(split),
                seed,
                count,
                size=settings.size,
                zoom=settings.zoom,
                octaves=settings.octaves,
                reach=settings.reach,
                photometric=settings.photometric,
            )

        count = recipe.optimizer.steps * recipe.optimizer.batch
        return pairs("train", recipe.seed, count), pairs("val", held_out.seed, held_out.pairs)

    def workers(self, recipe: ImageRecipe) -> int:
        return recipe.data.workers

    def collate(self, items: Sequence[ImagePair]) -> ImageBatch:
        return collate_images(list(items))

    @torch.no_grad()
    def validate(
        self, network: FeatureEncoder, held_out: ImagePairs, recipe: ImageRecipe, device: Any
    ) -> dict[str, float]:
        """From the middle of the input, without a search: shares of pairs with corner errors below so many pixels of
        192, the median error and seconds a pair."""
        training, began = network.training, time.perf_counter()
        network.eval()
        e = errors_from_the_middle(network, held_out, recipe.validation.iterations, device)
        network.train(training)
        shares = {f"below_{limit}": (e < limit).double().mean().item() for limit in (1, 3, 10)}
        median = min(e.median().item(), 1e3)
        return {**shares, "median": median, "seconds": (time.perf_counter() - began) / len(held_out)}

    def rank(self, figures: dict[str, float]) -> tuple[float, ...]:
        return figures["below_3"] + figures["below_1"], -figures["median"]

    def save(self, path: Path, network: FeatureEncoder, card: dict[str, Any]) -> None:
        save_features(path, network, card)


@torch.no_grad()
def errors_from_the_middle(network: FeatureEncoder, pairs: ImagePairs, iterations: int, device: Any = None) -> Tensor:
    """(pairs,) corner errors in pixels of `PROTOCOL`, without a search."""
    errors = []
    for item in range(len(pairs)):
        batch = collate_images([pairs[item]]).to(device)
        estimate, size = from_the_middle(network, batch, iterations).cpu(), batch.source.shape[-2:]
        errors.append(corner_error(estimate, batch.truth[0].cpu(), (size[0], size[1])) * PROTOCOL / pairs.size)
    return torch.stack(errors)


def from_the_middle(network: FeatureEncoder, batch: ImageBatch, iterations: int) -> Tensor:
    """(3, 3): source into target in pixels, descended from the template in the middle of the input; a batch of one."""
    encoded = encode_pairs(network, batch)
    sizes = [(image.shape[-2], image.shape[-1]) for image in (batch.target, batch.source)]
    whole, template = (normaliser(size, device=batch.truth.device) for size in sizes)
    shift = torch.eye(3, dtype=torch.float64, device=batch.truth.device)
    shift[:2, 2] = torch.tensor([(sizes[0][1] - sizes[1][1]) / 2, (sizes[0][0] - sizes[1][0]) / 2])
    start = template @ torch.linalg.inv(shift) @ torch.linalg.inv(whole)
    start = start / torch.linalg.det(start) ** (1 / 3)
    found = descend(encoded.levels[::-1], start[None], (1,) * LEVELS, (iterations,) * LEVELS, "levels")
    answer: Tensor = torch.linalg.inv(torch.linalg.inv(template) @ found.omega[0].double() @ whole)
    return answer


TASK = ImageTask()
