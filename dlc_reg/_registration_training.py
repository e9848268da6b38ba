"""Training of registration networks: what the loop of `training` has to know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlc_reg._losses import RegistrationLosses
from dlc_reg._registration_recipe import RegistrationRecipe
from dlc_reg._symmetry import keep_asymmetric
from dlc_reg._training_pairs import Turns, make_pairs
from dlc_reg._validation import rank, validate
from dlc_reg.errors import InputError
from dlc_reg.protocols import Pair, PairBatch, PairDataset, Shapes, collate
from dlc_reg.registration.learned import ARCHITECTURES
from dlc_reg.registration.learned.frame import RegistrationNetwork
from dlc_reg.registration.learned.weights import save_model


class RegistrationTask:
    """Pairs of clouds that protocols make of shapes; a network that moves a pose."""

    recipe = RegistrationRecipe
    figures = ("success", "rotation_deg", "translation", "seconds")

    def load(self, path: Path, recipe: RegistrationRecipe, cache: Path, progress: bool) -> Shapes:
        """The shapes of a file, without symmetric ones if the recipe says so."""
        shapes = Shapes.load(path)
        return shapes if recipe.data.symmetric else keep_asymmetric(shapes, cache=cache, progress=progress)

    def network(self, recipe: RegistrationRecipe) -> RegistrationNetwork:
        if recipe.architecture not in ARCHITECTURES:
            raise InputError("architecture", repr(recipe.architecture), f"one of {', '.join(ARCHITECTURES)}")
        network: RegistrationNetwork = ARCHITECTURES[recipe.architecture](**recipe.network)
        return network

    def losses(self, network: RegistrationNetwork, recipe: RegistrationRecipe) -> RegistrationLosses:
        return RegistrationLosses(network, recipe)

    def sets(self, recipe: RegistrationRecipe, data: Shapes) -> tuple[Turns, PairDataset]:
        return make_pairs(recipe, data)

    def workers(self, recipe: RegistrationRecipe) -> int:
        return recipe.data.workers

    def collate(self, items: Sequence[Pair]) -> PairBatch:
        return collate(items)

    def validate(
        self, network: RegistrationNetwork, held_out: PairDataset, recipe: RegistrationRecipe, device: Any
    ) -> dict[str, float]:
        return validate(network, held_out, device=device, iterations=recipe.validation.iterations or None)

    def rank(self, figures: dict[str, float]) -> tuple[float, ...]:
        return rank(figures)

    def save(self, path: Path, network: RegistrationNetwork, card: dict[str, Any]) -> None:
        save_model(path, network, card)


TASK = RegistrationTask()
