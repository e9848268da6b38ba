"""The tensor face against Open3D's own tensor module: iterates, scales, callbacks, kinds of answers, Doppler ICP."""

from __future__ import annotations

import numpy as np
import pytest

o3d = pytest.importorskip(
    "open3d",
    reason="Open3D is not importable (pip install 'dlc_reg[open3d]'; on Debian its wheel needs libusb-1.0-0)",
    exc_type=ImportError,
)

from test_icp import about  # noqa: E402
from test_objectives import pose  # noqa: E402

from dlc_reg.t.pipelines import registration as reg  # noqa: E402

theirs = o3d.t.pipelines.registration
Tensor, float32, float64 = o3d.core.Tensor, o3d.core.float32, o3d.core.float64
Doubles = o3d.utility.DoubleVector


def cloud_of(points):
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(np.array(points)))
    cloud.estimate_normals(o3d.geometry.KDTreeSearchParamKNN(20))
    return o3d.t.geometry.PointCloud.from_legacy(cloud, float64)


@pytest.fixture(scope="module")
def scans(bunny_pair):
    init = about(bunny_pair.target.mean(axis=0), (1, 2, 3), 5) @ bunny_pair.T_target_source
    return cloud_of(bunny_pair.source[::4]), cloud_of(bunny_pair.target[::4]), Tensor(init)


def assert_same(result, expected, tolerance=1e-6):
    gap = np.abs(result.transformation.numpy() - expected.transformation.numpy()).max()
    assert gap < tolerance
    assert result.fitness == pytest.approx(expected.fitness, rel=tolerance)
    assert result.inlier_rmse == pytest.approx(expected.inlier_rmse, rel=tolerance)
    assert (result.converged, result.num_iterations) == (expected.converged, expected.num_iterations)


NAMES = ["PointToPoint", "PointToPlane", "Symmetric"]


