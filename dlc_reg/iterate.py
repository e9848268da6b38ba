"""The one loop: an objective, a way to update a prediction, and when to stop.

    omega_{k+1} = update.step(objective, omega_k, data)

Everything that varies is an object argument: the objective says what is good, the update rule how to move, the
termination when to stop. What happened is data: a record an iteration, and a status whose value is a sentence.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from dlc_reg.errors import InputError

Record = dict[str, Any]
"""What one iteration says of the prediction it reached: `value`, () or (B,), and more; a `status` ends the loop."""


class Status(str, enum.Enum):
    """How an iteration ended; the value is the sentence for people."""

    NOT_STARTED = "nothing was iterated"
    CONVERGED = "converged: further steps would not change the answer"
    MAX_ITERATIONS = "stopped at the largest number of iterations allowed, before it settled"
    NO_CORRESPONDENCES = "no point of the source has a neighbour in the target within the distance allowed"
    SINGULAR = "the geometry leaves a direction of motion free, so that no step is determined along it"
    STOPPED = "stopped by the callback"
    OUT_OF_TIME = "stopped when the time allowed was over, before it settled"
    DIVERGED = "diverged: the prediction or its value is no longer finite"

    def __str__(self) -> str:
        return self.value

    @property
    def failed(self) -> bool:
        """Whether the step that reported it must not be taken."""
        return self in (Status.NO_CORRESPONDENCES, Status.SINGULAR, Status.DIVERGED)


class Objective(Protocol):
    """What is minimised over the prediction omega."""

    def value(self, omega: Tensor, data: Any) -> Tensor:
        """The objective at omega: a scalar, or (B,) for a batch of predictions."""
        ...


class UpdateRule(Protocol):
    """How a prediction moves. The state is the rule's own: what it knows at omega (a linearisation, a damping)."""

    def init(self, objective: Any, omega: Tensor, data: Any) -> tuple[Any, Record]:
        """The state and the record at the start."""
        ...

    def step(self, objective: Any, omega: Tensor, data: Any, state: Any) -> tuple[Tensor, Any, Record]:
        """The next prediction, with the state and the record at it.

        A `Status` under the record's key "status" ends the loop; if it is a failure, the step is not taken.
        """
        ...


Criterion = Callable[[Record, Record], bool]
"""Asked with the record before and the present one: is it over?"""


@dataclass(frozen=True)
class Settled:
    """Holds when every named entry of the record changed by less than its tolerance since the record before.

    `Settled({"fitness": 1e-6, "inlier_rmse": 1e-6})` is Open3D's ICPConvergenceCriteria, whose "relative" tolerances
    are in fact absolute. With `relative`, a tolerance is a fraction of the entry's own size.
    """

    tolerances: dict[str, float]
    relative: bool = False

    def __call__(self, previous: Record, record: Record) -> bool:
        return all(self._small(previous[key], record[key], t) for key, t in self.tolerances.items())

    def _small(self, before: Any, after: Any, tolerance: float) -> bool:
        if not isinstance(before, Tensor):  # a tensor of one number costs as much as a small cloud's whole search
            change = abs(after - before)
            return bool(change <= tolerance * max(abs(before), abs(after)) if self.relative else change < tolerance)
        change = (after - before).abs()
        if self.relative:
            return bool((change <= tolerance * torch.maximum(before.abs(), after.abs())).all())
        return bool((change < tolerance).all())


@dataclass(frozen=True)
class SmallStep:
    """Holds when the record's "step_norm", the length of the step as its update rule has it, is below the bound."""

    bound: float

    def __call__(self, previous: Record, record: Record) -> bool:
        return bool((torch.as_tensor(record.get("step_norm", torch.inf)) < self.bound).all())


@dataclass(frozen=True)
class AnyOf:
    """Holds when one of the criteria does."""

    criteria: tuple[Criterion, ...]

    def __call__(self, previous: Record, record: Record) -> bool:
        return any(criterion(previous, record) for criterion in self.criteria)


