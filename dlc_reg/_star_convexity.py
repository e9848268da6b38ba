"""What star-convexity says of an objective's values along rays, and how far from a truth it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlc_reg._rays import Neighbourhood, check_number, check_radius
from dlc_reg.errors import InputError
from dlc_reg.manifold import Manifold


def star_violation(values: Any, fractions: Any, radius2: Any, mu: Any = 0.0) -> Tensor:
    """By how much an objective fails to be mu-strongly star-convex along rays: 0 where the condition holds.

    `values` (..., S) at `fractions` (S,) or (..., S) of a ray, the first 0 (the truth), the last 1; `radius2` (...) is
    |xi|^2. Returns (..., S): the chord's violation, and at the last the minimum's, where the chord says nothing.
    """
    values, fractions = torch.as_tensor(values), torch.as_tensor(fractions)
    if values.ndim < 1 or values.shape[-1] < 2 or fractions.shape[-1:] != values.shape[-1:]:
        given = f"values {tuple(values.shape)}, fractions {tuple(fractions.shape)}"
        raise InputError("fractions", given, "values (..., S) and fractions (S,) or (..., S), S at least 2")
    if not bool((fractions[..., 0] == 0).all() & (fractions[..., -1] == 1).all()):
        raise InputError("fractions", str(fractions.tolist()), "the first 0 and the last 1")
    return violation_along(values, fractions.to(values.device), torch.as_tensor(radius2, device=values.device), mu)


def violation_along(values: Tensor, fractions: Tensor, radius2: Tensor, mu: Any) -> Tensor:
    values = full_precision(values)
    fractions, half = fractions.to(values.dtype), mu / 2 * radius2.to(values.dtype)[..., None]
    rise = values - values[..., :1]  # so that a constant objective gives 0 without rounding
    chord = rise - fractions * rise[..., -1:] + half * fractions * (1 - fractions)
    return torch.cat([chord[..., :-1], half.expand_as(rise[..., :1]) - rise[..., -1:]], dim=-1).relu()


def violation_curve(
    objective: Any,
    manifold: Manifold,
    omega_star: Tensor,
    data: Any,
    *,
    radius: float,
    scale: Sequence[float] | Tensor | None = None,
    directions: int = 64,
    steps: int = 32,
    mu: float = 0.0,
    generator: torch.Generator | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Lengths r (steps,) up to `radius`, and the share (steps, B..) of rays of each length that violate the conditions.

    Rays xi = r * scale * direction, the directions uniform on the unit sphere of the coordinates whose scale is not 0;
    |xi|^2 is r^2. A ray is judged at the lengths before it. `chunk`: points evaluated in one call.
    """
    check_number("radius", radius, 0)
    for name, number in {"directions": directions, "steps": steps, "chunk": chunk}.items():
        check_number(name, number, 1)
    scales = omega_star.new_tensor(check_radius(1.0 if scale is None else scale, manifold))
    near = Neighbourhood(omega_star, manifold, scales, generator)
    unit = near.normal(directions, manifold.dof) * (scales > 0)
    unit = scales * unit / unit.norm(dim=-1, keepdim=True)
    lengths = torch.linspace(0, radius, steps + 1, dtype=omega_star.dtype, device=omega_star.device)
    rays = lengths.reshape(-1, *[1] * unit.ndim) * unit
    values = sample(objective, manifold, omega_star, rays, data, chunk).movedim(0, -1)
    shares = violated_ends(values, lengths, mu)[..., 1:].to(values.dtype).mean(0)
    return lengths[1:], shares.movedim(-1, 0)


def violated_ends(values: Tensor, lengths: Tensor, mu: Any = 0.0) -> Tensor:
    """Of values (..., S) along rays at lengths (S,), the first 0: whether the ray that ends there violates, (..., S).

    Each is judged at the lengths before it; what rounding could make is no violation.
    """
    values = full_precision(values)
    rounding = 16 * torch.finfo(values.dtype).eps * values.abs().amax(-1)
    violated = torch.zeros_like(values, dtype=torch.bool)
    for k in range(1, len(lengths)):
        violation = violation_along(values[..., : k + 1], lengths[: k + 1] / lengths[k], lengths[k].square(), mu)
        violated[..., k] = violation.amax(-1) > rounding
    return violated


def basin_radius(
    objective: Any,
    manifold: Manifold,
    omega_star: Tensor,
    data: Any,
    *,
    radius: float,
    share: float = 0.05,
    shortest: float = 0.0,
    pooled: bool = True,
    **options: Any,
) -> Tensor:
    """The largest r <= radius at which, and at every length before it, fewer than `share` of the rays violate.

    (Far ends can be so high that a chord clears every bad optimum: one length alone would prove little.) Lengths below
    `shortest` are not asked, since a learned minimum never lies exactly at the truth.
    () over all of the batch, or (B..) each alone if not `pooled`; 0 where there is none. Options and the meaning of r:
    `violation_curve`, whose `steps` is the resolution.
    """
    lengths, shares = violation_curve(objective, manifold, omega_star, data, radius=radius, **options)
    if pooled:
        shares = shares.reshape(len(shares), -1).mean(1)
    return basin_of(lengths, shares, share, shortest)