@pytest.mark.parametrize("steps", [0, 1, 3, 30])
@pytest.mark.parametrize("name", NAMES)
def test_same_iterates(scans, name, steps):
    source, target, init = scans
    found, seen = [], [[], []]
    for module, records in zip((theirs, reg), seen, strict=True):
        method = getattr(module, f"TransformationEstimation{name}")()
        criteria = module.ICPConvergenceCriteria(max_iteration=steps)
        found.append(module.icp(source, target, 0.01, init, method, criteria, -1.0, records.append))
    expected, result = found
    assert_same(result, expected)
    partners, others = result.correspondence_set, expected.correspondence_set
    assert type(partners) is type(others) is Tensor
    assert (partners.dtype, partners.shape) == (others.dtype, others.shape)
    assert (partners.numpy() == others.numpy()).mean() > 0.999  # but for ties
    assert len(seen[0]) == len(seen[1]) == result.num_iterations
    for a, b in zip(*seen, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert (a[key].dtype, a[key].shape) == (b[key].dtype, b[key].shape)
            np.testing.assert_allclose(b[key].numpy(), a[key].numpy(), atol=1e-5)  # a tie may lie on the way


@pytest.mark.parametrize("kernel", ["L2Loss", "HuberLoss", "CauchyLoss", "GMLoss", "TukeyLoss"])
def test_same_iterates_with_every_kernel(scans, kernel):
    source, target, init = scans
    found = []
    for module in (theirs, reg):
        k = module.robust_kernel
        made = k.RobustKernel(getattr(k.RobustKernelMethod, kernel), 1e-6 if kernel == "GMLoss" else 1e-3, 1.0)
        method = module.TransformationEstimationPointToPlane(made)
        found.append(module.icp(source, target, 0.01, init, method))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("name", NAMES)
def test_same_answer_with_a_voxel_size(scans, name):
    source, target, init = scans
    methods = [getattr(m, f"TransformationEstimation{name}")() for m in (theirs, reg)]
    expected = theirs.icp(source, target, 0.02, init, methods[0], voxel_size=0.01)
    result = reg.icp(source, target, 0.02, init, methods[1], voxel_size=0.01)
    assert_same(result, expected)
    assert result.correspondence_set.shape == expected.correspondence_set.shape


def test_same_answer_of_scales(scans):
    """Open3D thins in float32 sums: a mean on a voxel's border may fall on its other side, so the path differs."""
    source, target, init = scans
    method = lambda m: m.TransformationEstimationPointToPlane()  # noqa: E731
    lists = [0.01, 0.004, -1.0], [0.03, 0.02, 0.01]
    expected = theirs.multi_scale_icp(
        source,
        target,
        Doubles(lists[0]),
        [theirs.ICPConvergenceCriteria()] * 3,
        Doubles(lists[1]),
        init,
        method(theirs),
    )
    result = reg.multi_scale_icp(
        source, target, lists[0], [reg.ICPConvergenceCriteria()] * 3, lists[1], init, method(reg)
    )
    assert np.abs(result.transformation.numpy() - expected.transformation.numpy()).max() < 1e-6
    assert result.fitness == pytest.approx(expected.fitness, rel=1e-6)


def test_same_evaluation_and_information(scans):
    source, target, init = scans
    for distance in (0.002, 0.01):
        expected = theirs.evaluate_registration(source, target, distance, init)
        result = reg.evaluate_registration(source, target, distance, init)
        assert (result.fitness, result.converged) == (expected.fitness, expected.converged)
        assert result.inlier_rmse == pytest.approx(expected.inlier_rmse, rel=1e-6)
        np.testing.assert_allclose(
            reg.get_information_matrix(source, target, distance, init).numpy(),
            theirs.get_information_matrix(source, target, distance, init).numpy(),
            rtol=1e-6,
            atol=1e-6,
        )


def test_same_features_and_matches(bunny_pair):
    """Of thinned clouds: the scans lie on a lattice, where many neighbours are equally far."""
    points = [o3d.geometry.PointCloud(o3d.utility.Vector3dVector(np.array(p))) for p in bunny_pair[:2]]
    source, target = (cloud_of(np.asarray(cloud.voxel_down_sample(0.004).points)) for cloud in points)
    for options in ((50, 0.02), (30,), (None, 0.01), (30, 0.02, Tensor([8, 3, 5]))):
        expected, result = (module.compute_fpfh_feature(source, *options) for module in (theirs, reg))
        assert type(result) is Tensor and result.dtype == expected.dtype
        np.testing.assert_allclose(result.numpy(), expected.numpy(), atol=1e-6)
    pair = [theirs.compute_fpfh_feature(cloud, 50, 0.02) for cloud in (source, target)]
    for mutual in (False, True):
        expected, result = (module.correspondences_from_features(*pair, mutual) for module in (theirs, reg))
        assert result.dtype == expected.dtype
        assert np.array_equal(result.numpy(), expected.numpy())


def coloured(points):
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points))
    cloud.estimate_normals()
    shade = 0.5 + 0.4 * np.sin(6 * points[:, 1:2])
    cloud.colors = o3d.utility.Vector3dVector(np.repeat(shade, 3, axis=1))
    return cloud


def test_coloured_icp_converges_in_either_precision():
    """Open3D 0.20's does not with float64 clouds: if the last line fails, it may have been mended."""
    rng = np.random.default_rng(0)
    sheets = [
        np.c_[xy, 0.1 * np.sin(3 * xy[:, 0])]
        for xy in (rng.uniform(-0.8, 0.8, (3000, 2)), rng.uniform(-1, 1, (3000, 2)))
    ]
    source, target = map(coloured, sheets)
    start = Tensor(pose([0, 0, 0], [0, 0.03, 0.01]))
    off = {}
    for dtype in (float32, float64):
        pair = [o3d.t.geometry.PointCloud.from_legacy(cloud, dtype) for cloud in (source, target)]
        for module in (theirs, reg):
            result = module.icp(*pair, 0.1, start, module.TransformationEstimationForColoredICP())
            off[module, dtype] = np.abs(result.transformation.numpy() - np.eye(4)).max()
    assert off[reg, float32] < 1e-3 and off[reg, float64] < 1e-3 and off[theirs, float32] < 1e-3
    assert off[theirs, float64] > 0.01


