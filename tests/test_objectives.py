"""The classical objectives against closed forms, SciPy and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from registering import SHAPED
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud
from dlc_reg.manifold import SE3
from dlc_reg.registration.frame import Pair
from dlc_reg.registration.icp import estimate_update
from dlc_reg.registration.objectives import Generalized, PointToPlane, PointToPoint, Symmetric, plane_covariances
from dlc_reg.registration.steps import euler_motion, fit_similarity, point_information, solve_least

OBJECTIVES = list(SHAPED.values())


def pose(rotation_vector, translation, scale=1.0):
    matrix = np.eye(4)
    matrix[:3, :3] = scale * Rotation.from_rotvec(rotation_vector).as_matrix()
    matrix[:3, 3] = translation
    return matrix


def wavy(n, seed, origin=(0.0, 0.0, 0.0)):
    """A cloud (N, 3) on a smooth open surface with exact normals."""
    xy = np.random.default_rng(seed).uniform(-1, 1, (n, 2))
    z = 0.3 * np.sin(2 * xy[:, 0]) + 0.2 * np.cos(3 * xy[:, 1])
    normals = np.stack([-0.6 * np.cos(2 * xy[:, 0]), 0.6 * np.sin(3 * xy[:, 1]), np.ones(n)], axis=1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return PointCloud(
        points=torch.from_numpy(np.column_stack([xy, z]).astype(np.float32)),
        origin=np.asarray(origin, dtype=np.float64),
        normals=torch.from_numpy(normals.astype(np.float32)),
    )


def moved(cloud, transform):
    """The cloud such that `transform` maps it onto the given one."""
    back = np.linalg.inv(transform)
    absolute = cloud.to_absolute() @ back[:3, :3].T + back[:3, 3]
    normals = cloud.normals.double().numpy() @ np.linalg.inv(back[:3, :3])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    origin = absolute.mean(axis=0)
    return PointCloud(
        points=torch.from_numpy((absolute - origin).astype(np.float32)),
        origin=origin,
        normals=torch.from_numpy(normals.astype(np.float32)),
    )


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.kind)
def test_evaluation_is_scipys_nearest_neighbours(objective):
    target, truth = wavy(2000, 0, (10.0, -20.0, 5.0)), pose([0.1, 0.05, -0.1], [0.1, 0.0, 0.05])
    source = moved(wavy(500, 1, (10.0, -20.0, 5.0)), truth)
    pair = Pair.prepare(source, target, objective, max_distance=0.03)
    start = pose([0.101, 0.05, -0.1], [0.1, 0.01, 0.05])
    evaluation = objective.evaluate(pair.to_omega(start), pair)

    at = source.to_absolute() @ start[:3, :3].T + start[:3, 3]
    distances, indices = cKDTree(target.to_absolute()).query(at, distance_upper_bound=0.03)
    found = np.isfinite(distances)
    assert 50 < found.sum() < 500  # the distance matters
    expected = np.stack([np.flatnonzero(found), indices[found]], axis=1)
    assert np.array_equal(evaluation.correspondence_set(), expected)
    assert evaluation.fitness == found.mean()
    assert evaluation.inlier_rmse == pytest.approx(np.sqrt((distances[found] ** 2).mean()), rel=1e-5)


@pytest.mark.parametrize("objective", [*OBJECTIVES, PointToPoint(with_scaling=True)], ids=lambda o: str(o))
def test_fixed_correspondences_reach_the_pose_that_made_them(objective):
    """One closed-form step, or a few Gauss-Newton ones, with p -> q known and exact."""
    scale = 1.3 if getattr(objective, "with_scaling", False) else 1.0
    target, truth = wavy(300, 0, (3.0, 1.0, -2.0)), pose([0.2, -0.1, 0.15], [0.3, -0.2, 0.1], scale)
    source = moved(target, truth)
    pairs = np.stack([np.arange(300), np.arange(300)], axis=1)
    pair = Pair.prepare(source, target, objective, max_distance=np.inf).with_correspondences(pairs)
    omega = pair.to_omega(np.eye(4))
    for _ in range(1 if objective.kind == "point_to_point" else 8):
        omega = objective.step(omega, objective.evaluate(omega, pair))
    np.testing.assert_allclose(pair.to_absolute(omega), truth, atol=2e-6)


def test_symmetric_step_is_exact_for_small_rotations_to_third_order():
    """Rusinkiewicz's half-angle step solves exact correspondences at once, where Gauss-Newton needs several steps."""
    target = wavy(300, 0)
    errors = {}
    for angle in (0.2, 0.1):
        truth = pose([angle, 0.0, 0.0], [0.0, 0.0, 0.0])
        source = moved(target, truth)
        pairs = np.stack([np.arange(300)] * 2, axis=1)
        for objective in (Symmetric(), PointToPlane()):
            pair = Pair.prepare(source, target, objective, max_distance=np.inf)
            errors[objective.kind, angle] = np.abs(estimate_update(objective, pair, pairs) - truth).max()
    assert errors["symmetric", 0.2] < 0.01 * errors["point_to_plane", 0.2]


