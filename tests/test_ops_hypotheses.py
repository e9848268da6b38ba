"""Descriptors, matches and poses from matches: against their twins, Open3D and cases known beforehand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surfaces import SEEDS, generator, planted, rigid, terrain, turned

from dlc_reg import ops
from dlc_reg.ops import _hypotheses_reference as reference
from dlc_reg.ops._hypotheses_reference import moved

pytestmark = pytest.mark.usefixtures("one_thread_for_torch")


def descriptors(points: torch.Tensor, normals: torch.Tensor, radius: float, oriented: bool) -> torch.Tensor:
    return ops.fpfh(ops.SearchIndex(points), normals, radius, oriented=oriented)


def assert_alike(a: torch.Tensor, b: torch.Tensor, atol: float = 0.02) -> None:
    """Rows of descriptors agree but for few pairs that rounding moved over the edge of a bin."""
    apart = (a.double() - b.double()).abs().amax(1)
    assert float((apart < atol).double().mean()) > 0.6, apart.sort().values[:: len(a) // 10]
    assert float(apart.mean()) < 2 and float((a.double() - b.double()).abs().mean()) < 0.1


# descriptors


@pytest.mark.parametrize("oriented", [True, False])
@pytest.mark.parametrize("flip", [False, True])
def test_fpfh_equals_its_twin(oriented: bool, flip: bool) -> None:
    points, normals = terrain(500)
    normals = torch.nn.functional.normalize(normals + 0.3 * torch.randn(500, 3, generator=generator(1)), dim=1)
    if flip:
        normals = normals * (1 - 2 * (torch.arange(500) % 2))[:, None]
    found = descriptors(points, normals, 0.3, oriented)
    expected = reference.fpfh(points.double(), normals.double(), 0.3, oriented=oriented)
    assert found.shape == (500, 33) and found.dtype == torch.float32
    apart = (found - expected).abs().amax(1)
    assert float((apart < 1e-3).double().mean()) > 0.95  # the rest: a value at the edge of a bin
    torch.testing.assert_close(found.reshape(-1, 3, 11).sum(2), torch.full((500, 3), 200.0), rtol=0, atol=1e-3)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_oriented_fpfh_equals_open3d(noise: float) -> None:
    o3d = pytest.importorskip("open3d", exc_type=ImportError)
    points, normals = terrain(800, 2)
    normals = torch.nn.functional.normalize(normals + noise * torch.randn(800, 3, generator=generator(3)), dim=1)
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points.double().numpy()))
    cloud.normals = o3d.utility.Vector3dVector(normals.double().numpy())
    theirs = o3d.pipelines.registration.compute_fpfh_feature(cloud, o3d.geometry.KDTreeSearchParamRadius(0.25))
    found = descriptors(points, normals, 0.25, True)
    apart = (found - torch.tensor(np.asarray(theirs.data).T)).abs().amax(1)
    assert float((apart < 1e-3).double().mean()) > 0.95


@settings(max_examples=15)
@given(SEEDS, st.booleans())
def test_fpfh_ignores_rigid_motion_order_and_scale(seed: int, oriented: bool) -> None:
    points, normals = terrain(300, seed)
    normals = torch.nn.functional.normalize(normals + 0.2 * torch.randn(300, 3, generator=generator(seed)), dim=1)
    features = descriptors(points, normals, 0.4, oriented)
    assert_alike(descriptors(*turned(rigid(seed), points, normals), 0.4, oriented), features)
    order = torch.randperm(300, generator=generator(seed))
    shuffled = descriptors(points[order], normals[order], 0.4, oriented)
    torch.testing.assert_close(shuffled, features[order], rtol=0, atol=1e-3)
    assert_alike(descriptors(8 * points, normals, 8 * 0.4, oriented), features, atol=1e-3)


@settings(max_examples=15)
@given(SEEDS)
def test_sign_free_fpfh_ignores_the_signs_of_normals(seed: int) -> None:
    points, normals = terrain(300, seed)
    normals = torch.nn.functional.normalize(normals + 0.5 * torch.randn(300, 3, generator=generator(seed)), dim=1)
    signs = torch.randint(0, 2, (300, 1), generator=generator(seed)) * 2 - 1
    features, flipped = (descriptors(points, n, 0.4, False) for n in (normals, normals * signs))
    assert_alike(flipped, features)
    oriented, wrong = (descriptors(points, n, 0.4, True) for n in (normals, normals * signs))
    assert float((oriented - wrong).abs().amax(1).median()) > 5  # what it is that they ignore


def test_fpfh_of_known_pairs() -> None:
    # Two points with parallel normals across the line: theta = 0, alpha = 0, phi = 0: the middle bins.
    points, up = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]] * 2)
    middle = torch.zeros(3, 11)
    middle[:, 5] = 200
    for oriented in (True, False):
        assert torch.equal(descriptors(points, up, 1.5, oriented).reshape(2, 3, 11), middle.expand(2, 3, 11))
        assert not descriptors(points, up, 1.0, oriented).any()  # strictly within the radius
    # One leans by 60 degrees against the line, the other not: phi = cos 60 = 0.5, which is bin 8; the leaning one is u,
    # and from it to the other's normal the turn about v is -30 degrees: bin floor(11 (180 - 30) / 360) = 4.
    lean = torch.tensor([[0.5, 0.0, math.sqrt(0.75)], [0.0, 0.0, 1.0]])
    histograms = descriptors(points, lean, 1.5, True).reshape(2, 3, 11)
    assert histograms.argmax(2).tolist() == [[4, 5, 8]] * 2 and (histograms.amax(2) == 200).all()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fpfh_of_few_or_equal_points(n: int) -> None:
    same = torch.full((n, 3), 0.7)
    up = torch.tensor([[0.0, 0.0, 1.0]] * n)
    for oriented in (True, False):
        assert not descriptors(same, up, 1.0, oriented).any()
        tiny = descriptors(torch.rand(n, 3, generator=generator(n)) * 1e-20, up, 1.0, oriented)
        assert tiny.isfinite().all()


# matches


@settings(max_examples=40)
@given(st.integers(0, 150), st.integers(0, 150), st.integers(1, 40), SEEDS)
def test_mutual_matches_are_those_of_brute_force(n: int, m: int, size: int, seed: int) -> None:
    # Small integers leave nothing to rounding, and many ties.
    a, b = (torch.randint(-6, 7, (k, size), generator=generator(seed + k)).float() for k in (n, m))
    pairs, squared = ops.mutual_matches(a, b)
    if n == 0 or m == 0:
        assert pairs.shape == (0, 2) and squared.shape == (0,)
        return
    indices, distances = ops.nearest_features(a, b)
    expected, expected_distances = reference.nearest_features(a, b)
    assert torch.equal(indices, expected) and torch.equal(distances, expected_distances)
    expected_pairs, expected_squared = reference.mutual_matches(a, b)
    assert torch.equal(pairs, expected_pairs) and torch.equal(squared, expected_squared)


def test_matches_of_real_descriptors_are_those_of_brute_force() -> None:
    a, b = (descriptors(*terrain(400, seed), 0.3, True) for seed in (15, 16))
    pairs, squared = ops.mutual_matches(a, b)
    expected, expected_squared = reference.mutual_matches(a.double(), b.double())
    assert torch.equal(pairs, expected) and len(pairs) > 50
    torch.testing.assert_close(squared.double(), expected_squared, rtol=1e-4, atol=1e-3)


def test_the_nearest_of_equal_rows_is_the_first() -> None:
    b = torch.randn(50, 33, generator=generator(0)).repeat(4, 1)
    indices, squared = ops.nearest_features(b[:50], b)
    assert indices.tolist() == list(range(50)) and not squared.any()
    indices, squared = ops.nearest_features(b[:3], b[:0])
    assert indices.tolist() == [-1] * 3 and squared.tolist() == [math.inf] * 3


# poses from matches


@settings(max_examples=20)
@given(SEEDS)
def test_the_planted_pose_is_found_among_four_fifths_of_outliers(seed: int) -> None:
    source, target, pose = planted(300, 60, seed, noise=0.005)
    poses, support = ops.propose_poses(source, target, 0.04)
    torch.testing.assert_close(poses[0], pose, rtol=0, atol=0.01)  # its seed is in the most triangles
    assert int(support[0]) >= max(58, int(support.max()) - 3)
    identity = torch.eye(3, dtype=torch.float64).expand(len(poses), 3, 3)
    torch.testing.assert_close(poses[:, :3, :3] @ poses[:, :3, :3].mT, identity, rtol=0, atol=1e-9)
    assert torch.equal(poses[:, 3], poses.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(poses), 4))
    found = moved(poses[0], source.double()) - target.double()
    assert int((found.norm(dim=1) < 0.04).sum()) == int(support[0])


@pytest.mark.parametrize(
    ("n", "inliers", "max_seeds", "max_clique"),
    [(40, 15, 300, 30), (200, 80, 300, 30), (200, 80, 20, 4), (60, 0, 9, 9)],
)
def test_propose_poses_equals_its_twin(n: int, inliers: int, max_seeds: int, max_clique: int) -> None:
    source, target, _ = planted(n, inliers, n + inliers, noise=0.01)
    limits = {"max_seeds": max_seeds, "max_clique": max_clique}
    poses, support = ops.propose_poses(source, target, 0.08, **limits)
    expected, expected_support = reference.propose_poses(source.double(), target.double(), 0.08, **limits)
    assert torch.equal(support, expected_support) and len(support) > 3
    torch.testing.assert_close(poses, expected, rtol=0, atol=1e-6)


def test_what_a_well_supported_pose_explains_is_not_proposed_again() -> None:
    source, target, _ = planted(200, 200, 7)
    poses, support = ops.propose_poses(source, target, 0.02)
    assert len(poses) == 32 and (support == 200).all()  # the first round of seeds, no more
    few = ops.propose_poses(source[:50], target[:50], 0.02)[1]
    assert len(few) > 40 and (few == 50).all()  # too few supporters to be sure


@settings(max_examples=20)
@given(SEEDS)
def test_proposals_follow_motion_order_and_scale(seed: int) -> None:
    source, target, _ = planted(100, 40, seed, noise=0.002)
    best = ops.propose_poses(source, target, 0.05)[0][0]
    motion = rigid(seed + 9)
    there = ops.propose_poses(source, moved(motion, target.double()).float(), 0.05)[0][0]
    torch.testing.assert_close(there, motion @ best, rtol=0, atol=5e-3)
    order = torch.randperm(100, generator=generator(seed))
    torch.testing.assert_close(ops.propose_poses(source[order], target[order], 0.05)[0][0], best, rtol=0, atol=5e-3)
    scaled, scaled_support = ops.propose_poses(4 * source, 4 * target, 0.2)
    poses, support = ops.propose_poses(source, target, 0.05)
    assert torch.equal(scaled_support, support)
    poses[:, :3, 3] *= 4
    torch.testing.assert_close(scaled, poses, rtol=0, atol=1e-9)


def test_too_few_matches_propose_nothing() -> None:
    corner = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    for n in range(3):
        poses, support = ops.propose_poses(corner[:n], corner[:n], 0.1)
        assert poses.shape == (0, 4, 4) and support.shape == (0,)
    poses, support = ops.propose_poses(corner, corner + 5, 0.1)
    assert support.tolist() == [3, 3, 3]
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = 5
    torch.testing.assert_close(poses, shift.expand(3, 4, 4))
    assert len(ops.propose_poses(corner.repeat(5, 1)[::3], corner.repeat(5, 1)[::3], 0.1)[0]) == 0  # in one place
    line = torch.arange(9.0)[:, None].expand(9, 3)
    poses, _ = ops.propose_poses(line, line, 0.1)  # a pose that matches cannot determine is one of those that fit
    assert poses.isfinite().all() and len(poses) > 0
    torch.testing.assert_close(moved(poses[0], line.double()), line.double(), rtol=0, atol=1e-9)
