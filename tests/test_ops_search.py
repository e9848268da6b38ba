"""Nearest neighbours: against brute force in float64, SciPy, the reference twins, and their own symmetries."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from dlc_reg import ops
from dlc_reg.ops import _reference


def cloud(n: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))


def brute_force(query: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    return (query.double()[:, None] - points.double()[None]).norm(dim=-1)


@pytest.mark.parametrize("k", [1, 2, 7, 20])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 40), (400, 17), (700, 2000)])
def test_knn_is_exact(n: int, m: int, k: int) -> None:
    query, points = cloud(n, 1), cloud(m, 2)
    distances, indices = ops.knn(query, points, k)
    found = min(k, m)
    truth = brute_force(query, points).sort(dim=1).values[:, :found]
    torch.testing.assert_close(distances[:, :found].double(), truth, rtol=1e-6, atol=0)
    # The points named are as near as claimed, and each is named once.
    named = brute_force(query, points).gather(1, indices[:, :found])
    torch.testing.assert_close(named, truth, rtol=1e-6, atol=0)
    assert all(len(set(row)) == found for row in indices[:, :found].tolist())
    assert torch.isinf(distances[:, found:]).all() and (indices[:, found:] == -1).all()
    assert distances.shape == indices.shape == (n, k)
    assert distances.dtype == torch.float32 and indices.dtype == torch.int64


def test_knn_agrees_with_scipy() -> None:
    query, points = cloud(3000, 3).numpy(), cloud(5000, 4).numpy()
    distances, indices = ops.knn(query, points, 5, max_distance=0.2)
    expected, _ = cKDTree(points).query(query, 5, distance_upper_bound=0.2)
    assert np.isinf(expected).any() and np.isfinite(expected).any()
    np.testing.assert_allclose(distances, expected, rtol=1e-6)
    assert ((indices == -1) == np.isinf(distances)).all()


def test_knn_equals_its_reference() -> None:
    query = torch.cat([cloud(300, 5), cloud(50, 6, scale=100.0)])
    points = cloud(1000, 6)
    for k, limit in [(1, float("inf")), (8, float("inf")), (8, 0.15), (1200, float("inf"))]:
        distances, indices = ops.knn(query, points, k, max_distance=limit)
        expected_distances, expected_indices = _reference.knn(query, points, k, limit)
        assert torch.equal(indices, expected_indices)
        torch.testing.assert_close(distances, expected_distances, rtol=2e-7, atol=0)


def test_equal_distances_come_by_index() -> None:
    grid = torch.stack(torch.meshgrid(*[torch.arange(5.0)] * 3, indexing="ij"), dim=-1).reshape(-1, 3)
    points = torch.cat([grid, grid[::7], grid])  # every point at least twice
    query = torch.cat([grid, grid + 0.5])
    assert torch.equal(ops.knn(query, points, 12)[1], _reference.knn(query, points, 12)[1])


def test_the_limit_is_strict() -> None:
    query, points = torch.zeros(1, 3), torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 6.0]])
    assert ops.knn(query, points, 2, max_distance=5.0)[1].tolist() == [[-1, -1]]
    just_above = float(np.nextafter(np.float32(5), np.float32(6)))
    assert ops.knn(query, points, 2, max_distance=just_above)[1].tolist() == [[0, -1]]
    assert ops.radius_search(query, points, 5.0)[2].tolist() == [0, 0]
    assert ops.radius_search(query, points, just_above)[1].tolist() == [0]
    assert ops.knn(points, points, 1, max_distance=0.0)[1].tolist() == [[-1], [-1]]


@pytest.mark.parametrize("radius", [0.0, 0.1, 0.5, 20.0])
def test_radius_search_equals_its_reference(radius: float) -> None:
    query, points = cloud(200, 7), cloud(600, 8)
    distances, indices, splits = ops.radius_search(query, points, radius)
    expected = _reference.radius_search(query, points, radius)
    torch.testing.assert_close(distances, expected[0], rtol=2e-7, atol=0)
    assert torch.equal(indices, expected[1]) and torch.equal(splits, expected[2])
    counts = cKDTree(points.double().numpy()).query_ball_point(query.double().numpy(), radius, return_length=True)
    assert splits.diff().tolist() == counts.tolist()


def test_an_index_answers_again_and_again() -> None:
    points = cloud(2000, 9)
    index = ops.SearchIndex(points)
    assert len(index) == 2000 and torch.equal(index.points, points)
    for seed in range(3):
        query = cloud(100, seed)
        for found, expected in zip(index.knn(query, 3, 0.3), ops.knn(query, points, 3, max_distance=0.3), strict=True):
            assert torch.equal(found, expected)
        for found, expected in zip(index.radius(query, 0.3), ops.radius_search(query, points, 0.3), strict=True):
            assert torch.equal(found, expected)


def test_an_index_keeps_its_own_points() -> None:
    points = cloud(50, 10)
    index, original = ops.SearchIndex(points), points.clone()
    points += 100
    assert torch.equal(index.points, original) and index.knn(original)[0].max() == 0


def test_an_index_can_be_copied_and_pickled() -> None:
    index, query = ops.SearchIndex(cloud(50, 11)), cloud(5, 12)
    for other in (copy.deepcopy(index), pickle.loads(pickle.dumps(index))):
        assert torch.equal(other.knn(query, 4)[1], index.knn(query, 4)[1])


def test_numpy_in_numpy_out() -> None:
    query, points = cloud(20, 13), cloud(30, 14)
    index = ops.SearchIndex(points.numpy())
    for found, expected in [
        (ops.knn(query.numpy(), points.numpy(), 2), ops.knn(query, points, 2)),
        (ops.radius_search(query.numpy(), points.numpy(), 1.0), ops.radius_search(query, points, 1.0)),
        (index.knn(query.numpy(), 2), ops.knn(query, points, 2)),
        (index.radius(query.numpy(), 1.0), ops.radius_search(query, points, 1.0)),
    ]:
        for a, b in zip(found, expected, strict=True):
            assert isinstance(a, np.ndarray)
            np.testing.assert_array_equal(a, b.numpy())


def test_any_memory_layout_and_float64() -> None:
    wide = np.random.default_rng(0).normal(size=(40, 6))
    view = wide[::-2, ::2]  # negative strides, not contiguous, float64
    frozen = view.copy()
    frozen.flags.writeable = False
    expected = ops.knn(view.astype(np.float32), view.astype(np.float32), 3)
    for points in (view, frozen, np.asfortranarray(view)):
        for found, wanted in zip(ops.knn(points, points, 3), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    transposed = torch.from_numpy(wide[:3].copy()).T  # (6, 3), strides (1, 6)
    assert torch.equal(ops.knn(transposed, transposed)[1][:, 0], torch.arange(6))


@pytest.mark.parametrize("k", [1, 4])
def test_no_queries_give_no_answers(k: int) -> None:
    distances, indices = ops.knn(torch.empty(0, 3), cloud(5), k)
    assert distances.shape == indices.shape == (0, k)
    distances, indices, splits = ops.radius_search(torch.empty(0, 3), cloud(5), 1.0)
    assert len(distances) == len(indices) == 0 and splits.tolist() == [0]


def test_the_number_of_threads_changes_nothing() -> None:
    query, points = cloud(6000, 15), cloud(9000, 16)
    one = ops.knn(query, points, 4, num_threads=1) + ops.radius_search(query, points, 0.1, num_threads=1)
    for threads in (2, 3, None):
        other = ops.knn(query, points, 4, num_threads=threads)
        other += ops.radius_search(query, points, 0.1, num_threads=threads)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


coordinates = st.floats(-100, 100, width=32)
clouds = st.lists(st.tuples(coordinates, coordinates, coordinates), min_size=1, max_size=60).map(
    lambda rows: torch.tensor(rows, dtype=torch.float32)
)


@settings(max_examples=60, deadline=None)
@given(clouds, clouds, st.integers(1, 8), st.randoms(use_true_random=False))
def test_the_order_of_points_does_not_matter(query: torch.Tensor, points: torch.Tensor, k: int, random) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(points)))
    random.shuffle(order)
    distances, indices = ops.knn(query, points, k)
    shuffled_distances, shuffled = ops.knn(query, points[order], k)
    assert torch.equal(distances, shuffled_distances)
    found = shuffled[shuffled >= 0]
    # Ties may name another point, but one that is exactly as far.
    rows = torch.arange(len(query))[:, None].expand_as(shuffled)[shuffled >= 0]
    named = _reference.squared_distance(query[rows], points[order][found])
    assert torch.equal(named, _reference.squared_distance(query[rows], points[indices[indices >= 0]]))


@settings(max_examples=60, deadline=None)
@given(clouds, clouds, st.integers(1, 8), st.integers(-20, 20))
def test_powers_of_two_scale_exactly(query: torch.Tensor, points: torch.Tensor, k: int, exponent: int) -> None:
    query, points = query.round(decimals=3), points.round(decimals=3)  # squares far from underflow
    distances, indices = ops.knn(query, points, k)
    scaled_distances, scaled = ops.knn(query * 2.0**exponent, points * 2.0**exponent, k)
    assert torch.equal(distances * 2.0**exponent, scaled_distances) and torch.equal(indices, scaled)


@settings(max_examples=40, deadline=None)
@given(clouds, clouds, st.integers(1, 8), st.tuples(*[st.floats(-3, 3)] * 6))
def test_rigid_motions_keep_distances(query: torch.Tensor, points: torch.Tensor, k: int, xi: tuple[float, ...]) -> None:
    x, y, z = xi[:3]
    rotation = torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64))
    move = torch.tensor(xi[3:], dtype=torch.float64)
    moved = [(c.double() @ rotation.T + move) for c in (query, points)]
    torch.testing.assert_close(ops.knn(*moved, k)[0], ops.knn(query, points, k)[0], rtol=0, atol=2e-4)


def test_reference_gradients() -> None:
    query, points = cloud(4, 17).double().requires_grad_(), cloud(6, 18).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda q, p: _reference.knn(q, p, 3)[0], (query, points))
    assert torch.autograd.gradcheck(lambda q, p: _reference.radius_search(q, p, 1.5)[0], (query, points))


@pytest.mark.parametrize("k", [1, 5, 40])
def test_knn_gradients_equal_the_reference(k: int) -> None:
    points = cloud(30, 19)
    query = torch.cat([cloud(10, 20), points[:3]])  # distances of zero too
    gradients = []
    for search in (lambda q, p: ops.knn(q, p, k, max_distance=1.0)[0], lambda q, p: _reference.knn(q, p, k, 1.0)[0]):
        q, p = query.clone().requires_grad_(), points.clone().requires_grad_()
        distances = search(q, p)
        weight = torch.linspace(0.5, 2, distances.numel()).reshape(distances.shape)
        torch.where(distances.isinf(), 0.0, weight * distances).sum().backward()
        gradients.append((q.grad, p.grad))
    for native, reference in zip(*gradients, strict=True):
        assert native.abs().max() > 0.5
        torch.testing.assert_close(native, reference, rtol=1e-5, atol=1e-6)


def test_radius_and_index_gradients_equal_the_reference() -> None:
    query, points = cloud(10, 21), cloud(40, 22)
    index = ops.SearchIndex(points)
    gradients = []
    for search in (
        lambda q, p: ops.radius_search(q, p, 1.0)[0],
        lambda q, p: _reference.radius_search(q, p, 1.0)[0],
        lambda q, p: index.radius(q, 1.0)[0],
    ):
        q, p = query.clone().requires_grad_(), points.clone().requires_grad_()
        distances = search(q, p)
        (torch.linspace(0.5, 2, len(distances)) * distances).sum().backward()
        gradients.append((q.grad, p.grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[2][0], gradients[1][0], rtol=1e-5, atol=1e-6)
    q = query.clone().requires_grad_()
    distances = index.knn(q, 3, 0.4)[0]
    assert torch.equal(distances, index.knn(query, 3, 0.4)[0])  # the same bits with and without a gradient
    distances[distances.isfinite()].sum().backward()
    expected = query.clone().requires_grad_()
    reference = _reference.knn(expected, points, 3, 0.4)[0]
    reference[reference.isfinite()].sum().backward()
    torch.testing.assert_close(q.grad, expected.grad, rtol=1e-5, atol=1e-6)
