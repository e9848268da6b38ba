"""Voxels, normals and covariances: against the reference twins, plain definitions and Open3D."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlc_reg import ops
from dlc_reg.ops import _reference


def cloud(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("voxel_size", [0.05, 0.3, 1.0, 100.0])
def test_voxels_equal_their_reference(voxel_size: float) -> None:
    points = cloud(3000)
    means, inverse = ops.voxel_groups(points, voxel_size)
    expected, expected_inverse = _reference.voxel_groups(points.double(), voxel_size)
    assert torch.equal(inverse, expected_inverse)
    torch.testing.assert_close(means.double(), expected, rtol=0, atol=3e-7)
    assert torch.equal(ops.voxel_downsample(points, voxel_size), means)


def test_voxels_equal_open3d() -> None:
    o3d = pytest.importorskip("open3d", exc_type=ImportError)
    points = cloud(5000, 1).double().numpy()
    theirs = np.asarray(o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points)).voxel_down_sample(0.3).points)
    ours = ops.voxel_downsample(points, 0.3)
    assert isinstance(ours, np.ndarray) and ours.shape == theirs.shape
    order = [np.lexsort(np.round(c, 4).T) for c in (ours, theirs)]
    np.testing.assert_allclose(ours[order[0]], theirs[order[1]], atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(0, 10**6), st.floats(0.01, 10))
def test_voxels_keep_the_centre_of_mass(n: int, seed: int, voxel_size: float) -> None:
    points = cloud(n, seed)
    means, inverse = ops.voxel_groups(points, voxel_size)
    assert torch.equal(inverse.unique(), torch.arange(len(means)))
    members = torch.bincount(inverse).double()[:, None]
    torch.testing.assert_close(
        (means.double() * members).mean(0), points.double().sum(0) / len(means), rtol=0, atol=1e-4
    )
    assert ((points - means[inverse]).abs() <= voxel_size * 1.001).all()


def test_voxel_gradients() -> None:
    points = cloud(60, 2)
    weight = cloud(60, 3)
    gradients = []
    for groups in (ops.voxel_groups, _reference.voxel_groups):
        p = points.clone().requires_grad_()
        means = groups(p, 1.0)[0]
        (means * weight[: len(means)]).sum().backward()
        gradients.append(p.grad)
    assert gradients[0].abs().max() > 0.1
    torch.testing.assert_close(gradients[0], gradients[1])
    double = cloud(12, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: _reference.voxel_groups(p, 1.0)[0], double)


@pytest.mark.parametrize(("k", "max_distance"), [(5, None), (20, None), (20, 0.4), (500, None)])
def test_normals_and_covariances_equal_their_references(k: int, max_distance: float | None) -> None:
    points = cloud(400, 5)
    limit = float("inf") if max_distance is None else max_distance
    covariances = ops.estimate_covariances(points, k, max_distance=max_distance)
    expected = _reference.estimate_covariances(points.double(), k, limit)
    assert covariances.shape == (400, 3, 3) and covariances.dtype == torch.float32
    torch.testing.assert_close(covariances.double(), expected, rtol=1e-5, atol=1e-6)
    normals = ops.estimate_normals(points, k, max_distance=max_distance)
    expected_normals = _reference.estimate_normals(points.double(), k, limit)
    spread = torch.linalg.eigvalsh(expected)
    clear = (spread[:, 1] - spread[:, 0] > 1e-3 * spread[:, 2]) | (spread[:, 2] == 0)
    assert clear.float().mean() > 0.9
    agreement = (normals.double() * expected_normals).sum(dim=1)[clear]
    torch.testing.assert_close(agreement.abs(), torch.ones_like(agreement), rtol=0, atol=1e-4)
    decided = expected_normals.abs().sort(dim=1).values[clear]
    decided = decided[:, 2] - decided[:, 1] > 1e-3  # the largest component, whose sign is fixed, is clear
    assert (agreement[decided] > 0).all()
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(400), rtol=0, atol=1e-6)


def test_a_plane_has_its_normal() -> None:
    flat = cloud(500, 6) * torch.tensor([1.0, 1.0, 0.0])
    axis = torch.tensor([0.6, 0.0, 0.8])
    rotation = torch.tensor([[0.8, 0.0, 0.6], [0.0, 1.0, 0.0], [-0.6, 0.0, 0.8]])
    torch.testing.assert_close(ops.estimate_normals(flat @ rotation.T), axis.expand(500, 3), rtol=0, atol=2e-4)


def test_normals_equal_open3d() -> None:
    o3d = pytest.importorskip("open3d", exc_type=ImportError)
    points = cloud(2000, 7).numpy()
    theirs = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points.astype(np.float64)))
    theirs.estimate_normals(o3d.geometry.KDTreeSearchParamKNN(20), fast_normal_computation=False)
    agreement = np.abs((np.asarray(theirs.normals) * ops.estimate_normals(points, 20)).sum(axis=1))
    assert np.quantile(agreement, 0.01) > 0.999
    theirs.estimate_covariances(o3d.geometry.KDTreeSearchParamKNN(20))
    np.testing.assert_allclose(ops.estimate_covariances(points, 20), np.asarray(theirs.covariances), atol=2e-5)


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_neighbours(n: int) -> None:
    assert torch.equal(ops.estimate_normals(cloud(n)), torch.tensor([[0.0, 0.0, 1.0]] * n))
    assert torch.equal(ops.estimate_covariances(cloud(n)), torch.zeros(n, 3, 3))


def test_points_in_one_place() -> None:
    same = torch.full((30, 3), 2.5)
    assert torch.equal(ops.estimate_normals(same), torch.tensor([[0.0, 0.0, 1.0]] * 30))
    assert torch.equal(ops.voxel_downsample(same, 0.1), same[:1])


def test_an_index_saves_the_tree_and_threads_change_nothing() -> None:
    points = cloud(5000, 8)
    index = ops.SearchIndex(points)
    for threads in (1, 2, 3):
        assert torch.equal(ops.estimate_normals(index, 10), ops.estimate_normals(points, 10, num_threads=threads))
        assert torch.equal(
            ops.estimate_covariances(index, 10, num_threads=threads), ops.estimate_covariances(points, 10)
        )
        assert torch.equal(ops.voxel_downsample(points, 0.1), ops.voxel_downsample(points, 0.1, num_threads=threads))


def test_morton_order_keeps_neighbours_together() -> None:
    points = cloud(4000, 11)
    order = ops.morton_order(points)
    assert torch.equal(order.sort().values, torch.arange(4000))
    step = points[order].diff(dim=0).norm(dim=1).mean()
    assert step < 0.2 * points.diff(dim=0).norm(dim=1).mean()
    # Seen from the finest bit they have, cells of a grid come in the order of their interleaved bits.
    grid = torch.tensor([[x, y, z] for z in (0.0, 1.0) for y in (0.0, 1.0) for x in (0.0, 1.0)])
    assert ops.morton_order(grid).tolist() == list(range(8))
    assert ops.morton_order(grid.numpy()[::-1]).tolist() == list(range(7, -1, -1))
    assert ops.morton_order(torch.empty(0, 3)).shape == (0,)


def test_numpy_in_numpy_out() -> None:
    points = cloud(50, 9)
    for function, argument in ((ops.estimate_normals, 5), (ops.estimate_covariances, 5), (ops.voxel_downsample, 0.5)):
        found = function(points.numpy(), argument)
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, function(points, argument).numpy())


def test_a_gradient_through_normals_is_refused() -> None:
    points = cloud(30, 10).requires_grad_()
    with pytest.raises(RuntimeError, match="local_geometry"):
        ops.estimate_normals(points).sum().backward()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(-10, 10))
def test_powers_of_two_scale_exactly(seed: int, exponent: int) -> None:
    points, scale = cloud(100, seed), 2.0**exponent
    assert torch.equal(ops.voxel_downsample(points * scale, 0.5 * scale), ops.voxel_downsample(points, 0.5) * scale)
    assert torch.equal(ops.estimate_covariances(points * scale, 8), ops.estimate_covariances(points, 8) * scale**2)
    assert torch.equal(ops.estimate_normals(points * scale, 8), ops.estimate_normals(points, 8))