@pytest.mark.parametrize("kernel", ops.KERNELS)
@pytest.mark.parametrize("objective", [PointToPlane, Generalized], ids=lambda o: o.kind)
def test_step_descends(objective, kernel):
    """From near the truth a step lowers the cost with the correspondences held."""
    objective = objective(kernel=kernel, kernel_parameter=0.05)
    target = wavy(400, 0)
    source = moved(target, pose([0.03, -0.02, 0.02], [0.01, 0.02, -0.01]))
    pair = Pair.prepare(source, target, objective, max_distance=np.inf).with_correspondences(
        np.stack([np.arange(400)] * 2, axis=1)
    )
    omega = pair.to_omega(np.eye(4))
    before = objective.value(omega, pair)
    after = objective.value(objective.step(omega, objective.evaluate(omega, pair)), pair)
    assert after < 0.9 * before


def test_pivot_moves_the_chart_but_not_the_linear_step():
    """Rotations about different pivots agree to first order and differ at second."""
    target = wavy(400, 0)
    steps = {}
    for angle in (2e-2, 1e-2):
        source = moved(target, pose([angle, -angle, angle], [0.0, 0.0, 0.0]))
        for pivot in (np.zeros(3), np.array([5.0, 0.0, 0.0])):
            pair = Pair.prepare(source, target, PointToPlane(), max_distance=np.inf, pivot=pivot)
            pairs = np.stack([np.arange(400)] * 2, axis=1)
            steps[angle, pivot[0]] = estimate_update(PointToPlane(), pair, pairs)
    gaps = [np.abs(steps[angle, 0.0] - steps[angle, 5.0]).max() for angle in (2e-2, 1e-2)]
    assert gaps[1] > 1e-5
    assert gaps[0] / gaps[1] == pytest.approx(4.0, rel=0.15)


def test_omega_and_absolute_are_inverse_far_from_the_origin():
    target, source = wavy(10, 0, (1e7, -2e7, 3e6)), wavy(10, 1, (-4e6, 1e7, 5e6))
    pair = Pair.prepare(source, target, PointToPoint(), max_distance=1.0, pivot=np.array([1.0, 2.0, 3.0]))
    truth = pose([0.3, 0.2, 0.1], [2e7, 1e6, -3e6])
    np.testing.assert_allclose(pair.to_absolute(pair.to_omega(truth)), truth, rtol=1e-14, atol=1e-14)


def test_fit_similarity_is_scipys_align_vectors_and_recovers_scale():
    rng = np.random.default_rng(3)
    p, truth = rng.normal(size=(50, 3)), pose([0.5, -1.0, 2.0], [1.0, 2.0, 3.0], 0.7)
    q = p @ truth[:3, :3].T + truth[:3, 3]
    moments = np.concatenate([[50.0], p.sum(0), q.sum(0), (q.T @ p).ravel(), [(p**2).sum()], [(q**2).sum()]])
    np.testing.assert_allclose(fit_similarity(moments, with_scaling=True), truth, atol=1e-12)
    rigid = fit_similarity(moments, with_scaling=False)
    expected = Rotation.align_vectors(q - q.mean(0), p - p.mean(0))[0].as_matrix()
    np.testing.assert_allclose(rigid[:3, :3], expected, atol=1e-12)


def test_fit_similarity_never_reflects():
    rng = np.random.default_rng(4)
    p = rng.normal(size=(20, 3))
    q = p * [1.0, 1.0, -1.0]
    moments = np.concatenate([[20.0], p.sum(0), q.sum(0), (q.T @ p).ravel(), [(p**2).sum()], [(q**2).sum()]])
    rotation = fit_similarity(moments, with_scaling=False)[:3, :3]
    assert np.linalg.det(rotation) == pytest.approx(1.0)


def test_fit_similarity_of_one_point_keeps_the_scale():
    moments = np.concatenate([[1.0], [1, 2, 3], [4, 5, 6], np.outer([4, 5, 6], [1, 2, 3]).ravel(), [14.0], [77.0]])
    fitted = fit_similarity(moments, with_scaling=True)
    assert abs(np.linalg.det(fitted[:3, :3])) == pytest.approx(1.0)
    np.testing.assert_allclose(fitted @ [1, 2, 3, 1], [4, 5, 6, 1], atol=1e-12)


