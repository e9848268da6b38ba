"""The drop-in against Open3D itself: iterates, figures, correspondences, defaults and errors."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest

o3d = pytest.importorskip(
    "open3d",
    reason="Open3D is not importable (pip install 'dlc_reg[open3d]'; on Debian its wheel needs libusb-1.0-0)",
    exc_type=ImportError,
)

from test_icp import about, error_of  # noqa: E402
from test_objectives import pose  # noqa: E402
from test_pipelines import KERNELS, NAMES  # noqa: E402

from dlc_reg.pipelines import registration as reg  # noqa: E402

theirs = o3d.pipelines.registration
TOLERANCE = 1e-6  # of the extent, and relative for fitness and RMSE


def cloud_of(points):
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(np.asarray(points)))
    cloud.estimate_normals(o3d.geometry.KDTreeSearchParamKNN(20))
    return cloud


@pytest.fixture(scope="module")
def scans(bunny_pair):
    """Every fourth point of the real pair as Open3D clouds with normals, and the truth."""
    return cloud_of(bunny_pair.source[::4]), cloud_of(bunny_pair.target[::4]), bunny_pair.T_target_source


def both(name, kernel=None, scale=0.001, **options):
    """The estimation method, theirs and ours."""
    made = []
    for module in (theirs, reg):
        if kernel is not None:
            parameter = (scale**2 if kernel == "GMLoss" else scale,) if KERNELS[kernel] else ()
            options["kernel"] = getattr(module, kernel)(*parameter)
        made.append(getattr(module, f"TransformationEstimation{name}")(**options))
    return made


def criteria(module, *values):
    return module.ICPConvergenceCriteria(*values)


def assert_same(ours, expected, source, target, tolerance=TOLERANCE):
    points = np.asarray(source.points)
    extent = np.ptp(np.asarray(target.points), axis=0).max()
    assert error_of(ours.transformation, expected.transformation, points) < tolerance * extent
    assert ours.fitness == pytest.approx(expected.fitness, rel=tolerance)
    assert ours.inlier_rmse == pytest.approx(expected.inlier_rmse, rel=tolerance, abs=1e-9 * extent)
    assert_same_pairs(ours, expected, source, target)


def assert_same_pairs(ours, expected, source, target):
    """Correspondence sets agree but for distance ties."""
    mine, other = np.asarray(ours.correspondence_set), np.asarray(expected.correspondence_set)
    other = other[np.argsort(other[:, 0])]
    assert mine.dtype == other.dtype == np.int32
    assert np.array_equal(mine[:, 0], other[:, 0])
    apart = np.flatnonzero(mine[:, 1] != other[:, 1])
    t = expected.transformation
    at = np.asarray(source.points)[mine[apart, 0]] @ t[:3, :3].T + t[:3, 3]
    q = np.asarray(target.points)
    gaps = [np.linalg.norm(at - q[pairs[apart, 1]], axis=1) for pairs in (mine, other)]
    np.testing.assert_allclose(gaps[0], gaps[1], rtol=1e-5)
    assert len(apart) < 1e-3 * len(mine) + 1


STARTS = {
    "5_degrees": ((1, 2, 3), 5),
    "10_degrees": ((0, 1, 0), -10),
    "20_degrees": ((-1, 2, 0.5), 20),
}


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", NAMES)
def test_same_iterates_from_perturbed_starts(scans, name, start, reverse):
    source, target, truth = scans
    if reverse:
        source, target, truth = target, source, np.linalg.inv(truth)
    init = about(np.asarray(target.points).mean(axis=0), *STARTS[start]) @ truth
    method, ours = both(name)
    expected = theirs.registration_icp(source, target, 0.01, init, method)
    assert_same(reg.registration_icp(source, target, 0.01, init, ours), expected, source, target)


@pytest.mark.parametrize("name", NAMES)
def test_same_iterates_from_identity(scans, name):
    """Both scans lie on the lattice of one scanner: at identity many neighbours are equally near, so it is shifted."""
    source, target, _ = scans
    init = pose([0, 0, 0], [0.000123, 0.000234, 0.000345])
    method, ours = both(name)
    expected = theirs.registration_icp(source, target, 0.01, init, method, criteria(theirs, 1e-6, 1e-6, 10))
    result = reg.registration_icp(source, target, 0.01, init, ours, criteria(reg, 1e-6, 1e-6, 10))
    assert_same(result, expected, source, target)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", NAMES[1:])
def test_same_iterates_with_every_kernel(scans, name, kernel):
    source, target, truth = scans
    init = about(np.asarray(target.points).mean(axis=0), (1, 2, 3), 5) @ truth
    method, ours = both(name, kernel)
    expected = theirs.registration_icp(source, target, 0.01, init, method)
    # L1's weight 1 / |r| has no bound: its iterates magnify the last digits of whatever they are given
    tolerance = 2e-2 if kernel == "L1Loss" else TOLERANCE
    result = reg.registration_icp(source, target, 0.01, init, ours)
    if kernel == "L1Loss":
        assert error_of(result.transformation, expected.transformation, np.asarray(source.points)) < tolerance * 0.15
    else:
        assert_same(result, expected, source, target, tolerance)


@pytest.mark.parametrize("shift", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("name", NAMES)
def test_same_iterates_in_a_shifted_frame(scans, name, shift):
    """Within 100 extents of the origin the update turns about the frame's origin, as theirs."""
    source, target, truth = scans
    move = pose([0, 0, 0], [shift, -shift, 0.5 * shift])
    init = move @ about(np.asarray(target.points).mean(axis=0), (1, 2, 3), 5) @ truth
    target = cloud_of(np.asarray(target.points) + move[:3, 3])
    method, ours = both(name)
    expected = theirs.registration_icp(source, target, 0.01, init, method)
    assert_same(reg.registration_icp(source, target, 0.01, init, ours), expected, source, target)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_same_pose_after_every_step(scans, name, steps):
    source, target, truth = scans
    init = about(np.asarray(target.points).mean(axis=0), (3, -1, 1), 15) @ truth
    method, ours = both(name)
    expected = theirs.registration_icp(source, target, 0.02, init, method, criteria(theirs, 0, 0, steps))
    result = reg.registration_icp(source, target, 0.02, init, ours, criteria(reg, 0, 0, steps))
    assert result.iterations == steps
    assert_same(result, expected, source, target, 1e-7)


