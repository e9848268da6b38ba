"""Coloured ICP by Open3D's names against Open3D itself: answers, figures, correspondences, defaults and errors."""

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

from colored import SHAPES, move, slide, surface  # noqa: E402
from scipy.spatial.transform import Rotation  # noqa: E402

from dlc_reg import ops  # noqa: E402
from dlc_reg.errors import InputError  # noqa: E402
from dlc_reg.pipelines import registration as reg  # noqa: E402

theirs = o3d.pipelines.registration
REACH = 0.1
KERNELS = {
    "L2Loss": (),
    "L1Loss": (),
    "HuberLoss": (0.02,),
    "CauchyLoss": (0.02,),
    "GMLoss": (0.01,),
    "TukeyLoss": (0.3,),
}


def legacy(points, colors=None, normals=True):
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points))
    if colors is not None:
        cloud.colors = o3d.utility.Vector3dVector(colors)
    if normals:
        cloud.estimate_normals(o3d.geometry.KDTreeSearchParamKNN(20))
    return cloud


@pytest.fixture(scope="module", params=SHAPES)
def pair(request):
    """Two samplings of one textured shape, the source slid away, and T_target_source."""
    (p, p_colors), (q, q_colors) = surface(request.param, 2500, 0), surface(request.param, 2000, 1)
    truth = slide(request.param)
    return legacy(move(np.linalg.inv(truth), p), p_colors), legacy(q, q_colors), truth


