"""The operators with PyTorch3D's names: neighbours and samples, against formulas in NumPy, SciPy and PyTorch3D."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from dlc_reg import InputError, ops

SEEDS = st.integers(0, 2**32 - 1)


def clouds(seed, n=3, p=7, q=9, d=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, size, d, generator=generator, dtype=torch.float64).to(dtype) for size in (p, q))


def lengths_of(seed, n, p):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, p + 1, n))


def expected_knn(p1, p2, lengths1, lengths2, norm, k):
    """dists and idx by PyTorch3D's documentation, cloud by cloud in float64."""
    n, size, _ = p1.shape
    dists, idx = np.zeros((n, size, k)), np.zeros((n, size, k), int)
    for b in range(n):
        there = p2[b, : lengths2[b]].double().numpy()
        for i in range(lengths1[b]):
            off = there - p1[b, i].double().numpy()
            d = np.abs(off).sum(1) if norm == 1 else np.square(off).sum(1)
            order = np.argsort(d, kind="stable")[:k]
            dists[b, i, : len(order)], idx[b, i, : len(order)] = d[order], order
    return dists, idx


# --- knn_points and knn_gather ---------------------------------------------------------------------------------------
@settings(max_examples=40)
@given(
    SEEDS,
    st.integers(1, 4),
    st.integers(1, 12),
    st.sampled_from([1, 2]),
    st.sampled_from([2, 3, 8]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_knn_points_is_what_its_documentation_says(seed, n, k, norm, d, dtype):
    p1, p2 = clouds(seed, n, d=d, dtype=dtype)
    lengths1, lengths2 = lengths_of(seed, n, 7), lengths_of(seed + 1, n, 9)
    for cloud, lengths in ((p1, lengths1), (p2, lengths2)):
        cloud[torch.arange(cloud.shape[1]) >= lengths[:, None]] = torch.nan  # padding may hold anything
    dists, idx, knn = ops.knn_points(p1, p2, lengths1, lengths2, norm=norm, K=k, return_nn=True)
    expected, at = expected_knn(p1, p2, lengths1, lengths2, norm, k)
    assert dists.dtype == dtype and idx.dtype == torch.int64 and knn.shape == (n, 7, k, d)
    np.testing.assert_allclose(dists, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(idx, at)
    for b in range(n):
        for i in range(lengths1[b]):
            for j in range(k):
                row = p2[b, at[b, i, j]] if j < lengths2[b] else torch.zeros(d, dtype=dtype)
                assert torch.equal(knn[b, i, j], row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_knn_points_on_larger_clouds_is_scipys(dtype):
    p1, p2 = clouds(0, 2, 3000, 2500, dtype=dtype)
    dists, idx, knn = ops.knn_points(p1, p2, K=5)
    assert knn is None
    for b in range(2):
        d, at = cKDTree(p2[b].numpy()).query(p1[b].numpy(), 5)
        np.testing.assert_allclose(dists[b].sqrt(), d, rtol=1e-5, atol=1e-6)
        assert (idx[b].numpy() == at).mean() > 0.9999


def test_every_part_is_compared(monkeypatch):
    from dlc_reg.ops import _pytorch3d

    p1, p2 = clouds(1, 2, 20, 15, 5)
    whole = ops.knn_points(p1, p2, K=4), ops.ball_query(p1, p2, K=4, radius=2.0)
    monkeypatch.setattr(_pytorch3d, "_ENTRIES", 2 * 15 * 3)  # three rows at a time
    parts = ops.knn_points(p1, p2, K=4), ops.ball_query(p1, p2, K=4, radius=2.0)
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one.dists, other.dists) and torch.equal(one.idx, other.idx)


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_gradients_of_knn_points(norm, k):
    """To both clouds, more neighbours than points and padding included, against differences in float64."""
    p1, p2 = clouds(2, 2, 4, 5, dtype=torch.float64)
    lengths = torch.tensor([4, 2]), torch.tensor([5, 3])
    p1.requires_grad_(), p2.requires_grad_()

    def both(a, b):
        found = ops.knn_points(a, b, *lengths, norm=norm, K=k, return_nn=True)
        return found.dists, found.knn

    assert torch.autograd.gradcheck(both, (p1, p2))
    assert torch.autograd.gradgradcheck(lambda a, b: both(a, b)[0], (p1, p2))


def test_gradients_of_the_native_search_are_those_of_the_formula():
    p1, p2 = clouds(3, 2, 30, 40)
    p1.requires_grad_(), p2.requires_grad_()
    weight = torch.randn(2, 30, 4)
    got = torch.autograd.grad((ops.knn_points(p1, p2, K=4).dists * weight).sum(), (p1, p2))
    squares = (p1[:, :, None] - p2[:, None]).square().sum(-1)
    expected = torch.autograd.grad((squares.topk(4, largest=False).values * weight).sum(), (p1, p2))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_padding_that_holds_nan_has_no_gradient():
    p1, p2 = clouds(4, 2)
    p1[1, 3:], p2[0, 5:] = torch.nan, torch.nan
    p1.requires_grad_(), p2.requires_grad_()
    lengths = torch.tensor([7, 3]), torch.tensor([5, 9])
    for find in (ops.knn_points, ops.ball_query):
        found = find(p1, p2, *lengths, K=6, return_nn=True)
        first, second = torch.autograd.grad(found.dists.sum() + found.knn[:, :3].sum(), (p1, p2))
        assert torch.isfinite(first).all() and torch.isfinite(second).all()
        assert (first[1, 3:] == 0).all() and (second[0, 5:] == 0).all()


def test_knn_gather_takes_values_of_any_kind():
    _, x = clouds(5, 2, 4, 6, 5)
    idx = torch.tensor([[[0, 5, 2]], [[1, 1, 0]]])
    found = ops.knn_gather(x, idx, torch.tensor([6, 2]))
    assert torch.equal(found[0, 0], x[0, [0, 5, 2]])
    assert torch.equal(found[1, 0, :2], x[1, [1, 1]]) and (found[1, 0, 2] == 0).all()


# --- ball_query ------------------------------------------------------------------------------------------------------
@settings(max_examples=40)
@given(SEEDS, st.integers(1, 4), st.integers(1, 12), st.floats(0, 4), st.sampled_from([2, 3, 6]))
def test_ball_query_is_what_its_documentation_says(seed, n, k, radius, d):
    p1, p2 = clouds(seed, n, d=d, dtype=torch.float64)
    lengths1, lengths2 = lengths_of(seed, n, 7), lengths_of(seed + 1, n, 9)
    dists, idx, knn = ops.ball_query(p1, p2, lengths1, lengths2, K=k, radius=radius)
    for b in range(n):
        for i in range(7):
            squares = (p2[b, : lengths2[b]] - p1[b, i]).square().sum(1)
            near = (squares < radius**2).nonzero()[:, 0][:k] if i < lengths1[b] else torch.zeros(0, dtype=torch.int64)
            count = len(near)
            assert idx[b, i].tolist() == near.tolist() + [-1] * (k - count)
            torch.testing.assert_close(dists[b, i, :count], squares[near])
            assert (dists[b, i, count:] == 0).all() and (knn[b, i, count:] == 0).all()
            assert torch.equal(knn[b, i, :count], p2[b, near])


def test_a_point_at_the_radius_is_outside():
    p1, p2 = torch.zeros(1, 1, 3), torch.tensor([[[0.5, 0, 0], [0.25, 0, 0]]])
    assert ops.ball_query(p1, p2, K=2, radius=0.5).idx.tolist() == [[[1, -1]]]
    assert ops.ball_query(p1, p2, K=2, radius=0.5, return_nn=False).knn is None


def test_gradients_of_ball_query():
    p1, p2 = clouds(6, 2, 4, 5, dtype=torch.float64)
    p1.requires_grad_(), p2.requires_grad_()

    def both(a, b):
        found = ops.ball_query(a, b, torch.tensor([4, 2]), torch.tensor([5, 3]), K=3, radius=1.7)
        return found.dists, found.knn

    assert torch.autograd.gradcheck(both, (p1, p2))


# --- sample_farthest_points ------------------------------------------------------------------------------------------
@settings(max_examples=40)
@given(SEEDS, st.integers(1, 4), st.lists(st.integers(1, 12), min_size=4, max_size=4))
def test_farthest_points_are_what_the_documentation_says(seed, n, wanted):
    _, points = clouds(seed, n, dtype=torch.float64)
    lengths = lengths_of(seed, n, 9)
    points[torch.arange(9) >= lengths[:, None]] = torch.nan
    taken, idx = ops.sample_farthest_points(points, lengths, K=wanted[:n])
    assert idx.shape == (n, max(wanted[:n])) and taken.shape == (n, max(wanted[:n]), 3)
    for b in range(n):
        cloud, chosen = points[b, : lengths[b]].numpy(), []
        for _ in range(min(wanted[b], int(lengths[b]))):
            gaps = np.square(cloud[:, None] - cloud[chosen]).sum(2).min(1) if chosen else None
            chosen.append(0 if gaps is None else int(gaps.argmax()))
        assert idx[b].tolist() == chosen + [-1] * (idx.shape[1] - len(chosen))
        assert torch.equal(taken[b, : len(chosen)], points[b, chosen]) and (taken[b, len(chosen) :] == 0).all()


def test_farthest_points_start_at_random_where_asked_and_have_gradients():
    _, points = clouds(7, 4, 9, 200, dtype=torch.float64)
    torch.manual_seed(0)
    starts = torch.cat([ops.sample_farthest_points(points, K=2, random_start_point=True)[1][:, 0] for _ in range(5)])
    assert len(starts.unique()) > 5 and (ops.sample_farthest_points(points, K=3)[1][:, 0] == 0).all()
    few = points[:2, :6].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: ops.sample_farthest_points(p, torch.tensor([6, 2]), K=3)[0], (few,))


# --- bad input -------------------------------------------------------------------------------------------------------
def test_bad_input_is_named():
    p1, p2 = clouds(8)
    spoiled = p1.clone()
    spoiled[1, 2, 0] = torch.nan
    long = torch.tensor([1, 2, 10])
    for call, argument in (
        (lambda: ops.knn_points(p1[0], p2), "p1"),
        (lambda: ops.knn_points(p1.numpy(), p2), "p1"),
        (lambda: ops.knn_points(p1, p2[:2]), "p2"),
        (lambda: ops.knn_points(p1, p2[..., :2]), "p2"),
        (lambda: ops.knn_points(p1, p2.double()), "p2"),
        (lambda: ops.knn_points(p1.half(), p2), "p1"),
        (lambda: ops.knn_points(spoiled, p2), "p1"),
        (lambda: ops.knn_points(p2, spoiled), "p2"),
        (lambda: ops.knn_points(spoiled, p1, norm=1), "p1"),
        (lambda: ops.knn_points(p1, p2, lengths1=long), "lengths1"),
        (lambda: ops.knn_points(p1, p2, lengths2=long), "lengths2"),
        (lambda: ops.knn_points(p1, p2, lengths2=torch.tensor([1.0, 2, 3])), "lengths2"),
        (lambda: ops.knn_points(p1, p2, lengths2=torch.tensor([1, 2])), "lengths2"),
        (lambda: ops.knn_points(p1, p2, K=0), "K"),
        (lambda: ops.knn_points(p1, p2, norm=3), "norm"),
        (lambda: ops.sample_farthest_points(spoiled, K=3), "points"),
        (lambda: ops.sample_farthest_points(p1, K=[2.7, 3, 3]), "K"),
        (lambda: ops.ball_query(p1, p2, radius=-1), "radius"),
        (lambda: ops.ball_query(p1, p2, K=0), "K"),
        (lambda: ops.knn_gather(p1, torch.full((3, 1, 1), 7)), "idx"),
        (lambda: ops.knn_gather(p1, torch.zeros(2, 1, 1, dtype=torch.int64)), "idx"),
        (lambda: ops.knn_gather(p1[0], torch.zeros(3, 1, 1, dtype=torch.int64)), "x"),
        (lambda: ops.sample_farthest_points(p1[0]), "points"),
        (lambda: ops.sample_farthest_points(p1, K=[1, 2]), "K"),
        (lambda: ops.sample_farthest_points(p1, K="50"), "K"),
        (lambda: ops.sample_farthest_points(p1, long), "lengths"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.argument == argument, str(caught.value)


def test_nothing_to_search():
    empty = torch.zeros(2, 0, 3)
    some = torch.randn(2, 4, 3)
    for a, b in ((empty, some), (some, empty), (empty, empty)):
        found = ops.knn_points(a, b, K=2, return_nn=True)
        assert found.dists.shape == (2, a.shape[1], 2) and (found.dists == 0).all() and (found.knn == 0).all()
        ball = ops.ball_query(a, b, K=2)
        assert ball.idx.shape == (2, a.shape[1], 2) and (ball.idx == -1).all()


# --- PyTorch3D itself ------------------------------------------------------------------------------------------------
def test_pytorch3d_agrees():
    theirs = pytest.importorskip("pytorch3d.ops", reason="PyTorch3D is not installed")
    p1, p2 = clouds(9, 3, 50, 60)
    lengths = torch.tensor([50, 20, 7]), torch.tensor([60, 4, 30])
    for norm in (1, 2):
        ours = ops.knn_points(p1, p2, *lengths, norm=norm, K=6, return_nn=True)
        for a, b in zip(ours, theirs.knn_points(p1, p2, *lengths, norm=norm, K=6, return_nn=True), strict=True):
            torch.testing.assert_close(a, b)
    ours = ops.ball_query(p1, p2, *lengths, K=6, radius=1.0)
    for a, b in zip(ours, theirs.ball_query(p1, p2, *lengths, K=6, radius=1.0), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(
        ops.sample_farthest_points(p1, lengths[0], K=[5, 30, 2]),
        theirs.sample_farthest_points(p1, lengths[0], K=[5, 30, 2]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