@dataclass(frozen=True)
class Termination:
    """At most `max_iterations` steps; fewer when the criterion `converged` holds (None: every step is taken)."""

    max_iterations: int = 30
    converged: Criterion | None = AnyOf((Settled({"value": 1e-9}, relative=True), SmallStep(1e-10)))

    def __post_init__(self) -> None:
        if self.max_iterations < 0:
            raise InputError("max_iterations", str(self.max_iterations), "a number of steps, 0 or more")


@dataclass(frozen=True)
class Solution:
    """Where an iteration ended. `history[k]` describes the prediction after k steps, `history[0]` the start.

    `omega` and `value` belong to the last step that was taken: a step whose record reports a failure is in the history,
    but omega stays where it was before it.
    """

    omega: Tensor
    value: Tensor
    status: Status
    iterations: int
    history: list[Record]


def iterate(
    objective: Objective,
    update: UpdateRule,
    omega: Tensor,
    data: Any,
    *,
    termination: Termination | None = None,
    callback: Callable[[Record], bool | None] | None = None,
    differentiate: Literal["none", "unroll", "one_step"] = "none",
) -> Solution:
    """Moves `omega` by `update` until `termination` or the `callback` (called with each record; True stops) says so.

    `omega`: a prediction, or a batch of them (B, ...), which then stops when all have settled. `differentiate` says how
    gradients of the solution are had: "none", not at all; "unroll", through every step; "one_step", through one more
    step taken at the solution (Bolte, Pauwels and Vaiter, NeurIPS 2023), with the memory of a single step and exact as
    far as a step forgets where it started (Newton's does altogether).
    """
    if differentiate not in ("none", "unroll", "one_step"):
        raise InputError("differentiate", repr(differentiate), "'none', 'unroll' or 'one_step'")
    with nullcontext() if differentiate == "unroll" else torch.no_grad():
        solution = _loop(objective, update, omega, data, termination or Termination(), callback)
    return _one_step(solution, objective, update, data) if differentiate == "one_step" else solution


def _loop(
    objective: Objective,
    update: UpdateRule,
    omega: Tensor,
    data: Any,
    termination: Termination,
    callback: Callable[[Record], bool | None] | None,
) -> Solution:
    state, record = update.init(objective, omega, data)
    value, history = record["value"], [_plain(record, 0)]
    status = _status(omega, record)
    if status is None and callback is not None and callback(history[0]):
        status = Status.STOPPED
    while status is None and len(history) <= termination.max_iterations:
        candidate, state, record = update.step(objective, omega, data, state)
        history.append(_plain(record, len(history)))
        status = _status(candidate, record)
        if status is None or not status.failed:
            omega, value = candidate, record["value"]
        if status is None and termination.converged is not None and termination.converged(*history[-2:]):
            status = Status.CONVERGED
        if callback is not None and callback(history[-1]) and status is None:
            status = Status.STOPPED
    return Solution(omega, torch.as_tensor(value), status or Status.MAX_ITERATIONS, len(history) - 1, history)


def _one_step(solution: Solution, objective: Objective, update: UpdateRule, data: Any) -> Solution:
    if solution.status.failed:
        return solution
    state, _ = update.init(objective, solution.omega, data)
    omega, _, record = update.step(objective, solution.omega, data, state)
    status = _status(omega, record)
    if status is not None and status.failed:
        return solution
    return Solution(omega, torch.as_tensor(record["value"]), solution.status, solution.iterations, solution.history)


def _status(omega: Tensor, record: Record) -> Status | None:
    """What the record reports; `DIVERGED` for what is not finite; None to go on."""
    if "status" in record:
        return Status(record["status"])
    finite = _finite(omega) and _finite(record["value"])
    return None if finite else Status.DIVERGED


def _finite(value: Any) -> bool:
    return bool(torch.isfinite(value).all()) if isinstance(value, Tensor) else math.isfinite(value)


def _plain(record: Record, iteration: int) -> Record:
    """The record without graphs, scalars as Python numbers, numbered."""
    entries = {k: v.detach() if isinstance(v, Tensor) else v for k, v in record.items()}
    plain = {k: v.item() if isinstance(v, Tensor) and v.ndim == 0 else v for k, v in entries.items()}
    return {"iteration": iteration, **plain}
