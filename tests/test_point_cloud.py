"""The container's methods: parts, spacing, thinning, normals, its search tree, copies."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from dlc_reg.geometry import PointCloud
from dlc_reg.io import RawCloud

UTM = np.array([4.1e5, 5.8e6, 1e7])


@pytest.fixture
def points(rng):
    return rng.normal(size=(100, 3))


def test_select_keeps_what_belongs_together(points):
    normals = points / np.linalg.norm(points, axis=1, keepdims=True)
    cloud = PointCloud.from_any(RawCloud(points, normals, np.abs(normals), np.tile(np.eye(3), (100, 1, 1))))
    chosen = cloud.select(np.array([7, 3, 7]))
    np.testing.assert_allclose(chosen.to_absolute(), points[[7, 3, 7]], atol=3e-7)
    np.testing.assert_allclose(chosen.normals, normals[[7, 3, 7]], atol=1e-7)
    assert chosen.covariances.tolist() == [[1, 0, 0, 1, 0, 1]] * 3 and chosen.kept.tolist() == [7, 3, 7]
    mask = cloud.points[:, 0] > 0
    assert torch.equal(cloud.select(mask).points, cloud.points[mask])
    assert chosen.select(torch.tensor([1])).kept.tolist() == [3]


def test_spacing(rng):
    grid = np.stack(np.meshgrid(*[np.arange(20) * 0.25] * 2, [0.0]), -1).reshape(-1, 3)
    assert PointCloud.from_any(grid).spacing == pytest.approx(0.25)
    assert PointCloud.from_any(np.vstack([grid, grid, grid])).spacing == pytest.approx(0.25)  # copies are no spacing
    assert PointCloud.from_any(np.repeat(grid, 30, axis=0)).spacing == pytest.approx(0.25)
    big = rng.uniform(size=(30_000, 3))
    from scipy.spatial import cKDTree

    exact = np.median(cKDTree(big).query(big, k=2)[0][:, 1])
    assert PointCloud.from_any(big).spacing == pytest.approx(exact, rel=0.03)


def test_voxel_downsample_averages_by_voxel(rng):
    points = rng.uniform(0, 1, (2000, 3))
    normals = rng.normal(size=(2000, 3))
    colors = rng.uniform(size=(2000, 3))
    cloud = PointCloud.from_any(RawCloud(points + UTM, normals, colors, np.einsum("ni,nj->nij", normals, normals)))
    small = cloud.voxel_downsample(0.3)
    cells = np.floor((cloud.points.numpy() - cloud.points.numpy().min(0) + 0.15) / 0.3).astype(int)  # Open3D's grid
    unique, inverse = np.unique(cells, axis=0, return_inverse=True)
    assert len(small) == len(unique) and small.kept is None
    by_place = {tuple(np.round(p, 4)): i for i, p in enumerate(small.points.numpy())}
    for voxel in range(len(unique)):
        members = np.flatnonzero(inverse.ravel() == voxel)
        row = by_place[tuple(np.round(cloud.points.numpy()[members].mean(0, np.float64).astype(np.float32), 4))]
        mean = cloud.normals.numpy()[members].mean(0)
        np.testing.assert_allclose(small.normals[row], mean / np.linalg.norm(mean), atol=1e-4)
        np.testing.assert_allclose(small.colors[row], colors[members].mean(0), atol=1e-5)
        np.testing.assert_allclose(small.covariances[row], cloud.covariances.numpy()[members].mean(0), atol=1e-4)
    np.testing.assert_allclose(small.to_absolute().mean(0), points.mean(0) + UTM, atol=0.1)


def test_opposite_normals_in_a_voxel_do_not_cancel_to_nothing():
    points = np.array([[0, 0, 0], [0.01, 0, 0], [5, 0, 0], [0, 5, 0]])
    normals = np.array([[0, 0, 1], [0, 0, -1], [1, 0, 0], [0, 1, 0]])
    small = PointCloud.from_any(RawCloud(points, normals.astype(float))).voxel_downsample(1)
    np.testing.assert_allclose(torch.linalg.vector_norm(small.normals, dim=1), 1)


def test_normals_face_the_viewpoint(rng):
    sphere = rng.normal(size=(800, 3))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    inside = PointCloud.from_any(3 * sphere + UTM, viewpoint=UTM).with_normals(12)
    assert (inside.normals.numpy() * sphere).sum(1).max() < -0.9
    front = sphere[sphere[:, 2] > 0.3]
    outside = PointCloud.from_any(front + UTM, viewpoint=UTM + np.array([0, 0, 1000])).with_normals(12)
    assert (outside.normals.numpy() * front).sum(1).min() > 0.6
    unknown = PointCloud.from_any(sphere).with_normals(12)
    assert np.abs((unknown.normals.numpy() * sphere).sum(1)).min() > 0.9 and unknown.viewpoint is None


def test_given_normals_are_kept_and_turned(rng):
    sphere = rng.normal(size=(200, 3))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    cloud = PointCloud.from_any(RawCloud(sphere, sphere))
    assert torch.equal(cloud.with_normals().normals, cloud.normals)
    assert torch.equal(dataclasses.replace(cloud, viewpoint=np.zeros(3)).with_normals().normals, -cloud.normals)


def test_a_cloud_can_be_pickled_and_shown_and_not_changed(points):
    cloud = PointCloud.from_any(points, name="scan", viewpoint=[0, 0, 0])
    again = pickle.loads(pickle.dumps(cloud))
    assert torch.equal(again.points, cloud.points) and again.viewpoint.tolist() == [0, 0, 0]
    assert repr(cloud) == "PointCloud(scan: 100 points, viewpoint)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        cloud.name = "other"


def test_the_search_tree_is_built_once_and_stays_with_the_points(points):
    cloud = PointCloud.from_any(points)
    index = cloud.search_index()
    assert cloud.search_index(2) is index and torch.equal(index.points, cloud.points)
    assert cloud.with_normals().search_index() is index
    assert cloud.attach(colors=torch.zeros(100, 3)).search_index() is index
    assert torch.equal(cloud.select(np.array([7, 3, 1])).search_index().points, cloud.points[[7, 3, 1]])
    fewer = cloud.voxel_downsample(1.0)
    assert torch.equal(fewer.search_index().points, fewer.points) and len(fewer) < 100
    assert dataclasses.replace(cloud, points=2 * cloud.points).search_index() is not index
    again = pickle.loads(pickle.dumps(cloud))
    assert len(pickle.dumps(again)) == len(pickle.dumps(cloud)) < 2 * len(pickle.dumps(cloud.points))
    assert torch.equal(again.search_index().knn(cloud.points)[1], torch.arange(100)[:, None])
