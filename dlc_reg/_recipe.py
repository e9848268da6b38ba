"""Recipes: everything that decides what a training run learns, as frozen data that a TOML file states in part.

A file says only what differs from the defaults; a key that no field has, a value of the wrong type and a value out of
range are `InputError`s that name it.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

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

    def __post_init__(self) -> None:
        for name in (self.protocol, *self.also):
            protocol(name)
        _at_least("data", self, points=0, workers=0, stretch=0)
        if not self.stretch < 1:
            raise InputError("data.stretch", str(self.stretch), "a number below 1")

    def make(self, name: str | None = None) -> Protocol:
        """The protocol, or another one, with this number of points."""
        chosen = protocol(name or self.protocol)
        return dataclasses.replace(chosen, points=self.points) if self.points else chosen


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
        _at_least("optimizer", self, steps=1, batch=1, rate=0, final_rate=0, warm_up=0, weight_decay=0, clip=0)


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
        _at_least("loss", self, **bounds, negatives=1, unrolled_steps=1, negative_angle_deg=0, negative_translation=0)
        if not self.temperature > 0:
            raise InputError("loss.temperature", str(self.temperature), "a number above 0")


TERMS = ("chord", "minimum", "minimum_at_fraction", "descent", "first_order")


@dataclass(frozen=True)
class Convexify:
    """Settings of `ConvexifiedLoss`; used where the recipe's `dlc` is "energy" or "label".

    A ray ends within `radius_deg` and `radius_translation` of the truth, and |xi|^2 is measured in these radii, so that
    mu has no unit. `space` "entries" moves the entries of R (by up to `radius_entries`) and t themselves, as the
    authors' demo does; |xi|^2 is then that of the entries.
    """

    rho: float = 5.0
    mu: float = 0.5
    radius_deg: float = 60.0
    radius_translation: float = 0.5
    samples: int = 4
    both_signs: bool = True
    shortest: float = 1.0  # each ray times U(shortest, 1)
    fractions: tuple[float, ...] = (0.1, 0.9)  # drawn between two, or fixed where there is one
    terms: tuple[str, ...] = ("chord",)
    aggregate: Literal["mean", "sum", "max"] = "mean"
    task_weight: float = 0.0  # of the objective's own value at the truth
    learn_mu: bool = False  # then `mu` is the logarithm that it begins with
    learn_fraction: bool = False  # then the fraction is the sigmoid of a parameter that begins with 0.3
    space: Literal["poses", "entries"] = "poses"
    radius_entries: float = 0.125

    def __post_init__(self) -> None:
        names = ("rho", "mu", "radius_translation", "radius_entries", "task_weight", "shortest")
        _at_least("convexify", self, **dict.fromkeys(names, 0), samples=1)
        if not 0 < self.radius_deg <= 180 or not self.radius_translation > 0 or self.shortest > 1:
            given = f"{self.radius_deg}, {self.radius_translation}, {self.shortest}"
            expected = "(0, 180] degrees, a length above 0 and a share up to 1"
            raise InputError("convexify.radius_deg, radius_translation, shortest", given, expected)
        if set(self.terms) - {*TERMS} or not self.terms:
            raise InputError("convexify.terms", str(list(self.terms)), f"some of {', '.join(TERMS)}")
        ordered = 1 <= len(self.fractions) <= 2 and 0 < self.fractions[0] <= self.fractions[-1] < 1
        if not ordered:
            raise InputError("convexify.fractions", str(list(self.fractions)), "one or two rising numbers in (0, 1)")


@dataclass(frozen=True)
class Validation:
    """A fixed set of pairs from the shapes' split "val", looked at every so many steps; the best weights are kept."""

    every: int = 250
    pairs: int = 100
    protocol: str = ""  # empty: the training's
    seed: int = 1_000_003
    iterations: int = 0  # steps at test time; 0: the network's own number

    def __post_init__(self) -> None:
        _at_least("validation", self, every=1, pairs=1, seed=0, iterations=0)
        if self.protocol:
            protocol(self.protocol)


@dataclass(frozen=True)
class Recipe:
    """A training run. `dlc` is the one flag for Deep Loss Convexification: of the energy, of the label, or none."""

    name: str = "unnamed"
    architecture: str = "softicp"
    seed: int = 0
    dlc: Literal["none", "energy", "label"] = "none"
    budget: str = ""  # for people: what a run takes, and on what
    network: dict[str, Any] = field(default_factory=dict)  # arguments of the architecture
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    loss: Loss = field(default_factory=Loss)
    convexify: Convexify = field(default_factory=Convexify)
    validation: Validation = field(default_factory=Validation)

    def __post_init__(self) -> None:
        _at_least("recipe", self, seed=0)
        if self.dlc == "none" and not (self.loss.contrastive or self.loss.unrolled or self.loss.matching):
            raise InputError("loss", "no term with a weight", "contrastive, unrolled, matching or dlc")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain types; `make_recipe` gives the recipe back."""
        return dataclasses.asdict(self)


def load_recipe(path: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Reads a TOML file; `settings` are "table.key=value", the value in TOML's notation, and come last."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError("recipe", f"'{path}' ({error.strerror})", "a TOML file") from None
    table = _parse(text, "recipe", f"'{path}'")
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise InputError("--set", repr(setting), "table.key=value")
        _put(table, key.strip().split("."), _value(value.strip()), setting)
    return make_recipe(table)


def make_recipe(table: Mapping[str, Any]) -> Recipe:
    """A recipe from nested mappings."""
    recipe: Recipe = _build(Recipe, table, "")
    return recipe


def _parse(text: str, argument: str, given: str) -> dict[str, Any]:
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
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
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind in (int, float) and isinstance(value, bool)):
        raise InputError(where, f"{value!r}, a {type(value).__name__}", f"a {kind.__name__}")
    return value


def _at_least(table: str, given: Any, **bounds: float) -> None:
    for name, bound in bounds.items():
        if not getattr(given, name) >= bound:  # NaN fails too
            raise InputError(f"{table}.{name}", str(getattr(given, name)), f"a number from {bound}")
