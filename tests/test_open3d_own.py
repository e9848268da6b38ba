"""What Open3D's own Python tests ask of these modules, asked of ours with the import replaced.

The cases follow isl-org/Open3D, `python/test/t/registration/test_registration.py` (criteria, results, evaluation,
point-to-point and point-to-plane ICP, information, in both precisions, tensor against legacy),
`python/test/t/registration/test_transformation_estimation.py` (RMSE before and after an update) and
`python/test/pipelines/test_normal_distributions_transform.py`; the clouds are our own, and Open3D's answers on them
take the place of recorded numbers.
"""

from __future__ import annotations

import numpy as np
import pytest

o3d = pytest.importorskip(
    "open3d",
    reason="Open3D is not importable (pip install 'dlc_reg[open3d]'; on Debian its wheel needs libusb-1.0-0)",
    exc_type=ImportError,
)

from test_objectives import pose  # noqa: E402

from dlc_reg.pipelines import registration as reg  # noqa: E402
from dlc_reg.t.pipelines import registration as treg  # noqa: E402

o3c = o3d.core
DTYPES = [o3c.float32, o3c.float64]
START = pose([0.2, -0.5, 0.1], [0.5, 0.7, -1.4])


def clouds(dtype):
    """A coarse lattice-like surface and another part of it, the target with normals; no two neighbours equally far."""
    rng = np.random.default_rng(0)
    made = []
    for seed, count in ((1, 49), (2, 38)):
        xy = np.random.default_rng(seed).uniform(0.5, 3.5, (count, 2))
        made.append(np.c_[xy, 1.5 + 0.4 * np.sin(2 * xy[:, 0]) + 0.2 * xy[:, 1]] + rng.normal(0, 0.02, (count, 3)))
    source, target = o3d.t.geometry.PointCloud(), o3d.t.geometry.PointCloud()
    source.point.positions, target.point.positions = o3c.Tensor(made[0], dtype), o3c.Tensor(made[1], dtype)
    normals = rng.normal(size=(38, 3))
    target.point.normals = o3c.Tensor(normals / np.linalg.norm(normals, axis=1, keepdims=True), dtype)
    return source, target


def test_icp_convergence_criteria_constructor():
    for module in (reg, treg):
        criteria = module.ICPConvergenceCriteria()
        assert criteria.max_iteration == 30
        assert criteria.relative_fitness == 1e-06
        assert criteria.relative_rmse == 1e-06


def test_registration_result_constructor():
    result = treg.RegistrationResult()
    assert result.inlier_rmse == 0.0
    assert result.fitness == 0.0
    assert result.transformation.allclose(o3c.Tensor.eye(4, o3c.float64, o3c.Device("CPU:0")))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_evaluate_registration(dtype):
    source, target = clouds(dtype)
    evaluation = treg.evaluate_registration(source, target, 3.0, o3c.Tensor.eye(4, o3c.float64))
    legacy = reg.evaluate_registration(source.to_legacy(), target.to_legacy(), 3.0, np.eye(4))
    np.testing.assert_allclose(evaluation.inlier_rmse, legacy.inlier_rmse, 0.001)
    np.testing.assert_allclose(evaluation.fitness, legacy.fitness, 0.001)


