"""Deep Loss Convexification: training that makes an objective star-convex about the truth, and how far it is from it.

Along a ray `omega(lam) = retract(omega*, lam xi)`, lam in [0, 1], from the true prediction `omega* = omega(0)`:

    chord                [ l(omega(lam)) - (1 - lam) l(omega*) - lam l(omega(1)) + mu/2 lam (1 - lam) |xi|^2 ]+
    minimum              [ l(omega*) - l(omega(1)) + mu/2 |xi|^2 ]+
    minimum_at_fraction  [ l(omega*) - l(omega(lam)) + mu/2 |xi|^2 ]+       (instead, in PRISE's two-term form)
    descent              [ l(omega*) - l(omega(lam)) ]+                     (the authors' optional third term)
    first_order          [ l(omega(1)) - l(omega*) + mu/2 |xi|^2 - d/dlam l(omega(lam)) at lam = 1 ]+

An objective(omega, data) takes predictions `(*lead, B.., *shape)`, B.. the batch of the data, and returns
`(*lead, B..)`: all rays are one call. What a prediction is, and what the data are, is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from dlc_reg._rays import (
    Ambient,
    Ball,
    Box,
    Gaussian,
    Iterates,
    Learned,
    Multiplicative,
    Neighbourhood,
    Sampler,
    Scaled,
    SoftmaxNoise,
    Star,
    WorstOf,
    check_number,
    check_radius,
)
from dlc_reg._star_convexity import (
    Landscape,
    basin_of,
    basin_radius,
    call,
    full_precision,
    landscape,
    not_finite,
    slope_forward,
    slope_reverse,
    star_violation,
    violated_ends,
    violation_along,
    violation_curve,
    wrong_shape,
)
from dlc_reg.errors import InputError
from dlc_reg.manifold import Manifold

__all__ = [
    "Ambient",
    "Ball",
    "Box",
    "Convexified",
    "ConvexifiedLoss",
    "Gaussian",
    "Iterates",
    "Landscape",
    "Learned",
    "Multiplicative",
    "Neighbourhood",
    "Sampler",
    "Scaled",
    "SoftmaxNoise",
    "Star",
    "WorstOf",
    "basin_of",
    "basin_radius",
    "landscape",
    "star_violation",
    "violated_ends",
    "violation_curve",
]


UNIFORM = Ball()


class Convexified(NamedTuple):
    """`total`: task_weight times the truth, rho times the sum of the hinges. `terms`: "truth", the mean of `l(omega*)`;
    each hinge by name, aggregated; "violation", the share of rays on which a hinge is above rounding."""

    total: Tensor
    terms: dict[str, Tensor]


class ConvexifiedLoss(nn.Module):
    """`task_weight` times the mean `l(omega*)` plus `rho` times the hinges along rays from `omega*`, aggregated.

    Args:
        objective: A callable, or an object with `value`. It is not registered: the module's parameters are those of
            `Learned` settings alone.
        manifold: Where predictions live; rays are straight in its tangent space at the truth.
        radius: How far rays reach: a number, or one a coordinate of the tangent space (0: that one is not moved).
        samples, both_signs: Rays drawn for each element of the batch; with both signs each has its opposite, too.
        mu: How strongly convex: a number or `Learned`.
        rho, task_weight: What the hinges, and the loss at the truth, weigh.
        sampler: How rays are drawn within the radius.
        aggregate: Over rays, after the mean over the batch: "mean", "sum", or "max", the worst one.
        terms: Which hinges, by their names at the head of this module.
        fraction: lam: a number, an interval to draw from, or `Learned`.
        norm: |xi| is that of the tangent vector, or that of xi / radius, which frees mu from units.
        derivative: "reverse" or "forward" differentiation along the ray, for the term "first_order".
        checkpoint: Recompute the objective in the backward pass instead of keeping what it computed.
        generator: Of the rays; None: torch's own.
        check_finite: Raise where the objective is NaN or infinite. If not asked to, or compiled, the total is NaN then.

    Raises:
        InputError: An impossible setting.
    """

    objective: Any

    def __init__(
        self,
        objective: Any,
        manifold: Manifold,
        *,
        radius: float | Sequence[float] | Tensor,
        samples: int = 8,
        mu: float | Learned = 0.0,
        rho: float = 1.0,
        sampler: Sampler = UNIFORM,
        aggregate: Literal["mean", "sum", "max"] = "mean",
        terms: Sequence[str] = ("minimum", "chord"),
        fraction: float | tuple[float, float] | Learned = (0.1, 0.9),
        both_signs: bool = False,
        norm: Literal["tangent", "radius"] = "tangent",
        task_weight: float = 1.0,
        derivative: Literal["reverse", "forward"] = "reverse",
        checkpoint: bool = False,
        generator: torch.Generator | None = None,
        check_finite: bool = True,
    ) -> None:
        super().__init__()
        _one_of("aggregate", aggregate, "mean", "sum", "max")
        _one_of("norm", norm, "tangent", "radius")
        _one_of("derivative", derivative, "reverse", "forward")
        if isinstance(terms, str) or not terms:
            raise InputError("terms", repr(terms), "a tuple of at least one name")
        for term in terms:
            _one_of("terms", term, "chord", "minimum", "minimum_at_fraction", "descent", "first_order")
        if not callable(getattr(objective, "value", objective)):
            raise InputError("objective", type(objective).__name__, "a callable (omega, data), or an object with value")
        if not isinstance(samples, int) or samples < 1:
            raise InputError("samples", repr(samples), "a whole number, 1 or more")
        check_number("rho", rho, 0)
        check_number("task_weight", task_weight, 0)
        if checkpoint and derivative == "forward" and "first_order" in terms:
            raise InputError("derivative", "'forward' with checkpoint", "'reverse': recomputing has no forward mode")
        object.__setattr__(self, "objective", objective)
        self.manifold, self.sampler, self.generator = manifold, sampler, generator
        self.samples, self.rho, self.aggregate, self.terms = samples, rho, aggregate, tuple(dict.fromkeys(terms))
        self.both_signs, self.norm, self.task_weight, self.derivative = both_signs, norm, task_weight, derivative
        self.checkpoint, self.check_finite = checkpoint, check_finite
        self._fraction, self.fraction_logit = _setting("fraction", fraction, 1.0)
        self._mu, self.mu_log = _setting("mu", mu, float("inf"))
        self.radius = check_radius(radius, manifold)

    @property
    def mu(self) -> Tensor | float:
        return self._mu[0] if self.mu_log is None else self.mu_log.exp()

    @property
    def fraction(self) -> Tensor | tuple[float, float]:
        """lam where it is learned, else the interval that it is drawn from."""
        return self._fraction if self.fraction_logit is None else self.fraction_logit.sigmoid()

    @property
    def cost(self) -> int:
        """Evaluations of the objective in a step beyond the one at the truth, for each element of the batch.

        A derivative along the ray counts as two; what `WorstOf` tries and what a checkpoint recomputes as one each.
        """
        rays = self.samples * (1 + self.both_signs)
        points = ("inner" in self._places) + ("end" in self._places)
        derivatives = 2 * ("first_order" in self.terms)
        recomputed = self.checkpoint * (1 + rays * points)
        return (rays + self.samples * _tries(self.sampler)) * (points + derivatives) + recomputed

    @property
    def _places(self) -> list[str]:
        inner, end = {"chord", "descent", "minimum_at_fraction"}, {"chord", "minimum", "first_order"}
        return ["inner"] * bool(inner & {*self.terms}) + ["end"] * bool(end & {*self.terms})

    def extra_repr(self) -> str:
        rays = f"{self.samples}{' x 2' * self.both_signs} rays of {self.sampler}, radius {self.radius}"
        cost = f"costs {self.cost} evaluations of the objective a step beyond the one at the truth"
        return f"{' + '.join(self.terms)}, {self.aggregate}, rho={self.rho}\n{rays}\n{cost}"

    def forward(
        self,
        omega_star: Tensor,
        data: Any,
        *,
        weights: Tensor | None = None,
        star: Star | None = None,
        sampler: Sampler | None = None,
        generator: torch.Generator | None = None,
        radius: float | Sequence[float] | Tensor | None = None,
    ) -> Convexified:
        """The loss of truths omega_star (B.., *shape); `data` goes to the objective as it is.

        `weights` (B..): of the elements in every mean; a mask leaves out those where it is False. Their values may be
        NaN, and the loss is finite; but the gradient is not unless what the objective computes for them has finite
        derivatives (0 * NaN is NaN): give such elements data that are finite, zeros say.
        `star`: rays drawn before, in place of fresh ones. `sampler`, `generator`, `radius`: for this call.
        """
        if star is None:
            star = self.draw(omega_star, data, sampler=sampler, generator=generator, radius=radius)
        elif star.center.shape != omega_star.shape:
            raise InputError("star", f"a center {tuple(star.center.shape)}", f"the truths {tuple(omega_star.shape)}")
        if weights is not None:
            _check_weights(weights, star.tangents.shape[1:-1])
        values = self._evaluate(star, data, weights)
        if self.check_finite and not torch.compiler.is_compiling() and not values.finite.all():
            raise not_finite(values.finite)
        hinges = self._hinges(values, star, self._reach(radius))
        per_ray = {name: _mean(hinge, values.truth.ndim, weights) for name, hinge in hinges.items()}
        share = _aggregation(self.aggregate, torch.stack([*per_ray.values()]).sum(0))
        terms = {name: (share * hinge).sum() for name, hinge in per_ray.items()}
        truth = _mean(values.truth, values.truth.ndim, weights)
        total = self.task_weight * truth + self.rho * torch.stack([*terms.values()]).sum()
        total = total + torch.where(values.finite.all(), 0.0, torch.nan).to(total.dtype)
        broken = torch.stack([*hinges.values()]).detach().amax(0) > values.rounding
        violation = _mean(broken.to(total.dtype), values.truth.ndim, weights).mean()
        return Convexified(total, {"truth": truth, **terms, "violation": violation})

    def _reach(self, radius: float | Sequence[float] | Tensor | None) -> tuple[float, ...]:
        return self.radius if radius is None else check_radius(radius, self.manifold)

    def draw(
        self,
        omega_star: Tensor,
        data: Any = None,
        *,
        sampler: Sampler | None = None,
        generator: torch.Generator | None = None,
        radius: float | Sequence[float] | Tensor | None = None,
    ) -> Star:
        """Rays for `forward(star=...)`; `data` is only for samplers that look for bad ones."""
        shape = tuple(self.manifold.shape)
        if omega_star.shape[omega_star.ndim - len(shape) :] != shape or not omega_star.is_floating_point():
            given = f"{omega_star.dtype} of shape {tuple(omega_star.shape)}"
            raise InputError("omega_star", given, f"floating-point (B.., {', '.join(map(str, shape))})")
        reach = self._reach(radius)
        place = (omega_star.detach(), self.manifold, omega_star.new_tensor(reach), generator or self.generator)
        near = Neighbourhood(*place)
        fractions = self._fractions(near)
        device, half = omega_star.device.type, torch.is_autocast_enabled(omega_star.device.type)

        def score(tangents: Tensor) -> Tensor:
            repeated = fractions.detach().repeat(len(tangents) // self.samples, *[1] * len(near.batch))
            trial = Star(near.center, tangents, repeated)
            with torch.autocast(device, torch.get_autocast_dtype(device), enabled=half):
                return torch.stack([*self._hinges(self._evaluate(trial, data, None), trial, reach).values()]).sum(0)

        with torch.no_grad(), torch.autocast(device, enabled=False):
            tangents = (sampler or self.sampler)(self.samples, Neighbourhood(*place, score))
        expected = (self.samples, *near.batch, self.manifold.dof)
        if tangents.shape != expected:
            raise InputError("sampler", f"tangents of shape {tuple(tangents.shape)}", f"{expected}")
        if self.both_signs:
            tangents, fractions = torch.cat([tangents, -tangents]), torch.cat([fractions, fractions])
        return Star(omega_star, tangents, fractions)

    def _fractions(self, near: Neighbourhood) -> Tensor:
        """lam (samples, B..)."""
        low, high = self._fraction
        if self.fraction_logit is not None:
            fractions = self.fraction_logit.sigmoid().to(near.center)
        elif low == high:
            fractions = near.center.new_tensor(low)
        else:
            fractions = low + (high - low) * near.uniform(self.samples)
        return fractions.expand(self.samples, *near.batch)

    def _evaluate(self, star: Star, data: Any, weights: Tensor | None) -> _Values:
        """The objective at the truth and on all rays, in one call."""
        count = len(star.tangents)

        def along(end: Tensor) -> Tensor:
            with torch.autocast(end.device.type, enabled=False):
                where = {"inner": star.fractions, "end": end}
                steps = torch.cat([where[place][..., None] * star.tangents for place in self._places])
                omega = torch.cat([star.center[None], self.manifold.retract(star.center, steps)])
            if self.checkpoint:
                values = recompute(call, self.objective, omega, data, use_reentrant=False)
            else:
                values = call(self.objective, omega, data)
            expected = omega.shape[: omega.ndim - len(self.manifold.shape)]
            if not isinstance(values, Tensor) or values.shape != expected:
                raise wrong_shape(values, expected)
            return values

        end = torch.ones_like(star.tangents[..., 0])
        slope = torch.zeros_like(end)
        if "first_order" in self.terms:
            values, slope = (slope_reverse if self.derivative == "reverse" else slope_forward)(along, end)
        else:
            values = along(end)
        rounding = 16 * torch.finfo(values.dtype).eps
        if weights is not None:
            values, slope = torch.where(weights > 0, values, 0.0), torch.where(weights > 0, slope, 0.0)
        finite = torch.cat([torch.isfinite(values), torch.isfinite(slope)])
        values = full_precision(values)
        parts = dict(zip(self._places, torch.split(values[1:], count), strict=True))
        inner, end = parts.get("inner", values[0]), parts.get("end", values[0])
        return _Values(values[0], inner, end, slope, finite, rounding * values.detach().abs().amax(0))

    def _hinges(self, values: _Values, star: Star, radius: tuple[float, ...]) -> dict[str, Tensor]:
        """The hinges (R, B..) by name."""
        truth, inner, end, slope = values[:4]
        xi = star.tangents
        if self.norm == "radius":
            xi = xi * xi.new_tensor([1 / r if r > 0 else 0.0 for r in radius])
        radius2 = xi.square().sum(-1).to(truth.dtype)
        lam = star.fractions.to(radius2).expand_as(radius2)
        fractions = torch.stack([torch.zeros_like(lam), lam, torch.ones_like(lam)], dim=-1)
        ray = torch.stack([value.expand_as(lam) for value in (truth, inner, end)], dim=-1)
        violation, margin = violation_along(ray, fractions, radius2, self.mu), self.mu / 2 * radius2
        hinges = {
            "chord": violation[..., 1],
            "minimum": violation[..., 2],
            "minimum_at_fraction": (truth - inner + margin).relu(),
            "descent": (truth - inner).expand_as(lam).relu(),
            "first_order": (end - truth + margin - slope).relu(),
        }
        return {term: hinges[term] for term in self.terms}


class _Values(NamedTuple):
    """The objective at the truth (B..), at lam and at 1 (R, B..), d/dlam at 1; what no term asks for holds anything.

    `finite` of each value (.., B..); `rounding` (B..) is what differences of values are uncertain by.
    """

    truth: Tensor
    inner: Tensor
    end: Tensor
    slope: Tensor
    finite: Tensor
    rounding: Tensor


def _mean(values: Tensor, dimensions: int, weights: Tensor | None) -> Tensor:
    """The mean, weighted or not, over the last dimensions: the batch's."""
    batch = tuple(range(-dimensions, 0))
    if not batch:
        return values
    if weights is None:
        return values.mean(batch)
    weights = weights.to(values).expand(values.shape[-dimensions:])
    return (values * weights).sum(batch) / weights.sum()


