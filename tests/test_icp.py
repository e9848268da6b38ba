"""ICP from a start: real scans, frames far away, threads, what is left free, and the symmetries of the problem."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from registering import SHAPED
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from test_objectives import moved, pose, wavy

from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud, apply_transform
from dlc_reg.iterate import Status
from dlc_reg.registration.frame import Pair
from dlc_reg.registration.icp import Convergence, coarse_to_fine, icp, icp_pair
from dlc_reg.registration.objectives import Generalized, PointToPlane, PointToPoint, Symmetric

OBJECTIVES = list(SHAPED.values())
TIGHT = Convergence(fitness=1e-12, rmse=1e-12, max_iterations=100)


def about(center, axis, degrees):
    """Rotation (4, 4) by `degrees` about an axis through `center`."""
    turn = pose(np.radians(degrees) * np.asarray(axis) / np.linalg.norm(axis), [0.0, 0.0, 0.0])
    turn[:3, 3] = center - turn[:3, :3] @ center
    return turn


def error_of(found, truth, points):
    """How far apart the two poses put the points, at most."""
    delta = found - truth
    return np.linalg.norm(points @ delta[:3, :3].T + delta[:3, 3], axis=1).max()


@pytest.fixture(scope="module")
def scans(bunny_pair):
    """Every eighth point of the real pair (source, target), with normals, and the truth."""
    source, target = (PointCloud.from_any(np.asarray(c[::8])).with_normals(20) for c in bunny_pair[:2])
    return source, target, bunny_pair.T_target_source


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(("axis", "degrees"), [((1, 2, 3), 5), ((0, 1, 0), -10), ((2, -1, 1), 12)])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.kind)
def test_real_pair_from_perturbed_starts(scans, objective, axis, degrees, reverse):
    source, target, truth = scans
    if reverse:
        source, target, truth = target, source, np.linalg.inv(truth)
    start = about(target.to_absolute().mean(axis=0), axis, degrees) @ truth
    assert error_of(start, truth, source.to_absolute()) > 0.005
    result = icp(source, target, objective, start, max_distance=0.02, convergence=TIGHT)
    result = icp(source, target, objective, result.transformation, max_distance=0.005, convergence=TIGHT)
    # half a millimetre is what the truth is good to; point-to-point is biased by the part that has no partner
    assert error_of(result.transformation, truth, source.to_absolute()) < (
        0.006 if objective.kind == "point_to_point" else 0.0015
    )
    assert result.status is Status.CONVERGED
    assert result.fitness > 0.7


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.kind)
def test_frames_ten_thousand_kilometres_away_change_nothing(scans, objective):
    source, target, truth = scans
    start = about(target.to_absolute().mean(axis=0), (1, 2, 3), 5) @ truth
    near = icp(source, target, objective, start, max_distance=0.02)
    to_source, to_target = np.eye(4), np.eye(4)
    to_source[:3, 3], to_target[:3, 3] = [1e7, -2e6, 3e3], [-5e6, 1e7, 1e4]
    far_source = PointCloud(source.points, source.origin + to_source[:3, 3], source.normals)
    far_target = PointCloud(target.points, target.origin + to_target[:3, 3], target.normals)
    far_start = to_target @ start @ np.linalg.inv(to_source)
    far = icp(far_source, far_target, objective, far_start, max_distance=0.02)
    assert far.iterations == near.iterations
    assert far.fitness == pytest.approx(near.fitness, abs=1e-3)
    # what is left is float64's own grain at 10^7 m: 2e-9 m, amplified by the start that had to be written in it
    back = np.linalg.inv(to_target) @ far.transformation @ to_source
    assert error_of(back, near.transformation, source.to_absolute()) < 1e-5


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.kind)
def test_any_number_of_threads_gives_the_same_bits(scans, objective):
    source, target, truth = scans
    start = about(target.to_absolute().mean(axis=0), (1, 2, 3), 5) @ truth
    one, *others = (icp(source, target, objective, start, max_distance=0.02, num_threads=n) for n in (1, 2, 5, None))
    for other in others:
        assert one.transformation.tobytes() == other.transformation.tobytes()
        assert one.history == other.history
        assert np.array_equal(one.correspondence_set, other.correspondence_set)
        assert one.information.tobytes() == other.information.tobytes()


def test_scale_is_recovered():
    target, truth = wavy(3000, 0), pose([0.05, -0.1, 0.08], [0.05, 0.02, -0.03], 1.15)
    source = moved(target, truth)
    result = icp(source, target, PointToPoint(with_scaling=True), max_distance=np.inf, convergence=TIGHT)
    assert np.cbrt(np.linalg.det(result.transformation[:3, :3])) == pytest.approx(1.15, abs=1e-5)
    np.testing.assert_allclose(result.transformation, truth, atol=1e-5)
    rigid = icp(source, target, PointToPoint(), max_distance=np.inf)
    assert np.linalg.det(rigid.transformation[:3, :3]) == pytest.approx(1.0, abs=1e-9)


def test_result_describes_the_pose_that_it_returns(scans):
    source, target, truth = scans
    result = icp(source, target, PointToPlane(), truth, max_distance=0.01)
    again = icp(
        source,
        target,
        PointToPlane(),
        result.transformation,
        max_distance=0.01,
        convergence=Convergence(max_iterations=0),
    )
    assert again.fitness == result.fitness == len(result.correspondence_set) / len(source)
    assert again.inlier_rmse == pytest.approx(result.inlier_rmse, rel=1e-12)
    assert again.iterations == 0
    assert np.array_equal(again.transformation, result.transformation)
    assert result.history[0]["value"] > result.history[-1]["value"]
    assert result.history[-1]["inlier_rmse"] == result.inlier_rmse
    assert len(result.history) == result.iterations + 1
    assert result.correspondence_set.dtype == np.int32
    i, j = result.correspondence_set.T
    at = source.to_absolute()[i] @ result.transformation[:3, :3].T + result.transformation[:3, 3]
    gaps = np.linalg.norm(at - target.to_absolute()[j], axis=1)
    assert np.sqrt((gaps**2).mean()) == pytest.approx(result.inlier_rmse, rel=1e-6)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))], ids=["copy", "pickle"])
def test_results_copy_and_pickle(scans, copied):
    source, target, truth = scans
    result = icp(source, target, PointToPlane(), truth, max_distance=0.01)
    other = copied(result)
    assert np.array_equal(other.transformation, result.transformation)
    assert other.status is Status.CONVERGED
    assert other.history == result.history
    result.to_json()


def test_no_correspondences_returns_the_start_and_says_so():
    start = pose([0.1, 0.2, 0.3], [100.0, 0.0, 0.0])
    result = icp(wavy(50, 0), wavy(50, 1), PointToPoint(), start, max_distance=0.1)
    assert result.status is Status.NO_CORRESPONDENCES
    assert np.array_equal(result.transformation, start)
    assert (result.fitness, result.inlier_rmse, len(result.correspondence_set)) == (0.0, 0.0, 0)
    assert result.covariance is None


def test_callback_sees_every_record_and_can_stop(scans):
    source, target, truth = scans
    seen = []
    result = icp(
        source,
        target,
        PointToPlane(),
        about(target.to_absolute().mean(axis=0), (1, 0, 0), 5) @ truth,
        max_distance=0.02,
        callback=lambda record: seen.append(record) or len(seen) == 3,
    )
    assert result.status is Status.STOPPED
    assert [record["iteration"] for record in seen] == [0, 1, 2]
    assert {"fitness", "inlier_rmse", "count", "value"} <= seen[0].keys()


def test_prepared_pair_gives_what_icp_gives(scans):
    source, target, truth = scans
    index = ops.SearchIndex(target.points)
    pair = Pair.prepare(source, target, PointToPlane(), max_distance=0.01, index=index)
    whole = icp(source, target, PointToPlane(), truth, max_distance=0.01)
    convergence = Convergence(rmse=1e-6 * target.extent)
    assert np.array_equal(
        icp_pair(pair, PointToPlane(), truth, convergence=convergence).transformation, whole.transformation
    )


@pytest.mark.parametrize("start", [np.eye(3), np.full((4, 4), np.nan)])
def test_bad_starts_are_refused(start):
    with pytest.raises(InputError, match="T_init"):
        icp(wavy(10, 0), wavy(10, 1), PointToPoint(), start, max_distance=1.0)


# --- information, covariance and free motions ---


def shape(kind, n=4000, seed=0):
    """A cloud with exact normals on a plane, cylinder, sphere, or bowl (held in every direction)."""
    rng = np.random.default_rng(seed)
    u, v = rng.uniform(-1, 1, (2, n))
    if kind == "plane":
        points, normals = np.stack([u, v, 0 * u], 1), np.tile([0.0, 0.0, 1.0], (n, 1))
    elif kind == "cylinder":
        normals = np.stack([np.cos(np.pi * u), np.sin(np.pi * u), 0 * u], 1)
        points = normals * 0.5 + np.stack([0 * v, 0 * v, 2 * v], 1)
    elif kind == "sphere":
        normals = rng.normal(size=(n, 3))
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        points = normals
    else:
        return wavy(n, seed)
    tilt = Rotation.from_rotvec([0.4, -0.3, 0.9]).as_matrix()
    origin = np.array([5.0, -3.0, 100.0])
    return PointCloud(
        torch.from_numpy((points @ tilt.T).astype(np.float32)),
        origin,
        torch.from_numpy((normals @ tilt.T).astype(np.float32)),
    )


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.kind)
@pytest.mark.parametrize(
    ("kind", "count", "words"),
    [("plane", 3, "slides along"), ("cylinder", 2, "spins about the axis"), ("sphere", 3, "turns about any axis")],
)
@pytest.mark.parametrize("estimated", [False, True], ids=["exact_normals", "estimated_normals"])
def test_free_motions_are_named(objective, kind, count, words, estimated):
    cloud = shape(kind)
    if estimated:
        cloud = PointCloud(cloud.points, cloud.origin).with_normals(20)
    shifted = PointCloud(cloud.points, cloud.origin + 1e-3, cloud.normals)
    result = icp(shifted, cloud, objective, max_distance=0.5)
    free = result.settings["free_motions"]
    assert len(free) == count
    assert any(words in text for text in free)
    assert result.covariance is None
    assert any(words in reason for reason in result.verdict_reasons)

    axis = Rotation.from_rotvec([0.4, -0.3, 0.9]).as_matrix()[:, 2]
    for twist in result.settings["free_twists"]:  # each leaves the surface where it is
        velocity = np.cross(twist[:3], cloud.points.double().numpy()) + twist[3:]
        assert np.abs((velocity * cloud.normals.double().numpy()).sum(1)).mean() < 0.05 * np.abs(velocity).mean() + 0.01
    if kind == "cylinder":
        turning = max(result.settings["free_twists"], key=lambda twist: np.linalg.norm(twist[:3]))
        assert abs(axis @ turning[:3]) / np.linalg.norm(turning[:3]) > 0.999


def test_a_singular_system_takes_no_step_along_the_free_motion():
    plane = shape("plane")
    lifted = PointCloud(plane.points, plane.origin + 0.01 * plane.normals[0].double().numpy(), plane.normals)
    result = icp(lifted, plane, PointToPlane(), max_distance=0.5)
    step = result.transformation @ [*lifted.origin, 1.0] - [*lifted.origin, 1.0]
    np.testing.assert_allclose(step[:3], -0.01 * plane.normals[0].double().numpy(), atol=1e-6)


def test_covariance_is_the_scatter_of_repeated_registrations():
    """Monte Carlo over the noise of the source: the predicted standard deviations hold within the sampling error."""
    target, found, predicted = wavy(4000, 0), [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        clean = wavy(400, 100 + seed)
        noise = 0.005 * rng.normal(size=(400, 1)) * clean.normals.double().numpy()
        noisy = PointCloud(clean.points + torch.from_numpy(noise.astype(np.float32)), clean.origin, clean.normals)
        result = icp(noisy, target, PointToPlane(), max_distance=0.2, convergence=TIGHT)
        delta = result.transformation
        found.append([*Rotation.from_matrix(delta[:3, :3]).as_rotvec(), *delta[:3, 3]])
        predicted.append(np.sqrt(np.diag(result.covariance)))
        assert result.settings["residual_sigma"] == pytest.approx(0.005, rel=0.25)
    ratio = np.std(found, axis=0) / np.mean(predicted, axis=0)
    assert np.all((ratio > 0.7) & (ratio < 1.4)), ratio


def test_information_is_the_hessian_about_its_origin(scans):
    source, target, truth = scans
    result = icp(source, target, PointToPlane(), truth, max_distance=0.01)
    i, j = result.correspondence_set.T
    origin = np.array(result.settings["information_origin"])
    at = source.to_absolute()[i] @ result.transformation[:3, :3].T + result.transformation[:3, 3] - origin
    normals = target.normals.double().numpy()[j]
    jacobian = np.hstack([np.cross(at, normals), normals])
    np.testing.assert_allclose(result.information, jacobian.T @ jacobian, rtol=1e-6, atol=1e-9 * len(i))
    share = len(j) / len(set(j.tolist()))
    assert result.settings["matches_per_target_point"] == share > 1 and 0.5 < result.settings["stiffness"] < 1
    variance = result.settings["residual_sigma"] ** 2 * share / result.settings["stiffness"] ** 2
    np.testing.assert_allclose(result.covariance @ result.information / variance, np.eye(6), atol=1e-6)


# --- coarse to fine ---


def test_coarse_to_fine_reaches_further_than_one_level(bunny_pair):
    source, target = (PointCloud.from_any(np.asarray(c[::4])) for c in bunny_pair[:2])
    truth = bunny_pair.T_target_source
    start = pose([0, 0, 0], [0.04, -0.04, 0]) @ about(target.to_absolute().mean(axis=0), (0, 1, 0), 30) @ truth
    options = {"voxel_sizes": [0.008, 0.004, 0.0], "max_distances": [0.06, 0.015, 0.004], "iterations": [60, 30, 20]}
    result = coarse_to_fine(source, target, PointToPlane(), start, **options)
    assert error_of(result.transformation, truth, source.to_absolute()) < 0.001
    long = Convergence(max_iterations=110)
    fine = icp(source, target.with_normals(), PointToPlane(), start, max_distance=0.004, convergence=long)
    assert error_of(fine.transformation, truth, source.to_absolute()) > 0.05
    assert [record["level"] for record in result.history] == sorted(record["level"] for record in result.history)
    assert result.iterations == len(result.history) - 3
    assert result.correspondence_set[:, 0].max() > 5000  # indices into the whole clouds
    assert result.fitness == len(result.correspondence_set) / len(source)


def test_coarse_to_fine_reports_on_the_clouds_given(scans):
    source, target, truth = scans
    result = coarse_to_fine(source, target, Generalized(), truth, voxel_sizes=[0.005], max_distances=[0.01])
    assert result.fitness == len(result.correspondence_set) / len(source)
    assert result.correspondence_set[:, 0].max() < len(source)
    assert result.status is Status.CONVERGED


def test_the_evidence_of_thinned_levels_is_of_the_clouds_given(bunny_pair):
    source, target = (PointCloud.from_any(np.asarray(c[::4])) for c in bunny_pair[:2])
    result = coarse_to_fine(
        source, target, PointToPlane(), bunny_pair.T_target_source, voxel_sizes=[0.004], max_distances=[0.003]
    )
    moved_source = apply_transform(result.transformation, source.to_absolute())
    distances, partner = cKDTree(target.to_absolute()).query(moved_source)
    near = distances < 0.003
    assert 0.3 < near.mean() < 0.95
    assert result.correspondence_set.tolist() == np.stack([near.nonzero()[0], partner[near]], 1).tolist()
    assert result.inlier_rmse == pytest.approx(np.sqrt(np.mean(distances[near] ** 2)), rel=1e-5)

    def information(normals):
        at = moved_source[near] - result.settings["information_origin"]
        jacobian = np.hstack([np.cross(at, normals[partner[near]]), normals[partner[near]]])
        return jacobian.T @ jacobian

    thin, voxels = target.voxel_downsample(0.004), ops.voxel_groups(target.points, 0.004)[1]
    np.testing.assert_allclose(
        result.information, information(thin.with_normals(20).normals.double().numpy()[voxels]), rtol=1e-3, atol=1e-3
    )
    own = information(target.with_normals(20).normals.double().numpy())
    ratios = np.linalg.eigvals(np.linalg.solve(own, result.information)).real
    assert ratios.min() > 0.7 and ratios.max() < 1.4


@pytest.mark.parametrize(
    ("voxel_sizes", "max_distances"), [([0.1, 0.2], [1.0, 1.0]), ([0.1], [1.0, 1.0]), ([], []), ([0.1, -0.1], [1, 1])]
)
def test_bad_levels_are_refused(voxel_sizes, max_distances):
    with pytest.raises(InputError, match="voxel_sizes"):
        coarse_to_fine(wavy(10, 0), wavy(10, 1), PointToPoint(), voxel_sizes=voxel_sizes, max_distances=max_distances)


# --- symmetries ---


@settings(max_examples=15)
@given(
    turns=st.lists(st.floats(-3, 3), min_size=6, max_size=6),
    shifts=st.lists(st.floats(-50, 50), min_size=6, max_size=6),
    objective=st.sampled_from([PointToPoint(), PointToPlane(), Symmetric()]),
)
def test_rigid_equivariance(turns, shifts, objective):
    """Moving either cloud rigidly moves the answer with it."""
    target = wavy(1500, 0)
    source = moved(wavy(700, 1), pose([0.04, -0.03, 0.05], [0.02, 0.03, -0.02]))
    before, after = pose(turns[:3], shifts[:3]), pose(turns[3:], shifts[3:])
    plain = icp(source, target, objective, max_distance=0.3, convergence=TIGHT)
    start = after @ np.linalg.inv(before)
    other = icp(
        moved(source, np.linalg.inv(before)), moved(target, np.linalg.inv(after)), objective, start, max_distance=0.3,
        convergence=TIGHT,
    )  # fmt: skip
    back = np.linalg.inv(after) @ other.transformation @ before
    assert error_of(back, plain.transformation, source.to_absolute()) < 2e-4  # float32 flips a neighbour now and then


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), objective=st.sampled_from(OBJECTIVES))
def test_permutation_equivariance(seed, objective):
    """The order of the points is nothing: same pose, and the correspondences follow the points."""
    target = wavy(1000, 0)
    source = moved(wavy(500, 1), pose([0.04, -0.03, 0.05], [0.02, 0.03, -0.02]))
    rng = np.random.default_rng(seed)
    i, j = rng.permutation(500), rng.permutation(1000)
    plain = icp(source, target, objective, max_distance=0.3)
    other = icp(source.select(i), target.select(j), objective, max_distance=0.3)
    np.testing.assert_allclose(other.transformation, plain.transformation, atol=1e-11)
    followed = np.stack([i[other.correspondence_set[:, 0]], j[other.correspondence_set[:, 1]]], axis=1)
    assert np.array_equal(followed[np.argsort(followed[:, 0])], plain.correspondence_set)