@pytest.mark.parametrize("name", ["PointToPoint", "PointToPlane"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_icp(dtype, name):
    source, target = clouds(dtype)
    found = treg.icp(
        source,
        target,
        3.0,
        o3c.Tensor(START, dtype=o3c.float64),
        getattr(treg, f"TransformationEstimation{name}")(),
        treg.ICPConvergenceCriteria(max_iteration=2),
    )
    for module in (reg, o3d.pipelines.registration):
        legacy = module.registration_icp(
            source.to_legacy(),
            target.to_legacy(),
            3.0,
            START,
            getattr(module, f"TransformationEstimation{name}")(),
            module.ICPConvergenceCriteria(max_iteration=2),
        )
        np.testing.assert_allclose(found.inlier_rmse, legacy.inlier_rmse, 0.001)
        np.testing.assert_allclose(found.fitness, legacy.fitness, 0.001)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_get_information_matrix(dtype):
    source, target = clouds(dtype)
    found = treg.get_information_matrix(source, target, 3.0, o3c.Tensor(START, dtype=o3c.float64))
    legacy = reg.get_information_matrix_from_point_clouds(source.to_legacy(), target.to_legacy(), 3.0, START)
    np.testing.assert_allclose(found.cpu().numpy(), legacy, 1e-1, 1e-1)


@pytest.mark.parametrize("name", ["PointToPoint", "PointToPlane"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rmse_before_and_after_an_update(dtype, name):
    source, target = clouds(dtype)
    partners = o3c.Tensor(np.random.default_rng(3).integers(0, 38, 49), o3c.int64)
    numbers = []
    for module in (o3d.t.pipelines.registration, treg):
        moved = source.clone()
        method = getattr(module, f"TransformationEstimation{name}")()
        before = method.compute_rmse(moved, target, partners)
        update = method.compute_transformation(moved, target, partners)
        moved = moved.transform(update.to(o3c.Device("CPU:0"), dtype))
        numbers.append((before, method.compute_rmse(moved, target, partners)))
    assert abs(numbers[0][0] - numbers[0][1]) > 0.01
    np.testing.assert_allclose(numbers[1], numbers[0], 0.0001)


# --- the normal distributions transform ---

OPTIONS = {
    "voxel_size": 0.8,
    "min_points_per_voxel": 4,
    "covariance_regularization": 1e-3,
    "transformation_epsilon": 0.01,
    "relative_objective": 1e-7,
    "max_iteration": 40,
    "outlier_threshold": 9.0,
    "neighbor_search_type": 1,
}


def clusters():
    """Five flat blobs, well apart."""
    rng = np.random.default_rng(0)
    centers = rng.uniform(-1.5, 1.5, (5, 3))
    points = [center + rng.normal(size=(160, 3)) * [0.2, 0.13, 0.05] for center in centers]
    return o3d.geometry.PointCloud(o3d.utility.Vector3dVector(np.concatenate(points)))


def test_normal_distributions_transform_option():
    option = reg.NormalDistributionsTransformOption(**OPTIONS)
    for name, value in OPTIONS.items():
        assert getattr(option, name) == value
    assert "NormalDistributionsTransformOption" in repr(option)
    assert not hasattr(reg, "TransformationEstimationForNDT")


def test_registration_ndt_recovers_known_transform():
    expected = pose([0, 0, 0.08], [0.24, -0.17, 0.11])
    source = clusters()
    target = o3d.geometry.PointCloud(source).transform(expected)
    initial = reg.evaluate_registration(source, target, 0.35)
    result = reg.registration_ndt(source, target, reg.NormalDistributionsTransformOption(**OPTIONS), np.eye(4))
    refined = reg.evaluate_registration(source, target, 0.35, result.transformation)
    assert refined.fitness > initial.fitness
    assert refined.inlier_rmse < initial.inlier_rmse
    assert result.fitness > 0.80
    assert result.inlier_rmse < 0.3
    np.testing.assert_allclose(result.transformation, expected, atol=5e-2)
    pairs = np.asarray(result.correspondence_set)
    moved = np.asarray(o3d.geometry.PointCloud(source).transform(result.transformation).points)
    gaps = moved[pairs[:, 0]] - np.asarray(target.points)[pairs[:, 1]]
    np.testing.assert_allclose(result.inlier_rmse, np.sqrt(np.mean(np.sum(gaps * gaps, axis=1))))


def test_registration_ndt_rejects_icp_convergence_criteria():
    source = clusters()
    option = reg.NormalDistributionsTransformOption()
    with pytest.raises(TypeError):
        reg.registration_ndt(source, source, option, np.eye(4), reg.ICPConvergenceCriteria())
    with pytest.raises(TypeError):
        reg.registration_ndt(source, source, reg.ICPConvergenceCriteria())


@pytest.mark.parametrize(
    ("name", "value"),
    [("voxel_size", -1.0), ("outlier_threshold", 0.0), ("neighbor_search_type", 2), ("relative_objective", np.nan)],
)
def test_registration_ndt_rejects_invalid_options(name, value):
    with pytest.raises(RuntimeError, match=name):
        reg.NormalDistributionsTransformOption(**{name: value})
    option = reg.NormalDistributionsTransformOption()
    setattr(option, name, value)
    with pytest.raises(RuntimeError, match=name):
        reg.registration_ndt(clusters(), clusters(), option)
