"""Features and their matches by Open3D's names, without Open3D: FPFH's readable twin, matches, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_objectives import wavy

from dlc_reg.errors import InputError
from dlc_reg.ops import _hypotheses_reference as reference
from dlc_reg.pipelines import registration as reg


@pytest.fixture(scope="module")
def cloud():
    return wavy(400, 0)


def normals_of(cloud):
    return cloud.normals.double()


def test_fpfh_is_the_readable_twins(cloud):
    feature = reg.compute_fpfh_feature(cloud, 0.4)
    expected = reference.fpfh(torch.from_numpy(cloud.to_absolute()), normals_of(cloud), 0.4, oriented=True)
    assert (feature.dimension(), feature.num()) == (33, 400)
    assert expected.abs().max() > 50
    np.testing.assert_allclose(feature.data, expected.T.numpy(), atol=1e-9)


def test_neighbours_by_number_radius_or_both(cloud):
    both = reg.compute_fpfh_feature(cloud, (0.4, 1000)).data
    assert np.array_equal(both, reg.compute_fpfh_feature(cloud, 0.4).data)
    by_number = reg.compute_fpfh_feature(cloud, (None, 12)).data
    assert np.array_equal(by_number, reg.compute_fpfh_feature(cloud, (100.0, 12)).data)
    assert not np.allclose(by_number, both)


def test_histograms_sum_to_two_hundred_and_lonely_points_have_none():
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [50.0, 0, 0]])
    cloud = {"positions": points, "normals": np.tile([0.0, 0, 1], (4, 1))}
    data = reg.compute_fpfh_feature(cloud, 2.0).data
    np.testing.assert_allclose(data[:, :3].reshape(3, 11, 3).sum(axis=1), 200.0)
    assert np.array_equal(data[:, 3], np.zeros(33))


def test_indices_select_columns(cloud):
    every = reg.compute_fpfh_feature(cloud, 0.3).data
    some = reg.compute_fpfh_feature(cloud, 0.3, [7, 3, 3])
    assert np.array_equal(some.data, every[:, [3, 7]])
    feature = reg.Feature()
    feature.data = every
    assert np.array_equal(feature.select_by_index([0, 5], invert=True).data, np.delete(every, [0, 5], axis=1))
    with pytest.raises(InputError, match="indices: got 400 to 400"):
        feature.select_by_index([400])


def test_a_feature_copies_resizes_and_prints():
    feature = reg.Feature()
    feature.resize(2, 3)
    assert np.array_equal(feature.data, np.zeros((2, 3)))
    other = reg.Feature(feature)
    other.data[0, 0] = 1.0
    assert feature.data[0, 0] == 0.0
    assert repr(other) == "Feature class with dimension = 2 and num = 3\nAccess its data via data member."
    with pytest.raises(InputError, match="data: got shape"):
        feature.data = np.zeros(3)


def test_any_number_of_threads_gives_the_same_bits(cloud):
    one, two = (reg.compute_fpfh_feature(cloud, (0.4, 30), num_threads=n).data for n in (1, 2))
    assert np.array_equal(one, two)


@pytest.mark.parametrize("mutual", [False, True])
def test_matches_are_the_nearest_by_brute_force(mutual):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 60)), rng.normal(size=(5, 50))
    apart = np.linalg.norm(a[:, :, None] - b[:, None], axis=0)
    forward, backward = apart.argmin(axis=1), apart.argmin(axis=0)
    expected = [(i, j) for i, j in enumerate(forward) if not mutual or backward[j] == i]
    found = reg.correspondences_from_features(a, b, mutual)
    assert found.dtype == np.int32
    assert found.tolist() == [list(pair) for pair in expected]


def test_too_few_mutual_matches_fall_back_with_a_warning():
    a = np.arange(10.0)[None]
    b = np.array([[0.0, 100.0]])  # only 0 and 0 are each other's nearest
    assert reg.correspondences_from_features(a, b, True, 0.1).tolist() == [[0, 0]]
    with pytest.warns(UserWarning, match="1 of 10 descriptors"):
        found = reg.correspondences_from_features(a, b, True, 0.5)
    assert len(found) == 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((np.zeros((5, 3)), 0.1), "without normals"),
        (({"positions": np.zeros((5, 3)), "normals": np.full((5, 3), np.nan)}, 0.1), "non-finite normals"),
        (({"positions": np.zeros((5, 3)), "normals": np.ones((4, 3))}, 0.1), r"normals of shape \(4, 3\)"),
        ((wavy(10, 0), -1.0), "radius -1"),
        ((wavy(10, 0), (None, 0)), "0 neighbours"),
        ((wavy(10, 0), (None, None)), "neither a radius nor a number"),
    ],
)
def test_bad_input_is_named(arguments, words):
    with pytest.raises(InputError, match=words):
        reg.compute_fpfh_feature(*arguments)


def test_wrong_types_are_type_errors():
    with pytest.raises(TypeError, match="search_param: got str"):
        reg.compute_fpfh_feature(wavy(10, 0), "radius")
    with pytest.raises(TypeError, match="source_features: got int"):
        reg.correspondences_from_features(3, np.zeros((2, 2)))
    with pytest.raises(InputError, match="descriptors of length 3"):
        reg.correspondences_from_features(np.zeros((2, 4)), np.zeros((3, 4)))


def test_an_empty_cloud_has_no_features():
    feature = reg.compute_fpfh_feature(np.zeros((0, 3)), 0.1)
    assert (feature.dimension(), feature.num()) == (33, 0)
    assert reg.correspondences_from_features(feature, feature).shape == (0, 2)
