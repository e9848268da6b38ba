"""Neighbours in padded batches by PyTorch3D's names and rules (pytorch3d.ops), for code written against it.

Clouds are torch tensors (N, P, D) of float32 or float64, `lengths` (N,) integers: how many of each cloud's points
count; the rest is padding and may hold anything. Points are rows, distances squared for norm 2. Written from
PyTorch3D's documentation; `docs/pytorch3d.md` says what differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dlc_reg.errors import InputError
from dlc_reg.ops import _validate
from dlc_reg.ops._knn_batch import knn_batch

_ENTRIES = 1 << 23  # of the distances that are held at once where every point is compared with every other


class KNN(NamedTuple):
    """dists (N, P1, K), idx (N, P1, K) int64, knn (N, P1, K, D) or None."""

    dists: Tensor
    idx: Tensor
    knn: Tensor | None


def knn_points(
    p1: Tensor,
    p2: Tensor,
    lengths1: Tensor | None = None,
    lengths2: Tensor | None = None,
    norm: int = 2,
    K: int = 1,
    version: int = -1,
    return_nn: bool = False,
    return_sorted: bool = True,
) -> KNN:
    """The K nearest points of p2[n] for every point of p1[n].

    Args:
        p1: (N, P1, D). p2: (N, P2, D), of the same dtype and on the same device.
        lengths1, lengths2: (N,), how many points count; None: all.
        norm: 2, squared Euclidean distances; 1, sums of absolute differences.
        K: How many; may exceed the number of points.
        version: Taken for PyTorch3D's sake; there is one way of searching for each kind of input.
        return_nn: Return the neighbours themselves too.
        return_sorted: Taken for PyTorch3D's sake; neighbours are always nearest first, equal distances by index.

    Returns:
        `KNN`: dists and idx with zeros where p2[n] has fewer than K points and where p1's are padding; knn, if asked
        for, what `knn_gather` makes of p2 and idx. Distances and neighbours have gradients to p1 and p2.

    float32 clouds of three dimensions and norm 2 are searched by the native `knn_batch`; for others every point is
    compared with every other, a part of p1 at a time.

    Raises:
        InputError: Shapes, dtypes or devices that do not fit, lengths out of range, NaN or infinity in a point that
            counts, K < 1, another norm.
    """
    real1, real2 = _pair(p1, p2, lengths1, lengths2)
    count = _validate.count("K", K)
    if norm not in (1, 2):
        raise InputError("norm", repr(norm), "1 or 2")
    if p1.shape[2] == 3 and p1.dtype == torch.float32 and norm == 2 and p2.shape[1] > 0:
        found = _native(p1, p2, real1, real2, count)
    else:
        found = _nearest(p1.detach(), p2.detach(), real2, norm, count)
    valid = (found >= 0) & real1[:, :, None]
    idx = torch.where(valid, found, 0)
    neighbours = _rows(p2, idx)
    difference = torch.where(valid[..., None], p1[:, :, None] - neighbours, 0.0)  # padding may hold NaN
    dists = difference.abs().sum(-1) if norm == 1 else difference.square().sum(-1)
    return KNN(dists, idx, knn_gather(p2, idx, real2.sum(1)) if return_nn else None)


def knn_gather(x: Tensor, idx: Tensor, lengths: Tensor | None = None) -> Tensor:
    """(N, L, K, U) with x[n, idx[n, l, k]], zero from k = lengths[n] on.

    Args:
        x: (N, M, U), values of any kind for the points that `idx` names.
        idx: (N, L, K) int64, as `knn_points` returns it.
        lengths: (N,), how many rows of x count; None: all.

    Raises:
        InputError: Shapes that do not fit, an index outside x.
    """
    x = _validate.as_tensor("x", x)
    if x.ndim != 3:
        raise InputError("x", f"shape {tuple(x.shape)}", "shape (N, M, U)")
    if not isinstance(idx, Tensor) or idx.ndim != 3 or idx.shape[0] != x.shape[0] or idx.dtype != torch.int64:
        raise InputError("idx", _described(idx), f"int64 of shape ({x.shape[0]}, L, K)")
    real = _real("lengths", lengths, x)
    if idx.numel() and x.shape[1] and not (int(idx.min()) >= 0 and int(idx.max()) < x.shape[1]):
        raise InputError("idx", f"indices from {int(idx.min())} to {int(idx.max())}", f"0 to {x.shape[1] - 1}")
    missing = torch.arange(idx.shape[2], device=x.device)[None] >= real.sum(1)[:, None]
    return torch.where(missing[:, None, :, None], torch.zeros((), dtype=x.dtype, device=x.device), _rows(x, idx))


def ball_query(
    p1: Tensor,
    p2: Tensor,
    lengths1: Tensor | None = None,
    lengths2: Tensor | None = None,
    K: int = 500,
    radius: float = 0.2,
    return_nn: bool = True,
) -> KNN:
    """The first K points of p2[n], by their order, that are strictly nearer than `radius` to each point of p1[n].

    Arguments as for `knn_points`. Returns `KNN`: squared distances, zero where there are fewer than K such points; idx
    is -1 there; knn (N, P1, K, D), zero there, unless `return_nn` is False. Distances and neighbours have gradients.
    Every point is compared with every other.

    Raises:
        InputError: As `knn_points`; a radius that is not a number of at least 0.
    """
    real1, real2 = _pair(p1, p2, lengths1, lengths2)
    count, limit = _validate.count("K", K), _validate.length("radius", radius)
    parts = []
    total = p2.shape[1]
    order = torch.arange(total, device=p1.device)
    for part in _parts(p1.detach(), total):
        near = (_distances(part, p2.detach(), 2) < limit * limit) & real2[:, None]
        first = torch.where(near, order, total)
        parts.append(first.topk(min(count, total), dim=2, largest=False, sorted=True).values)
    found = _padded(torch.cat(parts, 1) if parts else order.new_zeros((*p1.shape[:2], 0)), count, total)
    valid = (found < total) & real1[:, :, None]
    idx = torch.where(valid, found, -1)
    neighbours = torch.where(valid[..., None], _rows(p2, idx.clamp(min=0)), 0.0)
    difference = torch.where(valid[..., None], p1[:, :, None] - neighbours, 0.0)
    return KNN(difference.square().sum(-1), idx, neighbours if return_nn else None)


def sample_farthest_points(
    points: Tensor,
    lengths: Tensor | None = None,
    K: int | Sequence[int] | Tensor = 50,
    random_start_point: bool = False,
) -> tuple[Tensor, Tensor]:
    """Farthest point sampling (Qi et al., PointNet++, NeurIPS 2017): each point the farthest from those taken so far.

    Args:
        points: (N, P, D).
        lengths: (N,), how many points count; None: all.
        K: How many to take of each cloud, or one number for each.
        random_start_point: Start from a point drawn by torch's generator, not from the first.

    Returns:
        The points (N, max K, D), with gradients to `points`, and their indices (N, max K) int64; zeros and -1 where a
        cloud's own K, or its number of points, is smaller. Equal distances by the lower index.

    Raises:
        InputError: Shapes that do not fit, lengths out of range, NaN or infinity in a point that counts, K < 1.
    """
    points = _cloud("points", points)
    real = _real("lengths", lengths, points)
    _validate.finite("points", points.detach().masked_fill(~real[..., None], 0))
    batch = points.shape[0]
    if isinstance(K, (int, str)) or not isinstance(K, (Sequence, Tensor)) or (isinstance(K, Tensor) and not K.ndim):
        wanted = torch.full((batch,), _validate.count("K", K), device=points.device)
    else:
        wanted = torch.tensor([_validate.count("K", k) for k in K], dtype=torch.int64, device=points.device)
        if wanted.shape != (batch,):
            raise InputError("K", f"{len(K)} numbers", f"one, or one for each of the {batch} clouds")
    sizes = real.sum(1)
    most = int(wanted.max()) if batch else 0
    take = torch.minimum(wanted, sizes)
    at = points.detach()
    nearest = torch.where(real, torch.inf, -torch.inf).to(at.dtype)
    chosen = torch.zeros(batch, dtype=torch.int64, device=points.device)
    if random_start_point:
        chosen = torch.tensor([int(torch.randint(max(int(n), 1), ())) for n in sizes], device=points.device)
    idx = torch.full((batch, most), -1, dtype=torch.int64, device=points.device)
    for step in range(int(take.max()) if batch else 0):
        idx[:, step] = torch.where(step < take, chosen, -1)
        last = at[torch.arange(batch, device=points.device), chosen]
        nearest = torch.minimum(nearest, _distances(last[:, None], at, 2)[:, 0].nan_to_num(nan=-torch.inf))
        chosen = nearest.argmax(1)
    taken = torch.where((idx >= 0)[..., None], _rows(points, idx.clamp(min=0)[..., None])[:, :, 0], 0.0)
    return taken, idx


# --- the search ------------------------------------------------------------------------------------------------------
def _native(p1: Tensor, p2: Tensor, real1: Tensor, real2: Tensor, k: int) -> Tensor:
    try:
        found: Tensor = knn_batch(p1.detach(), p2.detach(), k, query_mask=real1, points_mask=real2)[1]
        return found
    except InputError as error:
        name = {"query": "p1", "points": "p2"}.get(error.argument, error.argument)
        raise InputError(name, error.given, error.expected) from None


def _nearest(p1: Tensor, p2: Tensor, real2: Tensor, norm: int, k: int) -> Tensor:
    """(N, P1, k) int64, -1 for what is missing."""
    total = p2.shape[1]
    parts = []
    for part in _parts(p1, total):
        distances = torch.where(real2[:, None], _distances(part, p2, norm), torch.inf)
        values, indices = distances.sort(dim=2, stable=True)
        parts.append(torch.where(values < torch.inf, indices, -1)[..., : min(k, total)])
    found = torch.cat(parts, 1) if parts else torch.zeros((*p1.shape[:2], 0), dtype=torch.int64, device=p1.device)
    return _padded(found, k, -1)


def _parts(p1: Tensor, total: int) -> Iterator[Tensor]:
    rows = max(1, _ENTRIES // max(1, p1.shape[0] * total))
    yield from (p1[:, start : start + rows] for start in range(0, p1.shape[1], rows))


def _distances(p1: Tensor, p2: Tensor, norm: int) -> Tensor:
    """(N, P1, P2), coordinate by coordinate, for products of matrices lose digits."""
    sums = p1.new_zeros((p1.shape[0], p1.shape[1], p2.shape[1]))
    for one, other in zip(p1.unbind(2), p2.unbind(2), strict=True):
        difference = one[:, :, None] - other[:, None]
        sums += difference.abs() if norm == 1 else difference.square()
    return sums


def _padded(found: Tensor, k: int, value: int) -> Tensor:
    return torch.nn.functional.pad(found, (0, k - found.shape[2]), value=value)


def _rows(values: Tensor, idx: Tensor) -> Tensor:
    """(N, L, K, U) = values[n, idx[n, l, k]] of values (N, M, U)."""
    n, length, k = idx.shape
    if values.shape[1] == 0:
        return values.new_zeros((n, length, k, values.shape[2]))
    flat = idx.reshape(n, length * k, 1).expand(-1, -1, values.shape[2])
    return values.gather(1, flat).reshape(n, length, k, values.shape[2])


# --- checks ----------------------------------------------------------------------------------------------------------
def _described(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _cloud(argument: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim != 3 or value.dtype not in (torch.float32, torch.float64):
        raise InputError(argument, _described(value), "a float32 or float64 tensor of shape (N, P, D)")
    return value


def _real(argument: str, lengths: Tensor | None, cloud: Tensor) -> Tensor:
    """(N, P) bool: which points count."""
    n, p = cloud.shape[:2]
    if lengths is None:
        return torch.ones(n, p, dtype=torch.bool, device=cloud.device)
    if not isinstance(lengths, Tensor) or lengths.shape != (n,) or lengths.is_floating_point():
        raise InputError(argument, _described(lengths), f"integers of shape ({n},)")
    if n and not (int(lengths.min()) >= 0 and int(lengths.max()) <= p):
        raise InputError(argument, f"from {int(lengths.min())} to {int(lengths.max())}", f"0 to {p}")
    return torch.arange(p, device=cloud.device)[None] < lengths.to(cloud.device)[:, None]


def _pair(p1: Tensor, p2: Tensor, lengths1: Tensor | None, lengths2: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which points of each count; raises InputError for clouds that do not fit."""
    _cloud("p1", p1)
    _cloud("p2", p2)
    if p2.shape[0] != p1.shape[0] or p2.shape[2] != p1.shape[2]:
        raise InputError("p2", f"shape {tuple(p2.shape)}", f"shape ({p1.shape[0]}, P2, {p1.shape[2]}), as p1")
    if p2.dtype != p1.dtype:
        raise InputError("p2", f"dtype {p2.dtype}", f"that of p1, {p1.dtype}")
    _validate.same_device("p2", p2, "p1", p1)
    reals = _real("lengths1", lengths1, p1), _real("lengths2", lengths2, p2)
    for name, cloud, real in (("p1", p1, reals[0]), ("p2", p2, reals[1])):
        _validate.finite(name, cloud.detach().masked_fill(~real[..., None], 0.0))
    return reals
