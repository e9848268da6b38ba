"""Recipes of image alignment: which pairs, which terms, and how far homographies are moved about the truth.

Lengths are those by which the corners of the template are moved, in halves of its side: 0.5 is the protocol's 32 of 128
pixels. A triple is for the levels, finest first; 0: not at that level.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dlc_reg._recipe import Convexify, Recipe, Validation, at_least
from dlc_reg.errors import InputError
from dlc_reg.networks.images import LEVELS

Triple = tuple[float, ...]


def _check(table: str, given: object, *names: str) -> None:
    for name in names:
        triple = getattr(given, name)
        if len(triple) != LEVELS or not all(0 <= x <= 2 for x in triple) or not any(triple):
            raise InputError(f"{table}.{name}", str(list(triple)), f"{LEVELS} lengths from 0 to 2, not all of them 0")


@dataclass(frozen=True)
class ImageData:
    """Pair i of all steps is determined by the recipe's seed and i; see `_image_pairs.ImagePairs`."""

    size: int = 96
    zoom: float = 2.0
    octaves: float = 0.0  # by which the zoom may be larger
    reach: float = 1.0
    photometric: float = 1.0
    workers: int = 0  # processes that make pairs

    def __post_init__(self) -> None:
        at_least("data", self, size=48, zoom=0, octaves=0, reach=0, photometric=0, workers=0)


@dataclass(frozen=True)
class ImageLoss:
    """Weights of the terms (0: not computed) and their settings."""

    contrastive: float = 0.0
    temperature: float = 0.1
    negatives: int = 8
    negative_reach: Triple = (0.125, 0.25, 0.5)
    unrolled: float = 1.0
    unrolled_steps: int = 3
    start_reach: Triple = (0.0625, 0.25, 0.5)  # about the truth
    stride: int = 2  # every so manieth pixel of the finest template counts, along x and y

    def __post_init__(self) -> None:
        at_least("loss", self, contrastive=0, unrolled=0, negatives=1, unrolled_steps=1, stride=1)
        _check("loss", self, "negative_reach", "start_reach")
        if not self.temperature > 0:
            raise InputError("loss.temperature", str(self.temperature), "a number above 0")


@dataclass(frozen=True)
class ConvexifyImages(Convexify):
    """Rays move the corners, to first order, by up to `reach` each way; |xi|^2 is measured in it, so mu has no unit."""

    shortest: float = 0.1
    reach: Triple = (0.0, 0.25, 0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("convexify", self, "reach")


@dataclass(frozen=True)
class ImageValidation(Validation):
    """Pairs made of the pictures' split "val"."""

    pairs: int = 60
    seed: int = 1_000_003
    iterations: int = 15  # a level

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("validation", self, pairs=1, seed=0, iterations=1)


@dataclass(frozen=True)
class ImageRecipe(Recipe):
    """A training run of features for image alignment."""

    task: str = "images"
    architecture: str = "features"
    data: ImageData = field(default_factory=ImageData)
    loss: ImageLoss = field(default_factory=ImageLoss)
    convexify: ConvexifyImages = field(default_factory=ConvexifyImages)
    validation: ImageValidation = field(default_factory=ImageValidation)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dlc == "none" and not (self.loss.contrastive or self.loss.unrolled):
            raise InputError("loss", "no term with a weight", "contrastive, unrolled or dlc")