def _aggregation(aggregate: str, per_ray: Tensor) -> Tensor:
    """What each ray (R,) counts; all the weight to the worst for "max"."""
    if aggregate == "max":
        return (torch.arange(len(per_ray), device=per_ray.device) == per_ray.argmax()).to(per_ray.dtype)
    return torch.full_like(per_ray, 1.0 if aggregate == "sum" else 1 / len(per_ray), requires_grad=False)


def _tries(sampler: Any) -> int:
    """Rays that are tried for one that is kept; 0 without `WorstOf`."""
    inside = _tries(sampler.sampler) if hasattr(sampler, "sampler") else 0
    return sampler.k * (1 + inside) if isinstance(sampler, WorstOf) else inside


def _setting(name: str, value: Any, highest: float) -> tuple[tuple[float, float], nn.Parameter | None]:
    """A number or an interval as an interval, or the parameter of a learned one."""
    if isinstance(value, Learned):
        return (0.0, 0.0), nn.Parameter(torch.tensor(float(value.initial)))
    interval = name == "fraction" and isinstance(value, Sequence) and len(value) == 2
    low, high = value if interval else (value, value)
    numbers = all(isinstance(x, int | float) for x in (low, high))
    if not numbers or not 0 <= low <= high <= highest or low == float("inf"):
        kinds = ("a number in [0, 1], an interval (low, high) of them, or Learned", "a number, 0 or more, or Learned")
        raise InputError(name, repr(value), kinds[name == "mu"])
    return (float(low), float(high)), None


def _check_weights(weights: Tensor, batch: tuple[int, ...]) -> None:
    if weights.shape != batch:
        raise InputError("weights", f"shape {tuple(weights.shape)}", f"{tuple(batch)}, one an element of the batch")
    if not torch.compiler.is_compiling() and not bool((weights >= 0).all() & (weights > 0).any()):
        raise InputError("weights", "negative ones, NaN, or none above 0", "weights of 0 or more, or a mask")


def _one_of(name: str, given: Any, *choices: str) -> None:
    if given not in choices:
        raise InputError(name, repr(given), f"one of {', '.join(map(repr, choices))}")
