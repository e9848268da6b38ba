"""Neighbours in batches of clouds: against a loop of `knn`, float64, their symmetries, and torch's machinery."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.networks.neighbours import neighbourhoods
from dlc_reg.ops import _knn_batch, _reference

pytestmark = pytest.mark.usefixtures("one_thread_for_torch")

INF = math.inf


def clouds(batch: int, n: int, seed: int) -> Tensor:
    return torch.randn(batch, n, 3, generator=torch.Generator().manual_seed(seed))


def masks(batch: int, n: int, seed: int) -> Tensor:
    """Of all sorts: the first cloud is empty, the second has one point, the third is whole, the others are ragged."""
    mask = torch.rand(batch, n, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[0], mask[1], mask[2] = False, False, True
    mask[1, n // 2] = True
    return mask


def one_by_one(query: Tensor, points: Tensor, k: int, q_mask: Tensor, p_mask: Tensor, limit: float | None) -> tuple:
    distances, indices = torch.full((*query.shape[:2], k), INF), torch.full((*query.shape[:2], k), -1)
    for b in range(len(query)):
        there = p_mask[b].nonzero()[:, 0]
        if len(there):
            found = ops.knn(query[b, q_mask[b]], points[b, there], k, max_distance=limit)
            distances[b, q_mask[b]] = found[0]
            indices[b, q_mask[b]] = torch.where(found[1] >= 0, there[found[1].clamp(min=0)], -1)
    return distances, indices


def same(found: tuple, expected: tuple) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("limit", [None, 0.5])
@pytest.mark.parametrize("k", [1, 5, 64, 90])
def test_it_is_a_loop_of_knn(k: int, limit: float | None) -> None:
    query, points = clouds(6, 50, 1), clouds(6, 80, 2)
    q_mask, p_mask = masks(6, 50, 3).flip(0), masks(6, 80, 4)
    expected = one_by_one(query, points, k, q_mask, p_mask, limit)
    query[~q_mask] = math.nan  # padding holds anything
    points[~p_mask] = INF
    options = {"query_mask": q_mask, "points_mask": p_mask, "max_distance": limit}
    same(ops.knn_batch(query, points, k, **options), expected)


def test_without_masks_all_are_points() -> None:
    query, points = clouds(3, 40, 5), clouds(3, 30, 6)
    every = [torch.ones(3, n, dtype=torch.bool) for n in (40, 30)]
    same(ops.knn_batch(query, points, 4), one_by_one(query, points, 4, *every, None))
    same(ops.knn_batch(query, points, 4, points_mask=every[1]), ops.knn_batch(query, points, 4))


@pytest.mark.parametrize("n", [1, 300, 1500])
def test_it_is_exact(n: int) -> None:
    query, points = clouds(2, 70, 7), clouds(2, n, 8)
    distances, indices = ops.knn_batch(query, points, 9)
    truth = (query.double()[:, :, None] - points.double()[:, None]).norm(dim=-1)
    width = min(9, n)
    nearest = truth.sort(dim=2).values[..., :width]
    torch.testing.assert_close(distances[..., :width].double(), nearest, rtol=1e-6, atol=0)
    torch.testing.assert_close(truth.gather(2, indices[..., :width]), nearest, rtol=1e-6, atol=0)
    assert torch.isinf(distances[..., width:]).all() and (indices[..., width:] == -1).all()


def test_equal_distances_come_by_index() -> None:
    grid = torch.stack(torch.meshgrid(*[torch.arange(4.0)] * 3, indexing="ij"), dim=-1).reshape(-1, 3)
    points = torch.stack([torch.cat([grid, grid]), torch.cat([grid, grid + 100])])
    mask = torch.ones(2, 128, dtype=torch.bool)
    mask[0, 3:40:3] = False
    found = ops.knn_batch(points, points, 7, query_mask=mask, points_mask=mask)[1]
    for b in range(2):
        there = mask[b].nonzero()[:, 0]
        expected = _reference.knn(points[b, there], points[b, there], 7)[1]
        assert torch.equal(found[b, there], there[expected])


def test_the_order_of_clouds_and_queries_does_not_matter() -> None:
    query, points, mask = clouds(6, 50, 9), clouds(6, 60, 10), masks(6, 60, 11)
    distances, indices = ops.knn_batch(query, points, 3, points_mask=mask)
    order, rows = torch.randperm(6), torch.randperm(50)
    found = ops.knn_batch(query[order][:, rows], points[order], 3, points_mask=mask[order])
    same(found, (distances[order][:, rows], indices[order][:, rows]))


@pytest.mark.parametrize("batch", [1, 7])
def test_the_number_of_threads_changes_no_bit(batch: int) -> None:
    query, points = clouds(batch, 5000 // batch, 12), clouds(batch, 3000, 13)
    mask = torch.rand(batch, 3000, generator=torch.Generator().manual_seed(14)) < 0.7
    one = ops.knn_batch(query, points, 6, points_mask=mask, num_threads=1)
    for threads in (2, 3, None):
        same(ops.knn_batch(query, points, 6, points_mask=mask, num_threads=threads), one)
    rows = one[1]
    normals = ops.neighbour_normals(points, rows, num_threads=1)
    assert torch.equal(ops.neighbour_normals(points, rows, num_threads=3), normals)


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0), (0, 0, 0)])
def test_nothing_to_search(shape: tuple[int, int, int]) -> None:
    batch, n, m = shape
    query, points = torch.zeros(batch, n, 3, requires_grad=True), torch.zeros(batch, m, 3, requires_grad=True)
    distances, indices = ops.knn_batch(query, points, 2)
    assert distances.shape == indices.shape == (batch, n, 2)
    assert m or (torch.isinf(distances).all() and (indices == -1).all())
    for gradient in torch.autograd.grad(distances.clamp(max=1.0).sum(), (query, points)):
        assert (gradient == 0).all()


def test_arrays_come_back_as_arrays() -> None:
    query, points = clouds(2, 5, 15), clouds(2, 6, 16)
    found = ops.knn_batch(query.double().numpy(), points.numpy(), 2, points_mask=np.ones((2, 6), bool))
    assert all(isinstance(x, np.ndarray) for x in found)
    same(tuple(map(torch.from_numpy, found)), ops.knn_batch(query, points, 2))
    normals = ops.neighbour_normals(points.numpy(), found[1])
    assert isinstance(normals, np.ndarray) and normals.shape == (2, 5, 3)


def test_gradients_are_those_of_knn() -> None:
    query, points = clouds(4, 12, 17).requires_grad_(), clouds(4, 15, 18).requires_grad_()
    q_mask, p_mask = masks(4, 12, 19).flip(0), masks(4, 15, 20)
    weight = torch.rand(4, 12, 3, generator=torch.Generator().manual_seed(21))
    options = {"query_mask": q_mask, "points_mask": p_mask}
    gradients = []
    for function in (lambda q, p: ops.knn_batch(q, p, 3, **options), None):
        if function:
            distances, indices = function(query, points)
        else:
            distances, indices = one_by_one(query, points, 3, q_mask, p_mask, None)
        loss = (torch.where(indices >= 0, distances, 0.0) * weight).sum()
        gradients.append(torch.autograd.grad(loss, (query, points)))
    for found, expected in zip(*gradients, strict=True):
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(found, expected)


def test_padding_and_coincident_points_have_no_gradient() -> None:
    query, points, mask = clouds(3, 9, 22), clouds(3, 9, 23), masks(3, 9, 24)
    query[2, 4] = points[2, 0]
    query[~mask] = points[~mask] = math.nan
    query.requires_grad_(), points.requires_grad_()
    distances, _ = ops.knn_batch(query, points, 4, query_mask=mask, points_mask=mask)
    assert distances[2, 4, 0] == 0
    for gradient in torch.autograd.grad(distances.clamp(max=1e6).sum(), (query, points)):
        assert gradient.isfinite().all() and (gradient[~mask] == 0).all() and gradient.abs().max() > 0.1


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(grad: bool) -> None:
    query, points = (clouds(3, n, n).requires_grad_(grad) for n in (5, 7))
    given = (masks(3, 5, 1), masks(3, 7, 2), 2, INF, 1)
    torch.library.opcheck(_knn_batch.knn_batch_op, (query, points, *given))
    if not grad:
        rows = ops.knn_batch(points, points, 4)[1]
        torch.library.opcheck(_knn_batch.neighbour_normals_op, (points, rows, 1))


def test_it_compiles_into_one_graph() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(query: Tensor, points: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        distances, indices = ops.knn_batch(query, points, 3, points_mask=mask)
        return distances.clamp(max=9.0).sum(), ops.neighbour_normals(points.detach(), indices)

    query, points, mask = clouds(3, 8, 25).requires_grad_(), clouds(3, 9, 26).requires_grad_(), masks(3, 9, 27)
    total, normals = function(query, points, mask)
    distances, indices = ops.knn_batch(query, points, 3, points_mask=mask)
    expected = distances.clamp(max=9.0).sum()
    torch.testing.assert_close(total, expected)
    assert torch.equal(normals, ops.neighbour_normals(points.detach(), indices))
    found = torch.autograd.grad(total, (query, points))
    for a, b in zip(found, torch.autograd.grad(expected, (query, points)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("k", [2, 3, 20, 40])
def test_normals_are_those_of_each_cloud(k: int) -> None:
    points, mask = clouds(5, 30, 28), masks(5, 30, 29)
    points[~mask] = math.nan
    rows = ops.knn_batch(points, points, k, query_mask=mask, points_mask=mask)[1]
    normals = ops.neighbour_normals(points, rows)
    for b in range(1, 5):
        assert torch.equal(normals[b, mask[b]], ops.estimate_normals(points[b, mask[b]], k))
    assert torch.equal(normals[~mask], torch.tensor([0.0, 0.0, 1.0]).expand(int((~mask).sum()), 3))


@pytest.mark.parametrize("radius", [None, INF, 1.5])
def test_networks_neighbourhoods_in_clouds_of_few_points(radius: float | None) -> None:
    points, mask = clouds(5, 12, 33), masks(5, 12, 34)
    found = neighbourhoods(points, mask, 20, radius=radius, normals_from=4)
    own = torch.arange(12)[None, :, None].expand(5, 12, 20)
    assert torch.equal(found.rows[~found.real], own[~found.real]) and not found.real[~mask].any()
    apart = (points[:, :, None] - points[:, None]).norm(dim=-1)
    near = apart <= (INF if radius is None else radius)
    expected = (near & mask[:, None, :] & mask[:, :, None]).sum(-1)
    assert torch.equal(found.real.sum(-1), expected) and expected.max() > 3
    assert found.normals is not None and (found.normals[~mask] == 0).all()


def test_rows_that_are_no_points_are_passed_over() -> None:
    points = clouds(2, 10, 30)
    rows = torch.arange(5).expand(2, 3, 5).contiguous()
    far = torch.cat([rows[..., :2], torch.tensor([-1, 10, 2**40]).expand(2, 3, 3), rows[..., 2:]], dim=2)
    assert torch.equal(ops.neighbour_normals(points, far), ops.neighbour_normals(points, rows))


def test_normals_refuse_a_backward_pass() -> None:
    points = clouds(1, 10, 31).requires_grad_()
    with pytest.raises(RuntimeError, match="neighbour_normals"):
        ops.neighbour_normals(points, torch.zeros(1, 2, 4, dtype=torch.int64)).sum().backward()


GOOD, MASK = clouds(2, 4, 32), torch.ones(2, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("query", lambda: ops.knn_batch(GOOD[0], GOOD)),
        ("query", lambda: ops.knn_batch(GOOD.long(), GOOD)),
        ("query", lambda: ops.knn_batch(GOOD * math.nan, GOOD)),
        ("points", lambda: ops.knn_batch(GOOD, GOOD[:1])),
        ("points", lambda: ops.knn_batch(GOOD, GOOD[..., :2])),
        ("points", lambda: ops.knn_batch(GOOD, GOOD / 0.0, points_mask=MASK)),
        ("points_mask", lambda: ops.knn_batch(GOOD, GOOD, points_mask=MASK.long())),
        ("query_mask", lambda: ops.knn_batch(GOOD, GOOD, query_mask=MASK[:, :3])),
        ("query_mask", lambda: ops.knn_batch(GOOD, GOOD, query_mask="all")),
        ("k", lambda: ops.knn_batch(GOOD, GOOD, 0)),
        ("max_distance", lambda: ops.knn_batch(GOOD, GOOD, max_distance=-1.0)),
        ("num_threads", lambda: ops.knn_batch(GOOD, GOOD, num_threads=0)),
        ("indices", lambda: ops.neighbour_normals(GOOD, torch.zeros(2, 4, 1))),
        ("indices", lambda: ops.neighbour_normals(GOOD, torch.zeros(3, 4, 1, dtype=torch.int64))),
        ("indices", lambda: ops.neighbour_normals(GOOD, torch.zeros(2, 4, 0, dtype=torch.int64))),
        ("points", lambda: ops.neighbour_normals(GOOD[0], torch.zeros(2, 4, 1, dtype=torch.int64))),
    ],
)
def test_bad_arguments(argument: str, call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError) as error:
        call()
    assert error.value.argument == argument