def test_texts_and_defaults():
    for make in (
        lambda m: m.ICPConvergenceCriteria(),
        lambda m: m.robust_kernel.RobustKernel(),
        lambda m: m.TransformationEstimationPointToPoint(),
        lambda m: m.TransformationEstimationPointToPlane(),
        lambda m: m.TransformationEstimationSymmetric(),
        lambda m: m.TransformationEstimationForColoredICP(),
        lambda m: m.TransformationEstimationForDopplerICP(),
        lambda m: m.RegistrationResult(),
    ):
        ours, expected = make(reg), make(theirs)
        assert repr(ours) == repr(expected)
        for name in dir(expected):
            if isinstance(getattr(expected, name, None) if name != "correspondence_set" else None, (int, float)):
                assert getattr(ours, name) == getattr(expected, name)


def test_what_open3d_makes_of_ours():
    """The results serve Open3D's own calls."""
    empty = reg.RegistrationResult()
    assert empty.transformation.allclose(Tensor.eye(4, float64))
    points = np.random.default_rng(0).normal(size=(50, 3))
    cloud = o3d.t.geometry.PointCloud(Tensor(points))
    result = reg.icp(cloud, cloud, 0.1)
    cloud.transform(result.transformation)
    np.testing.assert_allclose(cloud.point.positions.numpy(), points, atol=1e-6)


# --- Doppler ICP ---

PERIOD = 0.1
LEVER = pose([0.1, 0.2, -0.3], [0.5, 0.2, 1.0])
MOTION = pose([0.005, -0.01, 0.03], [0.8, 0.05, -0.02])


def tunnel(n, seed):
    rng = np.random.default_rng(seed)
    x, a = rng.uniform(-20, 20, n), rng.uniform(0, 2 * np.pi, n)
    radius = 4 + 0.3 * np.sin(x)
    return np.c_[x, radius * np.cos(a), radius * np.sin(a)]


@pytest.fixture(scope="module")
def drive():
    """A tunnel seen from a vehicle before and after it moved; one point in twenty moves on its own."""
    inverse = np.linalg.inv(MOTION)
    points = tunnel(4000, 1) @ inverse[:3, :3].T + inverse[:3, 3]
    rng = np.random.default_rng(0)
    directions = points - LEVER[:3, 3]
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    turning = -np.array([0.005, -0.01, 0.03]) / PERIOD
    velocity = -MOTION[:3, 3] / PERIOD + np.cross(turning, LEVER[:3, 3])
    dopplers = -directions @ velocity + rng.normal(0, 0.05, len(points))
    dopplers[::20] += 5
    source = o3d.t.geometry.PointCloud(Tensor(points))
    source.point["dopplers"], source.point["directions"] = Tensor(dopplers[:, None]), Tensor(directions)
    return source, cloud_of(tunnel(4000, 0)), Tensor(pose([0, 0, 0], [0.3, 0, 0]))


DOPPLER = {
    "default": (PERIOD, 0.01, False, 2.0, 2, 0, 2, "L2Loss", "L2Loss", np.eye(4)),
    "outliers": (PERIOD, 0.1, True, 2.0, 2, 0, 2, "L2Loss", "L2Loss", LEVER),
    "kernels": (PERIOD, 0.05, True, 1.0, 1, 1, 3, "TukeyLoss", "TukeyLoss", LEVER),
}


def doppler(module, values):
    k = module.robust_kernel
    *numbers, geometric, velocity, lever = values
    made = [k.RobustKernel(getattr(k.RobustKernelMethod, kind), 0.5, 1.0) for kind in (geometric, velocity)]
    return module.TransformationEstimationForDopplerICP(*numbers, *made, Tensor(lever))


