"""RANSAC, its checkers and FGR by Open3D's names, without Open3D: known poses among outliers, seeds, limits, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_objectives import pose, wavy

from dlc_reg.errors import InputError
from dlc_reg.iterate import Status
from dlc_reg.manifold import so3_exp
from dlc_reg.pipelines import registration as reg

TRUTH = pose([1.5, -0.8, 2.0], [3.0, -1.0, 0.5])


def matched(share, seed=0, n=300, truth=TRUTH):
    """Source, target and correspondences of which `share` are right; the rest are random."""
    rng = np.random.default_rng(seed)
    target = rng.uniform(-1, 1, (n, 3))
    inverse = np.linalg.inv(truth)
    source = target @ inverse[:3, :3].T + inverse[:3, 3] + rng.normal(0, 1e-3, (n, 3))
    partners = np.arange(n)
    wrong = rng.permutation(n)[round(share * n) :]
    partners[wrong] = rng.integers(0, n, len(wrong))
    return source, target, np.stack([np.arange(n), partners], axis=1)


def gap(result, truth=TRUTH):
    return np.abs(result.transformation - truth).max()


def ransac(source, target, corres, *arguments, distance=0.02, **options):
    return reg.registration_ransac_based_on_correspondence(source, target, corres, distance, *arguments, **options)


CHECKERS = [reg.CorrespondenceCheckerBasedOnEdgeLength(0.9), reg.CorrespondenceCheckerBasedOnDistance(0.02)]


@pytest.mark.parametrize("ransac_n", [3, 4, 6])
def test_ransac_finds_the_pose_among_outliers(ransac_n):
    source, target, corres = matched(0.5)
    result = ransac(source, target, corres, ransac_n=ransac_n, checkers=CHECKERS)
    assert gap(result) < 0.03
    assert result.fitness > 0.95
    again = reg.evaluate_registration(source, target, 0.02, result.transformation)
    assert (result.fitness, result.inlier_rmse) == (again.fitness, again.inlier_rmse)
    assert np.array_equal(result.correspondence_set, again.correspondence_set)


def test_ransac_without_checkers_and_with_few_right_ones():
    source, target, corres = matched(0.1, n=200)
    result = ransac(source, target, corres, criteria=reg.RANSACConvergenceCriteria(5000, 0.999), distance=0.05)
    assert gap(result) < 0.1


def test_the_same_seed_gives_the_same_bytes_whatever_the_threads():
    source, target, corres = matched(0.3)
    answers = [ransac(source, target, corres, seed=s, num_threads=t) for s, t in ((1, 1), (1, 2), (2, 1))]
    assert answers[0].transformation.tobytes() == answers[1].transformation.tobytes()
    assert not np.array_equal(answers[0].transformation, answers[2].transformation)


def test_sampling_ends_with_the_confidence_or_the_largest_number():
    source, target, corres = matched(1.0)
    assert ransac(source, target, corres).iterations <= 256  # all are right: one sample is enough
    wanted = reg.RANSACConvergenceCriteria(700, 1.0)
    assert ransac(source, target, corres, criteria=wanted).iterations == 700
    # w = 0.3: log(0.001) / log(1 - 0.3^3) = 252 samples, 0.2: 860
    source, target, corres = matched(0.2)
    assert 256 < ransac(source, target, corres, distance=0.01).iterations < 3000


def test_every_set_of_different_correspondences_is_as_likely():
    from dlc_reg.pipelines._ransac import _draw

    rows = np.sort(_draw(np.random.default_rng(0), 5, 20_000, 3), axis=1)
    assert (np.diff(rows, axis=1) > 0).all()
    sets, counts = np.unique(rows, axis=0, return_counts=True)
    assert len(sets) == 10
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(2000)


def test_ransac_estimates_with_the_method_asked_for():
    source, target, corres = matched(0.6)
    small = source * 0.5
    scaled = ransac(small, target, corres, reg.TransformationEstimationPointToPoint(True))
    assert np.cbrt(np.linalg.det(scaled.transformation[:3, :3])) == pytest.approx(2.0, abs=0.02)
    assert scaled.fitness > 0.95
    rigid = ransac(small, target, corres, criteria=reg.RANSACConvergenceCriteria(2000, 0.999))
    assert rigid.fitness < 0.5


def test_ransac_with_point_to_plane_near_the_answer():
    """Its step from identity is linear: right for small motions only, as in Open3D."""
    truth = pose([0.02, -0.01, 0.03], [0.05, 0.02, -0.04])
    cloud = wavy(150, 0)
    target = {"positions": cloud.to_absolute(), "normals": cloud.normals.double().numpy()}
    inverse = np.linalg.inv(truth)
    source = target["positions"] @ inverse[:3, :3].T + inverse[:3, 3]
    corres = np.arange(150).repeat(2).reshape(-1, 2)
    criteria = reg.RANSACConvergenceCriteria(200, 0.999)
    method = reg.TransformationEstimationPointToPlane()
    result = ransac(source, target, corres, method, 8, criteria=criteria, distance=0.1)
    assert gap(result, truth) < 5e-3
    with pytest.raises(InputError, match="normals"):
        ransac(source, target["positions"], corres, method)
    grey = {**target, "colors": np.full((150, 3), 0.5)}
    with pytest.raises(InputError, match="estimation_method: got colored ICP"):
        ransac(grey, grey, corres, reg.TransformationEstimationForColoredICP())


@settings(max_examples=8)
@given(st.tuples(*[st.floats(-3, 3)] * 3), st.tuples(*[st.floats(-5, 5)] * 3))
def test_a_moved_target_moves_the_answer(turn, shift):
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = so3_exp(torch.tensor(turn, dtype=torch.float64)).numpy(), shift
    source, target, corres = matched(0.5, n=100)
    moved = target @ motion[:3, :3].T + motion[:3, 3]
    for register in (ransac, fgr):
        a, b = register(source, target, corres, seed=3), register(source, moved, corres, seed=3)
        assert b.fitness == pytest.approx(a.fitness, abs=0.02)
        if a.fitness > 0.9:
            np.testing.assert_allclose(b.transformation, motion @ a.transformation, atol=0.02)


def test_georeferenced_clouds_and_any_distance():
    """At 10^7 m the answers are those near the origin; inf means that every point counts."""
    source, target, corres = matched(0.5)
    shift = np.array([5e6, -1e7, 2e6])
    for register in (ransac, fgr):
        near, far = register(source, target, corres), register(source + shift, target + shift, corres)
        at = lambda T, points: points @ T[:3, :3].T + T[:3, 3]  # noqa: E731
        gaps = at(far.transformation, source + shift) - shift - at(near.transformation, source)
        assert np.abs(gaps).max() < 1e-4
    assert ransac(source, target, corres, distance=np.inf, checkers=CHECKERS).fitness == 1.0


# --- checkers ---


def test_checkers_against_their_definitions():
    rng = np.random.default_rng(0)
    cloud = {"positions": rng.normal(size=(9, 3)), "normals": rng.normal(size=(9, 3))}
    cloud["normals"] /= np.linalg.norm(cloud["normals"], axis=1, keepdims=True)
    target = {
        "positions": cloud["positions"] @ TRUTH[:3, :3].T * 1.05 + TRUTH[:3, 3],
        "normals": cloud["normals"] @ TRUTH[:3, :3].T,
    }
    same = np.arange(9).repeat(2).reshape(-1, 2)
    crossed = np.stack([np.arange(9), np.roll(np.arange(9), 1)], axis=1)
    check = lambda checker, corres, T=TRUTH: checker.Check(cloud, target, corres, T)  # noqa: E731
    assert check(reg.CorrespondenceCheckerBasedOnEdgeLength(0.95), same, np.eye(4))
    assert not check(reg.CorrespondenceCheckerBasedOnEdgeLength(0.96), same)
    assert not check(reg.CorrespondenceCheckerBasedOnEdgeLength(), crossed)
    far = 0.05 * np.linalg.norm(cloud["positions"], axis=1).max()
    assert check(reg.CorrespondenceCheckerBasedOnDistance(far * 1.001), same)
    assert not check(reg.CorrespondenceCheckerBasedOnDistance(far * 0.999), same)
    assert check(reg.CorrespondenceCheckerBasedOnNormal(0.01), same)
    assert not check(reg.CorrespondenceCheckerBasedOnNormal(0.01), same, np.eye(4))
    with pytest.warns(UserWarning, match="no normals"):
        assert reg.CorrespondenceCheckerBasedOnNormal(0.01).Check(cloud["positions"], target, same, np.eye(4))
    tilted = pose([0.3, 0.0, 0.0], [0, 0, 0])
    assert check(reg.CorrespondenceCheckerBasedOnSourceRotation([0.31, 0, 0]), same, tilted)
    assert not check(reg.CorrespondenceCheckerBasedOnSourceRotation([0.29, 0, 0]), same, tilted)
    assert check(reg.CorrespondenceCheckerBasedOnSourceRotation([-1, 0, 0]), same, tilted)
    with pytest.raises(InputError, match="rotation_threshold"):
        reg.CorrespondenceCheckerBasedOnSourceRotation([1, 2])


def test_checkers_rule_poses_out_ones_own_too():
    source, target, corres = matched(0.5)
    limits = np.array([0.1, 0.1, 0.1])
    refused = ransac(source, target, corres, checkers=[reg.CorrespondenceCheckerBasedOnSourceRotation(limits)])
    turned = refused.transformation
    assert refused.status is Status.NO_CORRESPONDENCES or np.abs(np.arctan2(turned[2, 1], turned[2, 2])) < 0.1

    class Never(reg.CorrespondenceChecker):
        asked = 0

        def Check(self, source, target, corres, transformation):
            Never.asked += 1
            return False

    result = ransac(source, target, corres, checkers=[Never()], criteria=reg.RANSACConvergenceCriteria(300, 0.999))
    assert Never.asked == 300 == result.iterations
    assert result.status is Status.NO_CORRESPONDENCES and result.fitness == 0.0
    assert np.array_equal(result.transformation, np.eye(4))


# --- fast global registration ---


def fgr(source, target, corres, seed=0, **options):
    option = reg.FastGlobalRegistrationOption(decrease_mu=True, **{"maximum_correspondence_distance": 0.05, **options})
    return reg.registration_fgr_based_on_correspondence(source, target, corres, option, seed=seed)


@pytest.mark.parametrize("options", [{}, {"tuple_test": False}, {"use_absolute_scale": True}], ids=str)
def test_fgr_finds_the_pose_among_outliers(options):
    source, target, corres = matched(0.7)
    result = fgr(source, target, corres, **options)
    assert gap(result) < 0.02
    assert result.fitness > 0.95


def test_fgr_repeats_itself_and_says_when_it_does_nothing():
    source, target, corres = matched(0.5)
    answers = [fgr(source, target, corres, seed).transformation for seed in (1, 1, 2)]
    assert answers[0].tobytes() == answers[1].tobytes() != answers[2].tobytes()
    nothing = fgr(source, target, corres[:5], tuple_test=False)
    center = lambda cloud: cloud.mean(axis=0)  # noqa: E731
    np.testing.assert_allclose(nothing.transformation[:3, :3], np.eye(3))
    np.testing.assert_allclose(nothing.transformation[:3, 3], center(target) - center(source))
    assert "only 5 correspondences agree" in nothing.verdict_reasons[-1]


def test_features_lead_to_the_same_pose():
    cloud = wavy(600, 0)
    points, normals = cloud.to_absolute(), cloud.normals.double().numpy()
    target = {"positions": points, "normals": normals}
    inverse = np.linalg.inv(TRUTH)
    source = {"positions": points @ inverse[:3, :3].T + inverse[:3, 3], "normals": normals @ inverse[:3, :3].T}
    features = [reg.compute_fpfh_feature(c, (0.5, 100)) for c in (source, target)]
    by_features = reg.registration_ransac_based_on_feature_matching(source, target, *features, True, 0.05)
    option = reg.FastGlobalRegistrationOption(maximum_correspondence_distance=0.05)
    fast = reg.registration_fgr_based_on_feature_matching(source, target, *features, option)
    for result in (by_features, fast):
        assert gap(result) < 1e-6
        assert result.fitness == 1.0
    with pytest.raises(InputError, match="source_feature: got 10 descriptors"):
        reg.registration_fgr_based_on_feature_matching(source, target, features[0].data[:, :10], features[1])


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ransac_n": 2}, "ransac_n: got 2; expected at least 3"),
        ({"distance": 0.0}, "max_correspondence_distance: got 0"),
        ({"corres": [[0, 300]]}, r"corres: got row \(0, 300\)"),
        ({"target": np.full((300, 3), np.nan)}, "target: got 300 non-finite points"),
    ],
)
def test_ransac_names_bad_input(options, words):
    source, target, corres = matched(0.5)
    options = {"source": source, "target": target, "corres": corres, "distance": 0.1, **options}
    with pytest.raises(InputError, match=words):
        ransac(**options)


def test_too_few_correspondences_give_an_empty_result():
    source, target, corres = matched(0.5)
    for few in (corres[:2], np.zeros((0, 2), int)):
        result = ransac(source, target, few)
        assert result.status is Status.NO_CORRESPONDENCES
        assert result.fitness == 0.0


def test_wrong_types_are_type_errors():
    source, target, corres = matched(0.5)
    with pytest.raises(TypeError, match="checkers: got int"):
        ransac(source, target, corres, checkers=[3])
    with pytest.raises(TypeError, match="criteria: got ICPConvergenceCriteria"):
        ransac(source, target, corres, criteria=reg.ICPConvergenceCriteria())
    with pytest.raises(TypeError, match="option: got dict"):
        reg.registration_fgr_based_on_correspondence(source, target, corres, {})
    with pytest.raises(TypeError, match="tuple_test"):
        reg.FastGlobalRegistrationOption(tuple_test="yes")
    with pytest.raises(AttributeError, match="tuple_tset"):
        reg.FastGlobalRegistrationOption().tuple_tset = True
    with pytest.raises(AttributeError, match="confidance"):
        reg.RANSACConvergenceCriteria().confidance = 0.5


@pytest.mark.parametrize("name", ["division_factor", "maximum_correspondence_distance", "tuple_scale"])
def test_fgr_refuses_factors_that_cannot_be(name):
    source, target, corres = matched(0.5)
    with pytest.raises(InputError, match=f"option.{name}: got 0"):
        fgr(source, target, corres, **{name: 0.0})


def test_options_copy():
    option = reg.FastGlobalRegistrationOption(2.0, True, True, 0.1, 10, 0.9, 50, False)
    assert repr(reg.FastGlobalRegistrationOption(option)) == repr(option)
    criteria = reg.RANSACConvergenceCriteria(10, 2.0)
    assert (criteria.max_iteration, criteria.confidence) == (10, 1.0)
    assert repr(reg.RANSACConvergenceCriteria(criteria)) == repr(criteria)
