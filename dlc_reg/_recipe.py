"""Recipes: everything that decides what a training run learns, as frozen data that a TOML file states in part.

A file says only what differs from the defaults; a key that no field has, a value of the wrong type and a value out of
range are `InputError`s that name it.
"""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.utils.data import Dataset

from dlc_reg._terms import Losses
from dlc_reg.errors import InputError


def at_least(table: str, given: Any, **bounds: float) -> None:
    """Raises `InputError` for a field below its bound."""
    for name, bound in bounds.items():
        if not getattr(given, name) >= bound:  # NaN fails too
            raise InputError(f"{table}.{name}", str(getattr(given, name)), f"a number from {bound}")


@dataclass(frozen=True)
class Optimizer:
    """Adam with decoupled weight decay; the rate rises linearly over `warm_up` steps and falls as half a cosine."""

    steps: int = 1500
    batch: int = 16  # pairs a step, over all processes
    rate: float = 1e-3
    final_rate: float = 0.01  # share of `rate` that is left at the end
    warm_up: int = 50
    weight_decay: float = 1e-4
    clip: float = 1.0  # largest norm of the gradient; 0: not clipped
    precision: Literal["float32", "bf16"] = "float32"  # of the encoder; energies and poses are always float32

    def __post_init__(self) -> None:
        at_least("optimizer", self, steps=1, batch=1, rate=0, final_rate=0, warm_up=0, weight_decay=0, clip=0)


TERMS = ("chord", "minimum", "minimum_at_fraction", "descent", "first_order")


@dataclass(frozen=True)
class Convexify:
    """Settings of `ConvexifiedLoss`; used where the recipe's `dlc` is "energy" or "label". A head adds how far a ray
    reaches."""

    rho: float = 5.0
    mu: float = 0.5
    samples: int = 4
    both_signs: bool = True
    shortest: float = 1.0  # each ray times U(shortest, 1)
    fractions: tuple[float, ...] = (0.1, 0.9)  # drawn between two, or fixed where there is one
    terms: tuple[str, ...] = ("chord",)
    aggregate: Literal["mean", "sum", "max"] = "mean"
    task_weight: float = 0.0  # of the objective's own value at the truth
    learn_mu: bool = False  # then `mu` is the logarithm that it begins with
    learn_fraction: bool = False  # then the fraction is the sigmoid of a parameter that begins with 0.3

    def __post_init__(self) -> None:
        at_least("convexify", self, rho=0, mu=0, task_weight=0, shortest=0, samples=1)
        if self.shortest > 1:
            raise InputError("convexify.shortest", str(self.shortest), "a share up to 1")
        if set(self.terms) - {*TERMS} or not self.terms:
            raise InputError("convexify.terms", str(list(self.terms)), f"some of {', '.join(TERMS)}")
        ordered = 1 <= len(self.fractions) <= 2 and 0 < self.fractions[0] <= self.fractions[-1] < 1
        if not ordered:
            raise InputError("convexify.fractions", str(list(self.fractions)), "one or two rising numbers in (0, 1)")


@dataclass(frozen=True)
class Validation:
    """Held-out data are looked at every so many steps, and the best weights are kept. A head adds which data."""

    every: int = 250

    def __post_init__(self) -> None:
        at_least("validation", self, every=1)


TASKS = {
    "registration": "dlc_reg._registration_training",
    "images": "dlc_reg._images_training",
    "sequences": "dlc_reg._sequences_training",
}
"""The module of each task, whose `TASK` tells the loop of training what it has to know."""


class Task(typing.Protocol):
    """What a head tells the loop of training. Its network and data are its own business."""

    recipe: type[Any]  # the class of its recipes
    figures: tuple[str, ...]  # the names of what `validate` finds

    def load(self, path: Path, recipe: Any, cache: Path, progress: bool) -> Any:
        """The data of a prepared file, with a `checksum` and a length; `cache` is a folder for slow answers."""

    def network(self, recipe: Any) -> nn.Module:
        """The recipe's architecture with fresh weights."""

    def losses(self, network: Any, recipe: Any) -> Losses:
        """The terms of the loss."""

    def sets(self, recipe: Any, data: Any) -> tuple[Dataset[Any], Any]:
        """Items to train on, item i of all steps determined by the recipe's seed and i, and those held out."""

    def workers(self, recipe: Any) -> int:
        """Processes that make items."""

    def collate(self, items: Sequence[Any]) -> Any:
        """A batch of items, which goes to a device by `to`."""

    def validate(self, network: Any, held_out: Any, recipe: Any, device: Any) -> dict[str, float]:
        """Figures of the network, in eval(), on what was held out."""

    def rank(self, figures: dict[str, float]) -> tuple[float, ...]:
        """More is better."""

    def save(self, path: Path, network: Any, card: dict[str, Any]) -> None:
        """Writes a file of weights."""