def test_scale_is_estimated_alike(scans):
    source, target, truth = scans
    small = cloud_of(np.asarray(source.points) * 0.95)
    method, ours = both("PointToPoint", with_scaling=True)
    init = truth @ pose([0, 0, 0], [0, 0, 0], 1 / 0.97)
    expected = theirs.registration_icp(small, target, 0.02, init, method, criteria(theirs, 0, 0, 5))
    result = reg.registration_icp(small, target, 0.02, init, ours, criteria(reg, 0, 0, 5))
    assert abs(np.linalg.det(result.transformation[:3, :3]) - np.linalg.det(init[:3, :3])) > 1e-3
    assert_same(result, expected, small, target)


@pytest.mark.parametrize("pair", [f"{i:02d}" for i in range(1, 9)])
def test_same_on_synthetic_range_pairs(shared_data, pair):
    """The FGR range pairs with the normals of their files, for the methods that use them."""
    files = sorted((shared_data / "fgr" / pair).glob("Depth_000[01].ply"))
    target, source = (o3d.io.read_point_cloud(str(file)).voxel_down_sample(0.02) for file in files)
    truth = np.loadtxt((shared_data / "fgr" / pair / "gt.log").read_text().splitlines()[-4:])
    init = about(np.asarray(target.points).mean(axis=0), (1, -1, 2), 5) @ truth
    for name in NAMES:
        method, ours = both(name)
        expected = theirs.registration_icp(source, target, 0.1, init, method)
        assert_same(reg.registration_icp(source, target, 0.1, init, ours), expected, source, target)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-2, 0.5])
def test_generalized_icp_with_given_covariances_and_epsilon(scans, epsilon):
    source, target, truth = scans
    init = about(np.asarray(target.points).mean(axis=0), (1, 2, 3), 5) @ truth
    method, ours = both("ForGeneralizedICP", epsilon=epsilon)
    expected = theirs.registration_generalized_icp(source, target, 0.01, init, method)
    assert_same(reg.registration_generalized_icp(source, target, 0.01, init, ours), expected, source, target)

    given = [o3d.geometry.PointCloud(cloud) for cloud in (source, target)]
    for cloud in given:
        cloud.estimate_covariances(o3d.geometry.KDTreeSearchParamKNN(20))
        cloud.covariances = o3d.utility.Matrix3dVector(1e5 * np.asarray(cloud.covariances) + 0.01 * np.eye(3))
    expected = theirs.registration_generalized_icp(*given, 0.01, init, method)
    assert_same(reg.registration_generalized_icp(*given, 0.01, init, ours), expected, source, target)


def test_generalized_icp_without_normals_estimates_them(scans):
    source, target, truth = scans
    bare = [o3d.geometry.PointCloud(cloud.points) for cloud in (source, target)]
    expected = theirs.registration_generalized_icp(*bare, 0.01, truth)
    result = reg.registration_generalized_icp(*bare, 0.01, truth)
    # the sign that an estimated normal happens to have enters Open3D's covariances where it is near -x
    assert error_of(result.transformation, expected.transformation, np.asarray(source.points)) < 1e-5
    assert result.fitness == pytest.approx(expected.fitness, abs=1e-3)
    assert result.inlier_rmse == pytest.approx(expected.inlier_rmse, rel=1e-3)


