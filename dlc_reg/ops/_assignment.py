"""Soft assignment of batches of clouds under many poses at once: energy and expectation-maximisation step, natively.

No (N, M) temporaries, and nothing at all of that size where affinities are given by their factors. On a CUDA device the
energies carry gradients, on the host nothing does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlc_reg import _core
from dlc_reg.errors import InputError
from dlc_reg.ops import _cuda, _cuda_assignment, _library, _validate
from dlc_reg.ops._assignment_problem import Affinity, Problem

_FLOATS = (torch.float32, torch.float64)


def soft_assignment(
    source: Tensor,
    target: Tensor,
    affinity: Tensor | Affinity,
    poses: Tensor,
    sharpness: Tensor,
    outlier: Tensor,
    source_weight: Tensor,
    target_weight: Tensor,
    *,
    both_ways: bool = True,
    moments: bool = True,
    num_threads: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Energies of poses, and the poses after one step of expectation-maximisation.

        E = - sum_i u_i log( sum_j exp(a_ij - beta |R p_i + t - q_j|^2) + exp(o) )

    or, with `both_ways`, the mean of it and of the same with source and target exchanged. The step is the weighted
    Procrustes fit to the shares -dE/da_ij (reflections excluded); it never raises E. Where the shares sum to less than
    1e-19, as at a pose too far off, nothing is known of the pose and the step is the identity.

    Relative errors are about 1e-6 in the weights exp(..), in float32; sums are float64. Points are taken about their
    clouds' centres first, so that clouds far from the origin lose nothing.

    Args:
        source: (B, N, 3) float32 or float64 (everything but poses, beta and o is worked on in float32).
        target: (B, M, 3).
        affinity: (B, N, M), a; -1e4 or less, also -inf, where a point of the two is padding: it then weighs exactly 0.
            Or its factors, `Affinity`: slower, as products are formed anew in every call, once for up to 16 poses on
            the host and for as many as memory allows on a CUDA device.
        poses: (K, B, 4, 4), T_target_source, K of them for each pair of clouds.
        sharpness: (B,) or (), beta >= 0, in 1 / unit^2.
        outlier: (B,) or (), o. Slow where it is more than 50 below the largest affinity.
        source_weight, target_weight: (B, N) and (B, M), u and v >= 0, each summing to one over the real points.
        both_ways: whether the target explains the source, too.
        moments: whether to make the step.
        num_threads: None for all cores. The same bits for any number.

    All tensors are on one device.

    Returns:
        E (K, B) float64, and the poses after the step (K, B, 4, 4) float64, None without `moments`. On a CUDA device E
        has a gradient by every tensor (once); the step has none.

    A CUDA graph can capture it, and then checks no values.

    Raises:
        InputError: wrong shapes or dtypes, NaN or infinity, negative weights or sharpness.
    """
    p, q = (_floats(name, x, (None, None, 3)) for name, x in (("source", source), ("target", target)))
    batch, n, m = p.shape[0], p.shape[1], q.shape[1]
    if q.shape[0] != batch:
        raise InputError("target", f"shape {tuple(q.shape)}", f"shape ({batch}, M, 3), as many clouds as source")
    given = _floats("poses", poses, (None, batch, 4, 4), torch.float64)
    a = _affinity(affinity, batch, n, m)
    beta, o = _each("sharpness", sharpness, batch), _each("outlier", outlier, batch)
    u, v = _floats("source_weight", source_weight, (batch, n)), _floats("target_weight", target_weight, (batch, m))
    for name, values in (("sharpness", beta), ("source_weight", u), ("target_weight", v)):
        if not _validate.capturing(values) and bool((values < 0).any()):
            raise InputError(name, f"the number {float(values.min())}", "numbers of at least 0")
    problem = Problem(p, q, given, beta, o, u, v, *a)
    if _cuda.takes(p):
        for name, tensor in zip(problem._fields, problem, strict=True):
            if tensor is not None:
                _validate.same_device(name, tensor, "source", p)
        answer, moved = _cuda_assignment.soft_assignment(problem, bool(both_ways), bool(moments))
        _check_energy(answer, a[0])
        return answer, moved
    energy = torch.empty(given.shape[:2], dtype=torch.float64)
    after = torch.empty_like(given) if moments else None
    _core.soft_assignment(
        *problem.native(bool(both_ways), energy.data_ptr(), _cuda.address(after), _validate.threads(num_threads))
    )
    _check_energy(energy, a[0])
    return energy, after


def _affinity(affinity: object, batch: int, n: int, m: int) -> tuple[Tensor, ...]:
    """A matrix by itself, or factors, which are small enough to look at them all."""
    if not isinstance(affinity, Affinity):
        return (_floats("affinity", affinity, (batch, n, m), check=False),)
    f = _floats("affinity.source_features", affinity.source_features, (batch, n, None))
    g = _floats("affinity.target_features", affinity.target_features, (batch, m, f.shape[2]))
    r = _floats("affinity.source_bias", affinity.source_bias, (batch, n), check=False)
    c = _floats("affinity.target_bias", affinity.target_bias, (batch, m), check=False)
    for name, bias in (("affinity.source_bias", r), ("affinity.target_bias", c)):
        _check_bounded(name, bias)
    return f, g, r, c


def _check_energy(energy: Tensor, affinity: Tensor) -> None:
    """The largest input is checked by what came of it; not while a CUDA graph records."""
    if _validate.capturing(energy):
        return
    if not math.isfinite(float(energy.detach().sum())):
        _check_bounded("affinity", affinity)


def _check_bounded(argument: str, values: Tensor) -> None:
    """Finite or -inf."""
    _validate.finite(argument, values.detach().clamp(min=torch.finfo(values.dtype).min))


def _floats(
    argument: str, value: object, shape: tuple[int | None, ...], dtype: torch.dtype = torch.float32, check: bool = True
) -> Tensor:
    """A contiguous tensor, finite if `check`; None in `shape` is any length. On a CUDA device it keeps its gradient."""
    if not isinstance(value, Tensor):
        raise InputError(argument, f"a {type(value).__name__}", "a torch tensor")
    if value.ndim != len(shape) or any(want not in (None, have) for have, want in zip(value.shape, shape, strict=True)):
        expected = ", ".join("any" if want is None else str(want) for want in shape)
        raise InputError(argument, f"shape {tuple(value.shape)}", f"shape ({expected})")
    if value.dtype not in _FLOATS:
        raise InputError(argument, f"dtype {value.dtype}", "float32 or float64")
    value = value.to(dtype)
    if not _cuda.takes(value):
        return _library.host(argument, value) if check else _library.unchecked(value)
    if check:
        _validate.finite(argument, value.detach())
    return value.contiguous()


def _each(argument: str, value: object, batch: int) -> Tensor:
    """One float64 for each pair."""
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.expand(batch)
    return _floats(argument, value, (batch,), torch.float64)
