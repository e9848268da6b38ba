"""The drop-in against Open3D itself, at the edges: where Open3D raises, so do we, and what it accepts, we do."""

from __future__ import annotations

import numpy as np
import pytest

o3d = pytest.importorskip(
    "open3d",
    reason="Open3D is not importable (pip install 'dlc_reg[open3d]'; on Debian its wheel needs libusb-1.0-0)",
    exc_type=ImportError,
)

from test_objectives import pose  # noqa: E402
from test_pipelines_open3d import cloud_of, theirs  # noqa: E402

from dlc_reg.pipelines import registration as reg  # noqa: E402


def outcome(call):
    try:
        call()
    except (RuntimeError, TypeError) as error:
        return RuntimeError if isinstance(error, RuntimeError) else TypeError
    return None


ERRORS = {
    "distance_0": lambda m, s, t: m.registration_icp(s, t, 0.0),
    "distance_negative": lambda m, s, t: m.registration_icp(s, t, -1.0),
    "distance_text": lambda m, s, t: m.registration_icp(s, t, "1"),
    "distance_array": lambda m, s, t: m.registration_icp(s, t, np.array([1.0])),
    "distance_before_normals": lambda m, s, t: m.registration_icp(
        s, t, -1.0, np.eye(4), m.TransformationEstimationPointToPlane()
    ),
    "generalized_distance_0": lambda m, s, t: m.registration_generalized_icp(s, t, 0.0),
    "no_normals": lambda m, s, t: m.registration_icp(s, t, 0.1, np.eye(4), m.TransformationEstimationPointToPlane()),
    "no_normals_symmetric": lambda m, s, t: m.registration_symmetric_icp(s, t, 0.1),
    "no_normals_rmse": lambda m, s, t: m.TransformationEstimationSymmetric().compute_rmse(
        s, t, o3d.utility.Vector2iVector([[0, 0]])
    ),
    "init_3x3": lambda m, s, t: m.registration_icp(s, t, 0.1, np.eye(3)),
    "init_flat": lambda m, s, t: m.registration_icp(s, t, 0.1, np.eye(4).ravel()),
    "init_text": lambda m, s, t: m.registration_icp(s, t, 0.1, "x"),
    "not_a_cloud": lambda m, s, t: m.registration_icp(object(), t, 0.1),
    "none": lambda m, s, t: m.registration_icp(s, None, 0.1),
    "method_text": lambda m, s, t: m.registration_icp(s, t, 0.1, np.eye(4), "p2p"),
    "criteria_dict": lambda m, s, t: m.registration_icp(
        s, t, 0.1, np.eye(4), m.TransformationEstimationPointToPoint(), {}
    ),
    "other_method": lambda m, s, t: m.registration_generalized_icp(
        s, t, 0.1, np.eye(4), m.TransformationEstimationPointToPoint()
    ),
    "kernel_number": lambda m, s, t: m.TransformationEstimationPointToPlane(1),
    "kernel_without_k": lambda m, s, t: m.HuberLoss(),
    "abstract_kernel": lambda m, s, t: m.RobustKernel(),
    "abstract_method": lambda m, s, t: m.TransformationEstimation(),
    "float_iterations": lambda m, s, t: m.ICPConvergenceCriteria(1e-6, 1e-6, 3.5),
    "text_criteria": lambda m, s, t: m.ICPConvergenceCriteria("a"),
    "no_transformation": lambda m, s, t: m.get_information_matrix_from_point_clouds(s, t, 0.1),
    "pair_out_of_range": lambda m, s, t: m.TransformationEstimationSymmetric().compute_transformation(
        with_normals(s), with_normals(t), o3d.utility.Vector2iVector([[0, 9999]])
    ),
}


def with_normals(cloud):
    return cloud_of(cloud.points)


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_of_open3ds_class(case):
    rng = np.random.default_rng(0)
    s, t = (o3d.geometry.PointCloud(o3d.utility.Vector3dVector(rng.normal(size=(40, 3)))) for _ in range(2))
    expected = outcome(lambda: ERRORS[case](theirs, s, t))
    assert expected is not None
    assert outcome(lambda: ERRORS[case](reg, s, t)) is expected


ACCEPTED = {
    "distance_inf": lambda m, s, t: m.registration_icp(s, t, np.inf),
    "distance_int": lambda m, s, t: m.registration_icp(s, t, 1),
    "list_init": lambda m, s, t: m.registration_icp(s, t, 1.0, np.eye(4).tolist()),
    "keywords": lambda m, s, t: m.registration_icp(
        source=s, target=t, max_correspondence_distance=1.0, init=np.eye(4),
        estimation_method=m.TransformationEstimationPointToPoint(), criteria=m.ICPConvergenceCriteria(),
    ),
    "negative_iterations": lambda m, s, t: m.registration_icp(
        s, t, 1.0, np.eye(4), m.TransformationEstimationPointToPoint(), m.ICPConvergenceCriteria(0, 0, -5)
    ),
    "far_away": lambda m, s, t: m.registration_icp(s, t, 0.1, pose([0.3, 0, 0], [100, 0, 0])),
    "empty_source": lambda m, s, t: m.registration_icp(o3d.geometry.PointCloud(), t, 0.1, pose([0.3, 0, 0], [1, 0, 0])),
    "empty_target": lambda m, s, t: m.registration_icp(s, o3d.geometry.PointCloud(), 0.1, pose([0.3, 0, 0], [1, 0, 0])),
}  # fmt: skip


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_open3d_accepts_gives_the_same(case):
    rng = np.random.default_rng(1)
    points = rng.normal(size=(60, 3))
    s, t = (o3d.geometry.PointCloud(o3d.utility.Vector3dVector(p)) for p in (points, points + 0.02))
    expected, result = ACCEPTED[case](theirs, s, t), ACCEPTED[case](reg, s, t)
    np.testing.assert_allclose(result.transformation, expected.transformation, atol=1e-6)
    assert result.fitness == expected.fitness
    assert len(result.correspondence_set) == len(expected.correspondence_set)


def test_non_finite_source_points_count_alike():
    rng = np.random.default_rng(2)
    points = rng.normal(size=(60, 3))
    broken = points.copy()
    broken[7] = np.nan
    s, t = (o3d.geometry.PointCloud(o3d.utility.Vector3dVector(p)) for p in (broken, points + 0.02))
    expected = theirs.registration_icp(s, t, 0.5)
    with pytest.warns(UserWarning, match="not finite"):
        result = reg.registration_icp(s, t, 0.5)
    assert result.fitness == expected.fitness == 59 / 60
    assert np.array_equal(result.correspondence_set, np.asarray(expected.correspondence_set))
