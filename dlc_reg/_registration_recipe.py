"""Recipes of registration networks: which pairs, which terms, and how predictions move about the truth."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from dlc_reg._recipe import Convexify, Recipe, Validation, at_least
from dlc_reg.errors import InputError
from dlc_reg.protocols import Protocol, protocol


@dataclass(frozen=True)
class Data:
    """Which pairs are trained on. Pair i of step s is determined by the recipe's seed, s and i."""

    protocol: str = "full-0-90-noise"
    also: tuple[str, ...] = ()  # further protocols, taken in turn with the first, a batch each
    stretch: float = 0.0  # a shape's axes are first scaled by factors drawn from 1 - stretch to 1 + stretch
    points: int = 0  # of a cloud before its crop; 0: as the protocol has it
    categories: Literal["all", "seen", "unseen"] = "all"
    workers: int = 0  # processes that make pairs
    symmetric: bool = False  # keep shapes that a rotation lays on themselves, when a file of shapes is read

    def __post_init__(self) -> None:
        for name in (self.protocol, *self.also):
            protocol(name)
        at_least("data", self, points=0, workers=0, stretch=0)
        if not self.stretch < 1:
            raise InputError("data.stretch", str(self.stretch), "a number below 1")

    def make(self, name: str | None = None) -> Protocol:
        """The protocol, or another one, with this number of points."""
        chosen = protocol(name or self.protocol)
        return dataclasses.replace(chosen, points=self.points) if self.points else chosen


@dataclass(frozen=True)
class Loss:
    """Weights of the terms (0: not computed) and their settings; angles in degrees, lengths in the points' unit."""

    contrastive: float = 0.0
    temperature: float = 0.1
    negatives: int = 8
    negative_angle_deg: float = 90.0
    negative_translation: float = 0.5
    unrolled: float = 1.0
    unrolled_steps: int = 3
    start: Literal["identity", "truth"] = "identity"  # where the unrolled steps begin, or about what they do
    start_angle_deg: float = 90.0  # largest, for starts about the truth
    start_translation: float = 0.5
    matching: float = 0.0

    def __post_init__(self) -> None:
        bounds = dict.fromkeys(("contrastive", "unrolled", "matching", "start_angle_deg", "start_translation"), 0)
        at_least("loss", self, **bounds, negatives=1, unrolled_steps=1, negative_angle_deg=0, negative_translation=0)
        if not self.temperature > 0:
            raise InputError("loss.temperature", str(self.temperature), "a number above 0")


@dataclass(frozen=True)
class ConvexifyPoses(Convexify):
    """A ray ends within `radius_deg` and `radius_translation` of the truth, and |xi|^2 is measured in these radii, so
    that mu has no unit. `space` "entries" moves the entries of R (by up to `radius_entries`) and t themselves, as the
    authors' demo does; |xi|^2 is then that of the entries.
    """

    radius_deg: float = 60.0
    radius_translation: float = 0.5
    space: Literal["poses", "entries"] = "poses"
    radius_entries: float = 0.125

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("convexify", self, radius_translation=0, radius_entries=0)
        if not 0 < self.radius_deg <= 180 or not self.radius_translation > 0:
            given = f"{self.radius_deg}, {self.radius_translation}"
            raise InputError(
                "convexify.radius_deg, radius_translation", given, "(0, 180] degrees, and a length above 0"
            )


@dataclass(frozen=True)
class ValidationPairs(Validation):
    """Pairs made of the shapes' split "val"."""

    pairs: int = 100
    protocol: str = ""  # empty: the training's
    seed: int = 1_000_003
    iterations: int = 0  # steps at test time; 0: the network's own number

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("validation", self, pairs=1, seed=0, iterations=0)
        if self.protocol:
            protocol(self.protocol)


@dataclass(frozen=True)
class RegistrationRecipe(Recipe):
    """A training run of a registration network."""

    architecture: str = "softicp"
    data: Data = field(default_factory=Data)
    loss: Loss = field(default_factory=Loss)
    convexify: ConvexifyPoses = field(default_factory=ConvexifyPoses)
    validation: ValidationPairs = field(default_factory=ValidationPairs)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dlc == "none" and not (self.loss.contrastive or self.loss.unrolled or self.loss.matching):
            raise InputError("loss", "no term with a weight", "contrastive, unrolled, matching or dlc")
