"""Alignment, ICP and the chamfer distance of padded batches by PyTorch3D's names and rules.

Points are rows: s X R + T lies on Y, so that R is the transpose of the rotation of p' = R p + t. An X or Y may be a
`pytorch3d.structures.Pointclouds` too, or whatever has its `points_padded` and `num_points_per_cloud`. Written from
PyTorch3D's documentation; `docs/pytorch3d.md` says what differs.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlc_reg.errors import InputError
from dlc_reg.ops import _validate
from dlc_reg.ops._pytorch3d import _cloud, _described, _real, knn_gather, knn_points

AMBIGUOUS = 1e-15  # a singular value of the correlation from which on it holds a direction


class SimilarityTransform(NamedTuple):
    """s X R + T: R (N, D, D) orthonormal, T (N, D), s (N,)."""

    R: Tensor
    T: Tensor
    s: Tensor


class ICPSolution(NamedTuple):
    """What `iterative_closest_point` found.

    converged: whether the error stopped falling. rmse (N,), or None without an iteration. Xt: X moved, of its kind.
    RTs: how. t_history: the transform after each iteration.
    """

    converged: bool
    rmse: Tensor | None
    Xt: Any
    RTs: SimilarityTransform
    t_history: list[SimilarityTransform]


def corresponding_points_alignment(
    X: Any,
    Y: Any,
    weights: Tensor | Sequence[Tensor] | None = None,
    estimate_scale: bool = False,
    allow_reflection: bool = False,
    eps: float = 1e-9,
) -> SimilarityTransform:
    """The transform with the least sum of w |s X R + T - Y|^2 over corresponding points (Umeyama, TPAMI 1991).

    Args:
        X, Y: (N, P, D) float32 or float64, or `Pointclouds`, point for point.
        weights: (N, P), not negative; or one tensor for each cloud, as long as it. None: all points alike.
        estimate_scale: Estimate s too; else it is one.
        allow_reflection: Let R have the determinant -1.
        eps: The least that sums of weights and of squares are divided by.

    Returns:
        `SimilarityTransform`, with gradients to X, Y and the weights. Where the points do not determine a rotation, a
        warning says so.

    Raises:
        InputError: Shapes, dtypes, lengths or weights that do not fit; NaN or infinity in a point that counts.
    """
    x, x_real = _padded_cloud("X", X, None)
    y, y_real = _padded_cloud("Y", Y, None)
    if x.shape != y.shape or bool((x_real != y_real).any()):
        raise InputError("Y", f"shape {tuple(y.shape)}", f"clouds of as many points as X, {tuple(x.shape)}")
    weighed = _weighed(weights, x, x_real)
    _alike(x, y, weighed > 0, weighed > 0)
    return _aligned(x, y, weighed, estimate_scale, allow_reflection, eps)


def iterative_closest_point(
    X: Any,
    Y: Any,
    init_transform: SimilarityTransform | None = None,
    max_iterations: int = 100,
    relative_rmse_thr: float = 1e-6,
    estimate_scale: bool = False,
    allow_reflection: bool = False,
    verbose: bool = False,
) -> ICPSolution:
    """Point-to-point ICP (Besl and McKay, TPAMI 1992) of each X[n] to Y[n], from `init_transform` or the identity.

    Args:
        X, Y: (N, P, D) and (N, Q, D), or `Pointclouds`.
        init_transform: R (N, D, D), T (N, D), s (N,) to start from.
        max_iterations: At most so many.
        relative_rmse_thr: It has converged when no cloud's error fell by more than this share.
        estimate_scale, allow_reflection: As for `corresponding_points_alignment`.
        verbose: Print a line an iteration.

    Returns:
        `ICPSolution`; the last iteration's transform has gradients to X and Y.

    Raises:
        InputError: Shapes or dtypes that do not fit; NaN or infinity in a point that counts.
    """
    x, x_real = _padded_cloud("X", X, None)
    y, y_real = _padded_cloud("Y", Y, None)
    n, dim = x.shape[0], x.shape[2]
    x = torch.where(x_real[..., None], x, 0.0)  # padding may hold NaN, which would spoil the gradients
    if y.shape[0] != n or y.shape[2] != dim:
        raise InputError("Y", f"shape {tuple(y.shape)}", f"shape ({n}, Q, {dim}), as X")
    _alike(x, y, x_real, y_real)
    found = SimilarityTransform(torch.eye(dim).to(x).expand(n, -1, -1), x.new_zeros(n, dim), x.new_ones(n))
    if init_transform is not None:
        shapes = ((n, dim, dim), (n, dim), (n,))
        parts = tuple(init_transform) if isinstance(init_transform, Sequence) else ()
        if tuple(getattr(part, "shape", None) for part in parts) != shapes:
            what = ", ".join(map(_described, parts)) or _described(init_transform)
            raise InputError("init_transform", what, f"tensors R, T, s of shapes {shapes}")
        found = SimilarityTransform(*parts)
    moved = _moved(x, found)
    weights = x_real.to(x)
    lengths = x_real.sum(1), y_real.sum(1)
    history: list[SimilarityTransform] = []
    rmse, converged = None, False
    for iteration in range(max_iterations):
        nearest = knn_points(moved, y, *lengths, K=1, return_nn=True).knn
        assert nearest is not None
        target = nearest[:, :, 0]
        found = _aligned(x, target, weights, estimate_scale, allow_reflection, 1e-9)
        history.append(found)
        moved = _moved(x, found)
        before = rmse
        squares = torch.where(x_real, (moved - target).square().sum(2), 0.0)
        rmse = (squares.sum(1) / weights.sum(1).clamp(min=1e-9)).sqrt()
        gain = rmse.new_ones(n) if before is None else (before - rmse) / before.clamp(min=torch.finfo(x.dtype).tiny)
        if verbose:
            print(f"ICP iteration {iteration}: mean/max rmse {float(rmse.mean()):1.2e}/{float(rmse.max()):1.2e}")
        if bool((gain <= relative_rmse_thr).all()):
            converged = True
            break
    given = X.update_padded(moved) if hasattr(X, "update_padded") else moved
    return ICPSolution(converged, rmse, given, found, history)


def chamfer_distance(
    x: Any,
    y: Any,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    x_normals: Tensor | None = None,
    y_normals: Tensor | None = None,
    weights: Tensor | None = None,
    batch_reduction: str | None = "mean",
    point_reduction: str | None = "mean",
    norm: int = 2,
    single_directional: bool = False,
    abs_cosine: bool = True,
) -> tuple[Any, Any]:
    """How far each cloud's points are from the other cloud: distances to the nearest point, both ways, and of normals.

    Args:
        x, y: (N, P, D) and (N, Q, D), or `Pointclouds`. x_lengths, y_lengths: (N,), how many points count.
        x_normals, y_normals: (N, P, 3) and (N, Q, 3), or None.
        weights: (N,), not negative, of the clouds.
        batch_reduction: "mean", "sum" or None.
        point_reduction: "mean", "sum", "max" (without normals; of both ways the larger), or None.
        norm: 2: squared distances; 1: sums of absolute differences.
        single_directional: From x to y alone.
        abs_cosine: A normal and its opposite are alike.

    Returns:
        The distance, and that of the normals (1 - cosine) or None: a number, (N,) without batch reduction; without
        point reduction pairs (of x's points (N, P), of y's (N, Q)), or the first alone if `single_directional`.
        Gradients go to x, y and the normals.

    Raises:
        InputError: Shapes that do not fit, unknown reductions, weights below zero.
    """
    if batch_reduction not in ("mean", "sum", None):
        raise InputError("batch_reduction", repr(batch_reduction), "'mean', 'sum' or None")
    if point_reduction not in ("mean", "sum", "max", None):
        raise InputError("point_reduction", repr(point_reduction), "'mean', 'sum', 'max' or None")
    if point_reduction is None and batch_reduction is not None:
        raise InputError("batch_reduction", repr(batch_reduction), "None where point_reduction is None")
    if point_reduction == "max" and (x_normals is not None or y_normals is not None):
        raise InputError("point_reduction", "'max' with normals", "another, or no normals")
    a, a_real = _padded_cloud("x", x, x_lengths, "x_lengths")
    b, b_real = _padded_cloud("y", y, y_lengths, "y_lengths")
    if b.shape[0] != a.shape[0] or b.shape[2] != a.shape[2]:
        raise InputError("y", f"shape {tuple(b.shape)}", f"shape ({a.shape[0]}, Q, {a.shape[2]}), as x")
    a_normals = _normals("x_normals", x.normals_padded() if hasattr(x, "normals_padded") else x_normals, a_real)
    b_normals = _normals("y_normals", y.normals_padded() if hasattr(y, "normals_padded") else y_normals, b_real)
    if weights is not None:
        if not isinstance(weights, Tensor) or weights.shape != (a.shape[0],):
            raise InputError("weights", _described(weights), f"a tensor of shape ({a.shape[0]},)")
        if bool((weights < 0).any()):
            raise InputError("weights", "numbers below zero", "weights of at least 0")
    sides = [(a, b, a_real, b_real, a_normals, b_normals), (b, a, b_real, a_real, b_normals, a_normals)]
    found = [
        _one_way(*side, norm, weights, point_reduction, abs_cosine) for side in sides[: 1 if single_directional else 2]
    ]
    distances, cosines = (list(terms) for terms in zip(*found, strict=True))
    if point_reduction is None:
        pair = (distances[0], cosines[0]) if single_directional else (tuple(distances), tuple(cosines))
        return pair[0], None if cosines[0] is None else pair[1]
    loss = torch.stack(distances).amax(0) if point_reduction == "max" else sum(distances[1:], distances[0])
    normals = None if cosines[0] is None else sum(cosines[1:], cosines[0])
    return _over_batch(loss, weights, batch_reduction), _over_batch(normals, weights, batch_reduction)


# --- parts -----------------------------------------------------------------------------------------------------------
def _padded_cloud(argument: str, cloud: Any, lengths: Tensor | None, name: str = "lengths") -> tuple[Tensor, Tensor]:
    """The points (N, P, D), and which of them count (N, P)."""
    if hasattr(cloud, "points_padded"):
        lengths, cloud = cloud.num_points_per_cloud(), cloud.points_padded()
    return _cloud(argument, cloud), _real(name, lengths, cloud)


def _alike(x: Tensor, y: Tensor, x_real: Tensor, y_real: Tensor) -> None:
    """Raises where one has other numbers than the other, or NaN or infinity in a point that counts."""
    if (y.dtype, y.device) != (x.dtype, x.device):
        raise InputError("Y", f"{y.dtype} on {y.device}", f"{x.dtype} on {x.device}, as X")
    for argument, cloud, real in (("X", x, x_real), ("Y", y, y_real)):
        _validate.finite(argument, cloud.detach().masked_fill(~real[..., None], 0))


def _weighed(weights: Tensor | Sequence[Tensor] | None, x: Tensor, real: Tensor) -> Tensor:
    if weights is None:
        return real.to(x)
    if not isinstance(weights, (Tensor, Sequence)):
        raise InputError("weights", _described(weights), f"a tensor of shape {tuple(x.shape[:2])}, or one a cloud")
    if not isinstance(weights, Tensor):
        sizes = real.sum(1).tolist()
        if [len(w) for w in weights] != sizes:
            raise InputError("weights", f"{[len(w) for w in weights]} of them", f"{sizes}, one for each point")
        weights = torch.nn.utils.rnn.pad_sequence(list(weights), batch_first=True)
        weights = torch.nn.functional.pad(weights, (0, x.shape[1] - weights.shape[1]))
    if weights.shape != x.shape[:2]:
        raise InputError("weights", f"shape {tuple(weights.shape)}", f"shape {tuple(x.shape[:2])}")
    weights = torch.where(real, weights.to(x), 0.0)
    _validate.finite("weights", weights.detach())
    if bool((weights < 0).any()):
        raise InputError("weights", f"{float(weights.detach().min()):g}", "0 or above")
    return weights


def _aligned(x: Tensor, y: Tensor, weights: Tensor, scaled: bool, reflected: bool, eps: float) -> SimilarityTransform:
    dim = x.shape[2]
    if dim == 0:
        raise InputError("X", f"shape {tuple(x.shape)}", "points of at least one dimension")
    few = bool(((weights > 0).sum(1) < dim + 1).any())
    w = weights[..., None]
    x, y = torch.where(w > 0, x, 0.0), torch.where(w > 0, y, 0.0)  # padding may hold NaN
    total = weights.sum(1).clamp(min=eps)[:, None, None]
    x_mean, y_mean = (w * x).sum(1, keepdim=True) / total, (w * y).sum(1, keepdim=True) / total
    x_off, y_off = x - x_mean, y - y_mean
    moments = (w * x_off).mT @ y_off / total
    if not bool(torch.isfinite(moments.detach()).all()):
        raise InputError("X", f"coordinates whose products {x.dtype} cannot hold", "smaller numbers, or torch.float64")
    # LAPACK gives up far from one; and 2^128 is no float32
    exponent = torch.frexp(moments.detach().abs().amax((1, 2), keepdim=True)).exponent.clamp(-100, 100)
    unit = torch.exp2(exponent.to(moments))  # a power of two: nothing is rounded
    u, singular, vt = torch.linalg.svd(moments / unit)
    singular = singular * unit[:, 0]
    if few or bool((singular.abs() <= AMBIGUOUS).any()):
        warnings.warn("the points do not determine a rotation: too few, or all on a line or a plane", stacklevel=3)
    signs = torch.ones_like(singular)
    if not reflected:
        signs[:, -1] = torch.linalg.det((u @ vt).detach()).sign()
    rotation = u * signs[:, None] @ vt
    scale = x.new_ones(len(x))
    if scaled:
        spread = (w * x_off.square()).sum((1, 2)) / total[:, 0, 0]
        scale = (signs * singular).sum(1) / spread.clamp(min=eps)
    shift = (y_mean - scale[:, None, None] * x_mean @ rotation)[:, 0]
    return SimilarityTransform(rotation, shift, scale)


def _moved(x: Tensor, by: SimilarityTransform) -> Tensor:
    return by.s[:, None, None] * x @ by.R + by.T[:, None]


def _normals(argument: str, normals: Tensor | None, real: Tensor) -> Tensor | None:
    if normals is None:
        return None
    if not isinstance(normals, Tensor) or normals.shape != (*real.shape, 3):
        raise InputError(argument, _described(normals), f"a tensor of shape {(*real.shape, 3)}")
    return torch.where(real[..., None], normals, 0.0)


def _one_way(
    x: Tensor,
    y: Tensor,
    x_real: Tensor,
    y_real: Tensor,
    x_normals: Tensor | None,
    y_normals: Tensor | None,
    norm: int,
    weights: Tensor | None,
    reduction: str | None,
    abs_cosine: bool,
) -> tuple[Tensor, Tensor | None]:
    sizes = y_real.sum(1)
    nearest = knn_points(x, y, x_real.sum(1), sizes, norm=norm, K=1)
    cosines = None
    if x_normals is not None and y_normals is not None:
        near = knn_gather(y_normals, nearest.idx, sizes)[:, :, 0]
        cosine = torch.nn.functional.cosine_similarity(x_normals, near, dim=2, eps=1e-6)
        cosines = torch.where(x_real, 1 - (cosine.abs() if abs_cosine else cosine), 0.0)

    def reduced(values: Tensor) -> Tensor:
        if weights is not None:
            values = values * weights.to(values)[:, None]
        if reduction is None:
            return values
        if reduction == "max":
            return values.amax(1)
        return values.sum(1) / (x_real.sum(1).clamp(min=1) if reduction == "mean" else 1)

    return reduced(nearest.dists[..., 0]), None if cosines is None else reduced(cosines)


def _over_batch(values: Tensor | None, weights: Tensor | None, reduction: str | None) -> Tensor | None:
    if values is None or reduction is None:
        return values
    if reduction == "sum":
        return values.sum()
    total = (
        max(len(values), 1) if weights is None else weights.to(values).sum().clamp(min=torch.finfo(values.dtype).tiny)
    )
    return values.sum() / total