@pytest.mark.parametrize("distance", [0.0, 0.002, 0.01, np.inf])
def test_evaluation_and_information(scans, distance):
    source, target, truth = scans
    expected = theirs.evaluate_registration(source, target, distance, truth)
    result = reg.evaluate_registration(source, target, distance, truth)
    assert np.array_equal(result.transformation, truth)
    assert result.fitness == expected.fitness
    assert result.inlier_rmse == pytest.approx(expected.inlier_rmse, rel=TOLERANCE)
    assert_same_pairs(result, expected, source, target)
    np.testing.assert_allclose(
        reg.get_information_matrix_from_point_clouds(source, target, distance, truth),
        theirs.get_information_matrix_from_point_clouds(source, target, distance, truth),
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", NAMES)
def test_estimation_methods_on_given_pairs(scans, name, kernel):
    if name == "PointToPoint" and kernel != "L2Loss":
        pytest.skip("point-to-point has no kernel")
    rng = np.random.default_rng(0)
    source, target, truth = scans
    near = o3d.geometry.PointCloud(source)
    near.transform(about(np.asarray(target.points).mean(axis=0), (1, 2, 3), 3) @ truth)
    pairs = np.asarray(theirs.evaluate_registration(near, target, 0.01).correspondence_set)
    pairs = pairs[rng.permutation(len(pairs))[:2000]]
    for cloud in (near, target):
        if name == "ForGeneralizedICP" and not cloud.has_covariances():
            cloud.covariances = o3d.utility.Matrix3dVector(
                np.tile(np.diag([1.0, 0.5, 0.01]), (len(cloud.points), 1, 1))
            )
    method, ours = both(name, None if name == "PointToPoint" else kernel)
    corres = o3d.utility.Vector2iVector(pairs)
    expected = method.compute_transformation(near, target, corres)
    tolerance = 1e-3 if kernel == "L1Loss" else 1e-7
    np.testing.assert_allclose(ours.compute_transformation(near, target, corres), expected, atol=tolerance)
    assert ours.compute_rmse(near, target, corres) == pytest.approx(method.compute_rmse(near, target, corres), rel=1e-9)
    target.covariances = o3d.utility.Matrix3dVector()


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_weights_and_texts(kernel):
    parameter = (0.7,) if KERNELS[kernel] else ()
    a, b = getattr(theirs, kernel)(*parameter), getattr(reg, kernel)(*parameter)
    for residual in (-2.0, -0.7, -1e-3, 0.0, 0.3, 0.7, 5.0):
        assert b.weight(residual) == pytest.approx(a.weight(residual), rel=1e-12)
    assert repr(a) == repr(b)


def test_texts_and_defaults():
    pairs = [both(name) for name in NAMES]
    pairs += [(theirs.ICPConvergenceCriteria(), reg.ICPConvergenceCriteria())]
    pairs += [(theirs.RegistrationResult(), reg.RegistrationResult())]
    for a, b in pairs:
        assert repr(a) == repr(b)
        public = {n for n in dir(a) if not n.startswith("_")}
        assert public <= {n for n in dir(b) if not n.startswith("_")}
        for item in public:
            if isinstance(getattr(a, item), (int, float, bool)):
                assert getattr(a, item) == getattr(b, item)


@pytest.mark.parametrize(
    "name",
    [
        "registration_icp",
        "registration_generalized_icp",
        "registration_symmetric_icp",
        "evaluate_registration",
        "get_information_matrix_from_point_clouds",
    ],
)
def test_signatures(name):
    """Names, order and which arguments have defaults, from pybind's own text."""
    text = getattr(theirs, name).__doc__.splitlines()[0]
    expected = re.findall(r"[(,] ?(\w+): (?:open3d|typing)", text)
    parameters = inspect.signature(getattr(reg, name)).parameters
    ours_alone = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    assert list(parameters) == expected + ours_alone and set(ours_alone) <= {"num_threads"}
    if "estimation_method" in parameters:
        for argument in ("estimation_method", "criteria"):
            default = repr(parameters[argument].default)
            assert f"{argument}: " in text and f"= {default}" in text


def test_names():
    public = {n for n in dir(theirs) if not n.startswith("_") and n not in ("m", "n")}
    assert set(reg.__all__) - public == {"TransformationEstimationLearned"}
    for name in public - set(reg.__all__):  # the pose graph
        assert getattr(reg, name) is getattr(theirs, name)


def test_open3ds_own_methods_and_criteria_are_understood(scans):
    """Code that migrates step by step may still hold theirs."""
    source, target, truth = scans
    init = about(np.asarray(target.points).mean(axis=0), (1, 2, 3), 5) @ truth
    method = theirs.TransformationEstimationPointToPlane(theirs.TukeyLoss(0.002))
    stop = theirs.ICPConvergenceCriteria(max_iteration=3)
    expected = theirs.registration_icp(source, target, 0.01, init, method, stop)
    assert_same(reg.registration_icp(source, target, 0.01, init, method, stop), expected, source, target)


def test_tensor_clouds_are_accepted(scans):
    source, target, truth = scans
    tensors = [o3d.t.geometry.PointCloud.from_legacy(cloud, o3d.core.float64) for cloud in (source, target)]
    result = reg.registration_icp(*tensors, 0.01, truth, reg.TransformationEstimationPointToPlane())
    expected = reg.registration_icp(source, target, 0.01, truth, reg.TransformationEstimationPointToPlane())
    np.testing.assert_allclose(result.transformation, expected.transformation, atol=1e-7)