def basin_of(lengths: Tensor, shares: Tensor, share: float = 0.05, shortest: float = 0.0) -> Tensor:
    """`basin_radius` of a `violation_curve`: lengths (S,) and shares (S, B..) that violate there; (B..)."""
    lengths = lengths.reshape(-1, *[1] * (shares.ndim - 1))
    near = lengths < shortest
    good = ((shares < share) | near).long().cumprod(0) * ~near
    return (lengths * good).amax(0)


class Landscape(NamedTuple):
    """`values` (D, S, B..) at `offsets` (S,) along D rays, with the `violation` there; or (S, S, B..) on a plane."""

    offsets: Tensor
    values: Tensor
    violation: Tensor | None


def landscape(
    objective: Any,
    manifold: Manifold,
    omega_star: Tensor,
    data: Any,
    *,
    directions: Tensor,
    extent: float = 1.0,
    steps: int = 41,
    plane: bool = False,
    mu: float = 0.0,
    chunk: int = 64,
) -> Landscape:
    """What there is to draw: the objective along directions (D, dof) or (D, B.., dof) from the truth, on the CPU.

    Rays run from 0 to extent times a direction, at `steps` offsets. With `plane`, two directions span it, with offsets
    from -extent to extent: `values[i, j]` is at offsets[i] * directions[0] + offsets[j] * directions[1].
    """
    if directions.shape[-1] != manifold.dof or directions.ndim < 2 or (plane and len(directions) != 2):
        wanted = f"({'2' if plane else 'D'}, {manifold.dof}), or with the batch between"
        raise InputError("directions", f"shape {tuple(directions.shape)}", wanted)
    check_number("steps", steps, 2)
    grid = torch.linspace(-extent if plane else 0, extent, steps, dtype=omega_star.dtype, device=omega_star.device)
    batch = omega_star.shape[: omega_star.ndim - len(manifold.shape)]
    axes = directions.to(omega_star)
    axes = axes.reshape(len(axes), *(axes.shape[1:-1] or [1] * len(batch)), manifold.dof).expand(-1, *batch, -1)
    rays = grid.reshape(-1, *[1] * axes.ndim) * axes  # (S, D, B.., dof)
    if plane:
        values = sample(objective, manifold, omega_star, rays[:, None, 0] + rays[None, :, 1], data, chunk)
        return Landscape(grid.cpu(), values.cpu(), None)
    values = sample(objective, manifold, omega_star, rays, data, chunk).movedim(0, -1)
    violation = violation_along(values, grid / extent, (extent * axes).square().sum(-1), mu)
    return Landscape(grid.cpu(), values.movedim(-1, 1).cpu(), violation.movedim(-1, 1).cpu())


@torch.no_grad()
def sample(objective: Any, manifold: Manifold, center: Tensor, xi: Tensor, data: Any, chunk: int) -> Tensor:
    """The objective (I, J, B..) along tangents (I, J, B.., dof), in calls of `chunk` predictions each."""
    rays = xi.flatten(0, 1)
    values = torch.cat([call(objective, manifold.retract(center, part), data) for part in torch.split(rays, chunk)])
    if values.shape != rays.shape[:-1]:
        raise wrong_shape(values, rays.shape[:-1])
    if not torch.isfinite(values).all():
        raise not_finite(torch.isfinite(values))
    return full_precision(values).reshape(xi.shape[:-1])


def call(objective: Any, omega: Tensor, data: Any) -> Any:
    return objective.value(omega, data) if hasattr(objective, "value") else objective(omega, data)


def slope_reverse(along: Callable[[Tensor], Tensor], end: Tensor) -> tuple[Tensor, Tensor]:
    """Values (1 + K R, B..), and the last R's derivatives by `end` (R, B..): each depends on its own."""
    wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        end = end.requires_grad_()
        values = along(end)
        if not values.requires_grad:
            raise InputError(
                "objective", "values without a gradient", "one that autograd can follow, for 'first_order'"
            )
        (slope,) = torch.autograd.grad(values[-len(end) :].sum(), end, create_graph=wanted)
    return (values, slope) if wanted else (values.detach(), slope)


def slope_forward(along: Callable[[Tensor], Tensor], end: Tensor) -> tuple[Tensor, Tensor]:
    values, slopes = torch.func.jvp(along, (end,), (torch.ones_like(end),))[:2]
    return values, slopes[-len(end) :]


def full_precision(values: Tensor) -> Tensor:
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def wrong_shape(values: Any, expected: Sequence[int]) -> InputError:
    return InputError(
        "objective", f"values of shape {tuple(getattr(values, 'shape', ()))}", f"{tuple(expected)}, one a prediction"
    )


def not_finite(finite: Tensor) -> InputError:
    """`finite`: which values are, those at the truth first."""
    bad = int((~finite).sum())
    given = f"{bad} of {finite.numel()} values NaN or infinite, {int((~finite[0]).sum())} of them at the first point"
    return InputError(
        "objective", given, "finite values on every ray: a smaller radius, or an objective that is safe there"
    )
