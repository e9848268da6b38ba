"""The pairs of a training run, and those it is validated on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from dlc_reg._registration_recipe import RegistrationRecipe
from dlc_reg.protocols import Pair, PairDataset, Shapes

HELD_OUT = 20  # one training shape in so many validates, where the shapes have no split "val"


def make_pairs(recipe: RegistrationRecipe, shapes: Shapes) -> tuple[Turns, PairDataset]:
    """Training and validation pairs."""
    data, batch, held_out = recipe.data, recipe.optimizer.batch, recipe.validation
    chosen = split(shapes, data.categories)
    stretch = Stretch(data.stretch) if data.stretch else None
    training = [
        PairDataset(chosen[0], data.make(name), recipe.seed, recipe.optimizer.steps * batch, stretch)
        for name in (data.protocol, *data.also)
    ]
    protocol = data.make(held_out.protocol or None)
    return Turns(training, batch), PairDataset(chosen[1], protocol, held_out.seed, held_out.pairs)


def split(shapes: Shapes, categories: str) -> tuple[Shapes, Shapes]:
    """Shapes to train and to validate on."""
    training = shapes.select(split="train", categories=categories)
    if "val" in shapes.split:
        return training, shapes.select(split="val", categories=categories)
    held_out = np.arange(len(training)) % HELD_OUT == 0
    return training.take(np.flatnonzero(~held_out)), training.take(np.flatnonzero(held_out))


class Turns(Dataset[Pair]):
    """The same pairs by several protocols, which take turns, a batch each."""

    def __init__(self, datasets: list[PairDataset], batch: int) -> None:
        self.datasets, self.batch, self.shapes = datasets, batch, datasets[0].shapes

    def __len__(self) -> int:
        return len(self.datasets[0])

    def __getitem__(self, item: int) -> Pair:
        return self.datasets[item // self.batch % len(self.datasets)][item]


@dataclass(frozen=True)
class Stretch:
    """Scales a shape's axes, each by its own factor, and back into the unit sphere: more shapes than there are."""

    amount: float

    def __call__(self, points: Any, normals: Any, rng: np.random.Generator) -> Any:
        stretched = points * rng.uniform(1 - self.amount, 1 + self.amount, 3)
        return stretched / np.linalg.norm(stretched, axis=1).max()