def test_solve_least_solves_and_takes_the_smallest_of_many():
    rng = np.random.default_rng(5)
    jacobian = rng.normal(size=(20, 6))
    hessian, right = jacobian.T @ jacobian, rng.normal(size=6)
    np.testing.assert_allclose(hessian @ solve_least(hessian, right), right, atol=1e-10)

    normal = np.array([0.01, 0.0, 1.0]) / np.hypot(0.01, 1.0)  # a plane, nearly along an axis
    points = np.random.default_rng(6).uniform(-1, 1, (100, 3))
    points -= np.outer(points @ normal, normal)
    jacobian = np.hstack([np.cross(points, normal), np.tile(normal, (100, 1))])
    step = solve_least(jacobian.T @ jacobian, jacobian.T @ np.full(100, 0.1))
    np.testing.assert_allclose(step, [0, 0, 0, *(0.1 * normal)], atol=1e-9)  # along the normal: nothing slides
    assert np.array_equal(solve_least(np.zeros((6, 6)), np.zeros(6)), np.zeros(6))


@pytest.mark.parametrize("unit", [1e-3, 1e4])
def test_solve_least_does_not_depend_on_the_unit_of_length(unit):
    cloud = wavy(100, 0)
    points, normals = cloud.points.double().numpy(), cloud.normals.double().numpy()
    normals = normals * [1, 0, 1]
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    points = points * [1, 0, 1] + np.random.default_rng(0).uniform(-1, 1, (100, 1)) * [0, 1, 0]  # a cylinder along y

    def step(scale):
        jacobian = np.hstack([np.cross(scale * points, normals), normals])
        return solve_least(jacobian.T @ jacobian, jacobian.T @ (scale * (0.1 + 0.05 * points[:, 0])))

    one, other = step(1.0), step(unit)
    np.testing.assert_allclose(other[:3], one[:3], atol=1e-9)
    np.testing.assert_allclose(other[3:], unit * one[3:], atol=1e-9 * unit)


def test_euler_motion_is_the_chart_of_se3():
    xi = np.array([0.3, -0.7, 2.0, 1.0, -2.0, 3.0])
    start = pose([0.1, 0.2, 0.3], [4.0, 5.0, 6.0])
    expected = SE3(chart="euler").retract(torch.from_numpy(start), torch.from_numpy(xi)).numpy()
    np.testing.assert_allclose(euler_motion(xi) @ start, expected, atol=1e-14)


def test_point_information_is_the_sum_of_its_definition():
    points = np.random.default_rng(7).normal(size=(30, 3))
    expected = np.zeros((6, 6))
    for x, y, z in points:
        g = np.hstack([[[0, z, -y], [-z, 0, x], [y, -x, 0]], np.eye(3)])
        expected += g.T @ g
    np.testing.assert_allclose(point_information(points), expected, atol=1e-12)


def test_plane_covariances_have_epsilon_along_the_normal():
    cloud = wavy(50, 0)
    packed = plane_covariances(cloud.normals, 1e-3).double().numpy()
    full = packed[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)
    np.testing.assert_allclose(np.linalg.eigvalsh(full), np.tile([1e-3, 1, 1], (50, 1)), atol=1e-6)
    normals = cloud.normals.double().numpy()
    np.testing.assert_allclose(np.einsum("nij,nj->ni", full, normals), 1e-3 * normals, atol=1e-6)


@pytest.mark.parametrize(
    ("objective", "source_has", "missing"),
    [(PointToPlane(), True, "target"), (Symmetric(), False, "source"), (Generalized(), False, "source")],
    ids=lambda v: getattr(v, "kind", str(v)),
)
def test_missing_normals_are_named(objective, source_has, missing):
    whole = wavy(10, 0)
    bare = PointCloud(points=whole.points, origin=whole.origin)
    source, target = (whole, bare) if source_has else (bare, whole)
    with pytest.raises(InputError, match=missing) as error:
        Pair.prepare(source, target, objective, max_distance=1.0)
    assert error.value.argument == missing


@pytest.mark.parametrize("distance", [0.0, -1.0, float("nan")])
def test_distance_must_be_positive(distance):
    with pytest.raises(InputError, match="max_distance"):
        Pair.prepare(wavy(10, 0), wavy(10, 1), PointToPoint(), max_distance=distance)


def test_no_correspondence_leaves_the_pose():
    pair = Pair.prepare(wavy(10, 0), wavy(10, 1), PointToPoint(), max_distance=0.1)
    omega = pair.to_omega(pose([0, 0, 0], [100.0, 0, 0]))
    evaluation = PointToPoint().evaluate(omega, pair)
    assert (evaluation.count, evaluation.fitness, evaluation.inlier_rmse) == (0, 0.0, 0.0)
    assert torch.equal(PointToPoint().step(omega, evaluation), omega)