def random_scene(seed, n=1500):
    """Points in a box and colours without any order, the source a jittered part of the target."""
    rng = np.random.default_rng(seed)
    target, colors = rng.uniform(0, 1, (n, 3)), rng.random((n, 3))
    source = target[: 2 * n // 3] + 0.01 * rng.normal(size=(2 * n // 3, 3))
    return legacy(source, rng.random((2 * n // 3, 3))), legacy(target, colors), np.eye(4)


def both(source, target, start, kernel="L2Loss", iterations=30, reach=REACH, **options):
    answers = []
    for module in (theirs, reg):
        estimation = module.TransformationEstimationForColoredICP(
            **{"lambda_geometric": 0.968, **options}, kernel=getattr(module, kernel)(*KERNELS[kernel])
        )
        criteria = module.ICPConvergenceCriteria(1e-9, 1e-9, iterations)
        answers.append(module.registration_colored_icp(source, target, reach, start, estimation, criteria))
    return answers


def assert_same(expected, found, tolerance=1e-7):
    np.testing.assert_allclose(found.transformation, expected.transformation, rtol=0, atol=tolerance)
    assert found.fitness == pytest.approx(expected.fitness, abs=1e-9)
    assert found.inlier_rmse == pytest.approx(expected.inlier_rmse, rel=tolerance)
    pairs = np.asarray(expected.correspondence_set)
    assert found.correspondence_set.dtype == pairs.dtype
    assert np.array_equal(found.correspondence_set, pairs[np.argsort(pairs[:, 0])])


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("kernel", [k for k in KERNELS if k != "L1Loss"])
def test_answers_equal_open3ds(pair, kernel, back):
    source, target, truth = pair if not back else (pair[1], pair[0], np.linalg.inv(pair[2]))
    expected, found = both(source, target, np.eye(4), kernel)
    assert_same(expected, found)
    assert np.abs(found.transformation - truth).max() < 2e-3  # neither slid away


def test_the_first_step_of_l1_equals_open3ds(pair):
    """With points and normals that float32 holds: weights of 1 / |r| blow every rounding up, and later steps part."""
    exact = []
    for cloud in pair[:2]:
        exact.append(legacy(np.asarray(cloud.points, np.float32).astype(float), cloud.colors, normals=False))
        exact[-1].normals = o3d.utility.Vector3dVector(np.asarray(cloud.normals, np.float32).astype(float))
    assert_same(*both(*exact, np.eye(4), "L1Loss", iterations=1), tolerance=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_every_lambda_equals_open3ds(share):
    (p, p_colors), (q, q_colors) = surface("wave", 2500, 0), surface("wave", 2000, 1)
    source, target = legacy(move(np.linalg.inv(slide("wave")), p), p_colors), legacy(q, q_colors)
    assert_same(*both(source, target, np.eye(4), lambda_geometric=share, iterations=3), tolerance=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_random_starts_equal_open3ds(pair, seed):
    rng = np.random.default_rng(seed)
    start = pair[2].copy()
    start[:3, :3] = Rotation.from_rotvec(rng.normal(scale=0.03, size=3)).as_matrix() @ start[:3, :3]
    start[:3, 3] += rng.uniform(-0.05, 0.05, 3)
    assert_same(*both(*pair[:2], start, iterations=40), tolerance=1e-6)


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k != "L1Loss"])
@pytest.mark.parametrize("seed", range(3))
def test_random_scenes_equal_open3ds(seed, kernel):
    source, target, start = random_scene(seed)
    assert_same(*both(source, target, start, kernel, iterations=3))


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_thick_surfaces_in_other_units_equal_open3ds(unit):
    """Open3D does not project neighbours onto the tangent plane: how much that matters depends on the unit."""
    (p, p_colors), (q, q_colors) = (surface("wave", n, seed, noise=0.02) for n, seed in ((2500, 0), (2000, 1)))
    source, target = legacy(unit * p, p_colors), legacy(unit * q, q_colors)
    for share in (0.968, 0.0):
        expected, found = both(source, target, np.eye(4), reach=unit * REACH, iterations=3, lambda_geometric=share)
        found.transformation[:3, 3] /= unit
        moved = np.array(expected.transformation)
        moved[:3, 3] /= unit
        np.testing.assert_allclose(found.transformation, moved, rtol=0, atol=1e-6)


@pytest.mark.parametrize("reach", [0.012, 0.03, 0.5, float("inf")])
def test_every_reach_equals_open3ds(reach):
    """Few neighbours in the radius (fewer than 4: no gradient), and more than 30."""
    (p, p_colors), (q, q_colors) = surface("wave", 2500, 0), surface("wave", 2000, 1)
    expected, found = both(legacy(p, p_colors), legacy(q, q_colors), np.eye(4), reach=reach, iterations=3)
    assert expected.fitness > 0.05
    assert_same(expected, found, tolerance=1e-6)


def test_registration_icp_takes_the_estimation_ours_or_open3ds(pair):
    expected = theirs.registration_icp(
        *pair[:2], REACH, np.eye(4), theirs.TransformationEstimationForColoredICP(0.9, theirs.TukeyLoss(0.3))
    )
    for module in (theirs, reg):
        estimation = module.TransformationEstimationForColoredICP(0.9, module.TukeyLoss(0.3))
        assert_same(expected, reg.registration_icp(*pair[:2], REACH, np.eye(4), estimation))
    assert_same(
        theirs.registration_colored_icp(*pair[:2], REACH, np.eye(4)), reg.registration_colored_icp(*pair[:2], REACH)
    )


def test_non_finite_source_points_are_left_out(pair):
    source, target, _ = pair
    points = np.asarray(source.points).copy()
    points[5] = np.nan
    broken = o3d.geometry.PointCloud(source)
    broken.points = o3d.utility.Vector3dVector(points)
    with pytest.warns(UserWarning, match="1 of 2500 points are not finite"):
        found = reg.registration_colored_icp(broken, target, REACH)
    whole = reg.registration_colored_icp(source, target, REACH)
    assert 5 not in found.correspondence_set[:, 0]
    np.testing.assert_allclose(found.transformation, whole.transformation, atol=1e-3)


def test_figures_of_given_pairs(pair):
    """Open3D itself reads gradients that are not there (it crashes), so: by definition."""
    source, target, _ = pair
    pairs = np.stack([np.arange(200), np.arange(200) * 3], axis=1)
    estimation = reg.TransformationEstimationForColoredICP(0.8)
    p, q, n = (np.asarray(x) for x in (source.points, target.points, target.normals))
    shades = [np.asarray(c.colors).mean(axis=1) for c in (source, target)]
    index = ops.SearchIndex(ops._validate.as_tensor("points", q.astype(np.float32)))
    gradients = ops.intensity_gradients(index, shades[1][:, None], n).double().numpy()[:, 1:]
    d = p[pairs[:, 0]] - q[pairs[:, 1]]
    across = (d * n[pairs[:, 1]]).sum(axis=1)
    along = shades[0][pairs[:, 0]] - shades[1][pairs[:, 1]] - (d * gradients[pairs[:, 1]]).sum(axis=1)
    expected = np.sqrt((0.8 * across**2 + 0.2 * along**2).mean())
    assert estimation.compute_rmse(source, target, pairs) == pytest.approx(expected, rel=1e-5)
    assert estimation.compute_rmse(source, target, np.zeros((0, 2), int)) == 0.0
    same = np.stack([np.arange(2000)] * 2, axis=1)
    shifted = o3d.geometry.PointCloud(target).translate((0.01, 0.0, 0.0))
    step = estimation.compute_transformation(shifted, target, same)
    before, after = (
        estimation.compute_rmse(o3d.geometry.PointCloud(shifted).transform(t), target, same) for t in (np.eye(4), step)
    )
    assert after < 0.5 * before


# --- names, defaults, errors ------------------------------------------------------------------------------------------


def test_defaults_and_names_are_open3ds():
    ours, other = reg.TransformationEstimationForColoredICP(), theirs.TransformationEstimationForColoredICP()
    assert repr(ours) == repr(other) and ours.lambda_geometric == other.lambda_geometric == 0.968
    assert type(ours.kernel).__name__ == type(other.kernel).__name__ == "L2Loss"
    for share in (0.5, 0.123456789):
        made = [m.TransformationEstimationForColoredICP(share, m.TukeyLoss(0.1)) for m in (theirs, reg)]
        assert repr(made[0]) == repr(made[1]) and made[0].kernel.k == made[1].kernel.k
        copied = reg.TransformationEstimationForColoredICP(made[1])
        assert copied.lambda_geometric == share and copied.kernel.k == 0.1
    assert reg.TransformationEstimationForColoredICP(reg.HuberLoss(0.3)).kernel.k == 0.3
    documented = re.findall(r"(\w+)(?:: | \()", theirs.registration_colored_icp.__doc__.split("->")[0])
    parameters = inspect.signature(reg.registration_colored_icp).parameters.values()
    for parameter in parameters:
        assert parameter.kind is parameter.KEYWORD_ONLY or parameter.name in documented


ERRORS = {
    "target_normals": ((True, True), (True, False)),
    "target_colors": ((True, True), (False, True)),
    "source_colors": ((False, True), (True, True)),
    "all": ((False, False), (False, False)),
}


@pytest.mark.parametrize("case", ERRORS)
def test_missing_data_raises_with_open3ds_words(case):
    points, colors = surface("wave", 300, 0)
    pair = [legacy(points, colors if colored else None, normals) for colored, normals in ERRORS[case]]
    with pytest.raises(RuntimeError) as other:
        theirs.registration_colored_icp(*pair, REACH, np.eye(4))
    what, cloud = re.search(r"requires (\w+) pointcloud to have (\w+)", str(other.value)).group(2, 1)
    with pytest.raises(InputError) as ours:
        reg.registration_colored_icp(*pair, REACH)
    assert isinstance(ours.value, RuntimeError) and ours.value.argument == cloud
    assert f"without {what}" in str(ours.value)
    if what == "colors":
        assert f"ColoredICP requires {cloud} pointcloud to have colors" in str(ours.value)


def test_other_errors_are_of_open3ds_class():
    points, colors = surface("wave", 300, 0)
    cloud = legacy(points, colors)
    for call in (
        lambda m: m.registration_colored_icp(cloud, cloud, 0.0, np.eye(4)),
        lambda m: m.registration_colored_icp(cloud, cloud, -1.0, np.eye(4)),
        lambda m: m.registration_colored_icp(
            cloud, cloud, REACH, np.eye(4), m.TransformationEstimationForGeneralizedICP()
        ),
        lambda m: m.registration_colored_icp(cloud, cloud, REACH, np.eye(3)),
        lambda m: m.TransformationEstimationForColoredICP("0.9"),
        lambda m: m.TransformationEstimationForColoredICP(0.9, 1),
    ):
        raised = []
        for module in (theirs, reg):
            with pytest.raises((RuntimeError, TypeError)) as error:
                call(module)
            raised.append(RuntimeError if isinstance(error.value, RuntimeError) else TypeError)
        assert raised[0] is raised[1]