@dataclass(frozen=True)
class Recipe:
    """A training run. `dlc` is the one flag for Deep Loss Convexification: of the energy, of the label, or none.

    A head adds its data and its loss.
    """

    task: str = "registration"
    name: str = "unnamed"
    architecture: str = ""
    seed: int = 0
    dlc: Literal["none", "energy", "label"] = "none"
    budget: str = ""  # for people: what a run takes, and on what
    network: dict[str, Any] = field(default_factory=dict)  # arguments of the architecture
    optimizer: Optimizer = field(default_factory=Optimizer)
    convexify: Convexify = field(default_factory=Convexify)
    validation: Validation = field(default_factory=Validation)

    def __post_init__(self) -> None:
        at_least("recipe", self, seed=0)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain types; `make_recipe` gives the recipe back."""
        return dataclasses.asdict(self)


def load_recipe(path: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Reads a TOML file; `settings` are "table.key=value", the value in TOML's notation, and come last."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError("recipe", f"'{path}' ({error.strerror})", "a TOML file") from None
    except UnicodeDecodeError as error:
        raise InputError("recipe", f"'{path}' ({error})", "a TOML file in UTF-8") from None
    table = _parse(text, "recipe", f"'{path}'")
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise InputError("--set", repr(setting), "table.key=value")
        _put(table, key.strip().split("."), _value(value.strip()), setting)
    return make_recipe(table)


def make_recipe(table: Mapping[str, Any]) -> Recipe:
    """A recipe from nested mappings, of the class that its task has."""
    task = table.get("task", "registration")
    if not isinstance(task, str) or task not in TASKS:
        raise InputError("task", repr(task), f"one of {', '.join(TASKS)}")
    recipe: Recipe = _build(_task(task).recipe, table, "")
    return recipe


def task_of(recipe: Recipe) -> Task:
    """What the loop has to know of the recipe's head."""
    return _task(recipe.task)


def _task(name: str) -> Task:
    task: Task = importlib.import_module(TASKS[name]).TASK
    return task


def _parse(text: str, argument: str, given: str) -> dict[str, Any]:
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, a number of too many digits, too many brackets
        raise InputError(argument, f"{given} ({error})", "valid TOML") from None


def _value(text: str) -> Any:
    """A TOML value; what is none is taken as a word."""
    try:
        return _parse(f"value = {text}", "--set", repr(text))["value"]
    except InputError:
        return text


def _put(table: dict[str, Any], keys: list[str], value: Any, setting: str) -> None:
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise InputError("--set", repr(setting), f"a table called {key!r}, which is a value")
    table[keys[-1]] = value


def _build(kind: type[Any], table: Any, where: str) -> Any:
    if not isinstance(table, Mapping):
        raise InputError(where.rstrip("."), repr(table), "a table")
    hints = typing.get_type_hints(kind)
    names = [f.name for f in fields(kind)]
    for key in table:
        if key not in names:
            raise InputError(f"{where}{key}", "a key that no recipe has", f"one of {', '.join(names)}")
    return kind(**{key: _typed(hints[key], value, f"{where}{key}") for key, value in table.items()})


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as the field wants it."""
    if is_dataclass(hint):
        return _build(hint, value, f"{where}.")  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise InputError(where, repr(value), f"one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(where, repr(value), "a list")
        return tuple(_typed(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    kind = origin or hint
    if isinstance(value, int) and abs(value) >= 1 << 63:  # TOML has 64 bits, and a float has no room for all
        raise InputError(where, "an integer of more than 64 bits", f"a {kind.__name__}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind in (int, float) and isinstance(value, bool)):
        raise InputError(where, f"{value!r}, a {type(value).__name__}", f"a {kind.__name__}")
    return value