@pytest.mark.parametrize("steps", [1, 4, 30])
@pytest.mark.parametrize("case", DOPPLER)
def test_doppler_icp_gives_the_same_pose(drive, case, steps):
    source, target, init = drive
    found = []
    for module in (theirs, reg):
        criteria = module.ICPConvergenceCriteria(max_iteration=steps)
        found.append(module.icp(source, target, 2.0, init, doppler(module, DOPPLER[case]), criteria))
    assert_same(found[1], found[0])
    again = reg.icp(
        source, target, 2.0, init, doppler(theirs, DOPPLER[case]), reg.ICPConvergenceCriteria(max_iteration=steps)
    )
    assert np.array_equal(again.transformation.numpy(), found[1].transformation.numpy())  # theirs is understood


@pytest.mark.parametrize("case", DOPPLER)
def test_doppler_updates_and_rmse_on_given_correspondences(drive, case):
    source, target, init = drive
    partners = theirs.evaluate_registration(source, target, 2.0, init).correspondence_set
    a, b = (doppler(module, DOPPLER[case]) for module in (theirs, reg))
    assert b.compute_rmse(source, target, partners) == pytest.approx(a.compute_rmse(source, target, partners), rel=1e-9)
    for step in (0, 1, 5):
        expected = a.compute_transformation(source, target, partners, init, step).numpy()
        result = b.compute_transformation(source, target, partners, init, step).numpy()
        np.testing.assert_allclose(result, expected, atol=1e-12)


def test_velocities_hold_what_a_smooth_tunnel_leaves_free(drive):
    """Along the axis the walls say nothing but through their waves; with velocities the motion is known."""
    source, target, init = drive
    smooth = reg.icp(source, target, 2.0, init, reg.TransformationEstimationPointToPlane())
    held = reg.icp(source, target, 2.0, init, doppler(reg, DOPPLER["outliers"]))
    error = lambda r: abs(r.transformation.numpy()[0, 3] - MOTION[0, 3])  # noqa: E731
    assert error(held) < 0.02
    assert error(held) <= error(smooth) + 1e-3


def test_kernels_of_doppler_icp_may_differ(drive):
    """Open3D knows a few combinations only."""
    source, target, init = drive
    values = (PERIOD, 0.1, False, 2.0, 2, 0, 0, "CauchyLoss", "HuberLoss", LEVER)
    with pytest.raises(RuntimeError, match="Unsupported"):
        theirs.icp(source, target, 2.0, init, doppler(theirs, values))
    result = reg.icp(source, target, 2.0, init, doppler(reg, values))
    assert np.abs(result.transformation.numpy() - MOTION).max() < 0.02


def test_doppler_icp_names_what_is_missing(drive):
    source, target, init = drive
    bare = o3d.t.geometry.PointCloud(source.point.positions)
    with pytest.raises(RuntimeError, match="source: got a cloud of 4000 points without dopplers"):
        reg.icp(bare, target, 2.0, init, reg.TransformationEstimationForDopplerICP())
    with pytest.raises(RuntimeError, match="DopplerICP requires"):
        reg.icp(source, bare, 2.0, init, reg.TransformationEstimationForDopplerICP())
    method = reg.TransformationEstimationForDopplerICP(0.2)
    assert (method.lambda_doppler, method.period) == (0.2, 0.1)
    assert reg.TransformationEstimationForDopplerICP(method).lambda_doppler == 0.2
    assert reg.TransformationEstimationForDopplerICP(period=0.5).period == 0.5
    with pytest.raises(RuntimeError, match="lambda_doppler: got 2"):
        method.lambda_doppler = 2
    with pytest.raises(RuntimeError, match="period: got 0"):
        method.period = 0
    with pytest.raises(AttributeError, match="perod"):
        method.perod = 1
    with pytest.raises(TypeError, match="takes period"):
        reg.TransformationEstimationForDopplerICP(perod=1)
