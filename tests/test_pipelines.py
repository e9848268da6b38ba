"""Open3D's registration module by name, without Open3D: inputs, errors, results, the rest of the names."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_icp import about
from test_objectives import moved, pose, wavy

from dlc_reg.errors import InputError
from dlc_reg.iterate import Status
from dlc_reg.pipelines import registration as reg

TRUTH = pose([0.04, -0.03, 0.05], [0.02, 0.03, -0.02])
NAMES = ["PointToPoint", "PointToPlane", "Symmetric", "ForGeneralizedICP"]
KERNELS = {
    "L2Loss": (),
    "L1Loss": (),
    "HuberLoss": (0.1,),
    "CauchyLoss": (0.1,),
    "GMLoss": (0.1,),
    "TukeyLoss": (0.5,),
}


def method(name, *args, **kwargs):
    return getattr(reg, f"TransformationEstimation{name}")(*args, **kwargs)


def legacy(cloud, normals=True):
    """What the attributes of an Open3D legacy cloud look like."""
    return SimpleNamespace(
        points=cloud.to_absolute(),
        normals=cloud.normals.double().numpy() if normals else np.zeros((0, 3)),
        covariances=np.zeros((0, 3, 3)),
    )


@pytest.fixture(scope="module")
def clouds():
    target = wavy(1500, 0)
    return moved(wavy(700, 1), TRUTH), target


@pytest.mark.parametrize("name", NAMES)
def test_every_method_finds_the_pose(clouds, name):
    source, target = map(legacy, clouds)
    criteria = reg.ICPConvergenceCriteria(1e-9, 1e-9, 200)
    result = reg.registration_icp(source, target, 0.3, np.eye(4), method(name), criteria)
    assert np.abs(result.transformation - TRUTH).max() < (0.02 if name == "PointToPoint" else 2e-3)
    assert result.fitness == 1.0
    assert result.transformation.dtype == np.float64
    assert result.transformation.flags.writeable


@pytest.mark.parametrize(
    "make",
    [
        lambda c: c,
        legacy,
        lambda c: c.to_absolute(),
        lambda c: c.to_absolute().tolist(),
        lambda c: torch.from_numpy(c.to_absolute()),
        lambda c: torch.from_numpy(c.to_absolute()).requires_grad_(),
    ],
    ids=["PointCloud", "legacy", "numpy", "list", "tensor", "tensor_with_grad"],
)
def test_clouds_of_any_kind_give_one_answer(clouds, make):
    expected = reg.registration_icp(*map(legacy, clouds), 0.3)
    result = reg.registration_icp(*map(make, clouds), 0.3)
    np.testing.assert_allclose(result.transformation, expected.transformation, atol=1e-12)
    assert np.array_equal(result.correspondence_set, expected.correspondence_set)


def test_paths_are_read(samples, bunny_pair):
    by_path = reg.evaluate_registration(samples["source"], str(samples["target"]), 0.005, bunny_pair.T_target_source)
    by_array = reg.evaluate_registration(bunny_pair.source, bunny_pair.target, 0.005, bunny_pair.T_target_source)
    assert by_path.fitness == by_array.fitness > 0.6
    assert by_path.inlier_rmse == pytest.approx(by_array.inlier_rmse, rel=1e-7)


def test_normals_of_a_point_cloud_are_used(clouds):
    source, target = clouds
    result = reg.registration_icp(source, target, 0.3, np.eye(4), method("PointToPlane"))
    expected = reg.registration_icp(legacy(source), legacy(target), 0.3, np.eye(4), method("PointToPlane"))
    np.testing.assert_allclose(result.transformation, expected.transformation, atol=1e-12)


def test_open3d_is_not_imported():
    code = (
        "import sys, numpy as np, dlc_reg.pipelines.registration as r;"
        "p = np.random.default_rng(0).normal(size=(50, 3)); r.registration_icp(p, p + 0.01, 1.0);"
        "assert not any(m.split('.')[0] == 'open3d' for m in sys.modules), 'open3d'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd="/")  # not the bare source tree


# --- errors ---


@pytest.mark.parametrize(("name", "culprit"), [("PointToPlane", "target"), ("Symmetric", "source")])
def test_missing_normals_say_what_to_do(clouds, name, culprit):
    source, target = (legacy(c, normals=False) for c in clouds)
    with pytest.raises(RuntimeError, match=rf"{culprit}: .* without normals.*{culprit}\.estimate_normals\(\)") as error:
        reg.registration_icp(source, target, 0.3, np.eye(4), method(name))
    assert isinstance(error.value, InputError)
    with pytest.raises(InputError):
        method("Symmetric").compute_rmse(source, target, [[0, 0]])


@pytest.mark.parametrize("function", [reg.registration_icp, reg.registration_generalized_icp])
@pytest.mark.parametrize("distance", [0.0, -1.0, float("nan")])
def test_distance_must_be_positive(clouds, function, distance):
    with pytest.raises(InputError, match="max_correspondence_distance"):
        function(*map(legacy, clouds), distance)


@pytest.mark.parametrize("distance", [0.0, -1.0])
def test_evaluate_accepts_a_distance_of_zero(clouds, distance):
    result = reg.evaluate_registration(*map(legacy, clouds), distance, TRUTH)
    assert (result.fitness, result.inlier_rmse, len(result.correspondence_set)) == (0.0, 0.0, 0)
    assert np.array_equal(result.transformation, TRUTH)
    information = reg.get_information_matrix_from_point_clouds(*map(legacy, clouds), distance, TRUTH)
    assert np.array_equal(information, np.zeros((6, 6)))


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (("cloud", "target", 0.3), "source"),
        ((None, "target", 0.3), "source"),
        (("source", 3.0, 0.3), "target"),
        (("source", "target", "0.3"), "max_correspondence_distance"),
        (("source", "target", np.array([0.3])), "max_correspondence_distance"),
        (("source", "target", 0.3, np.eye(3)), "init"),
        (("source", "target", 0.3, np.eye(4).ravel()), "init"),
        (("source", "target", 0.3, "x"), "init"),
        (("source", "target", 0.3, np.eye(4), "p2p"), "estimation_method"),
        (("source", "target", 0.3, np.eye(4), None), "estimation_method"),
        (("source", "target", 0.3, np.eye(4), method("PointToPoint"), {}), "criteria"),
    ],
)
def test_wrong_types_are_type_errors_as_in_open3d(clouds, arguments, culprit):
    given = dict(zip(("source", "target"), map(legacy, clouds), strict=True), cloud=object())
    arguments = [given.get(a, a) if isinstance(a, str) else a for a in arguments]
    with pytest.raises(TypeError, match=culprit):
        reg.registration_icp(*arguments)


@pytest.mark.parametrize(
    ("init", "words"),
    [(np.full((4, 4), np.nan), "non-finite"), (np.array([*np.eye(4)[:3], [0, 0, 0.1, 1]]), "affine")],
)
def test_unusable_starts(clouds, init, words):
    with pytest.raises(InputError, match=words):
        reg.registration_icp(*map(legacy, clouds), 0.3, init)


def test_generalized_wants_its_own_method(clouds):
    for function, name in [
        (reg.registration_generalized_icp, "PointToPoint"),
        (reg.registration_symmetric_icp, "PointToPlane"),
    ]:
        with pytest.raises(TypeError, match="estimation_method"):
            function(*map(legacy, clouds), 0.3, np.eye(4), method(name))


def test_a_wrong_shape_is_named():
    with pytest.raises(InputError, match=r"source: got an array of shape \(3, 5\)"):
        reg.registration_icp(np.zeros((3, 5)), np.zeros((5, 3)), 1.0)


def test_non_finite_source_points_warn_and_keep_the_callers_indices(clouds):
    source, target = (c.to_absolute() for c in clouds)
    broken = source.copy()
    broken[[3, 5]] = np.nan
    broken[10, 1] = np.inf
    with pytest.warns(UserWarning, match="source: 3 of 700 points are not finite"):
        result = reg.registration_icp(broken, target, 0.3)
    kept = np.delete(np.arange(700), [3, 5, 10])
    expected = reg.registration_icp(source[kept], target, 0.3)
    assert result.fitness == pytest.approx(697 / 700)
    assert np.array_equal(result.correspondence_set[:, 0], kept[expected.correspondence_set[:, 0]])
    np.testing.assert_allclose(result.transformation, expected.transformation, atol=1e-9)


def test_non_finite_targets_are_refused(clouds):
    source, target = (c.to_absolute() for c in clouds)
    target[7, 2] = np.nan
    with pytest.raises(InputError, match="target: got 1 non-finite points of 1500"):
        reg.registration_icp(source, target, 0.3)
    with pytest.raises(InputError, match="target"):
        reg.evaluate_registration(source, target, 0.3)
    good, bad = map(legacy, clouds)
    bad.normals[4] = np.nan
    with pytest.raises(InputError, match="1 non-finite normals"):
        reg.registration_icp(good, bad, 0.3, np.eye(4), method("PointToPlane"))


@pytest.mark.parametrize("empty", ["source", "target", "both"])
@pytest.mark.parametrize("name", ["PointToPoint", "ForGeneralizedICP"])
def test_empty_clouds_return_the_start(clouds, empty, name):
    source, target = (np.zeros((0, 3)) if empty in (n, "both") else c.to_absolute() for n, c in
                      zip(("source", "target"), clouds, strict=True))  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = reg.registration_icp(source, target, 0.3, TRUTH, method(name))
    assert np.array_equal(result.transformation, TRUTH)
    assert (result.fitness, len(result.correspondence_set)) == (0.0, 0)
    assert result.status is Status.NO_CORRESPONDENCES


def test_zero_correspondences_return_the_start_with_the_reason(clouds):
    start = pose([0.1, 0, 0], [50.0, 0, 0])
    result = reg.registration_icp(*map(legacy, clouds), 0.1, start)
    assert np.array_equal(result.transformation, start)
    assert result.status is Status.NO_CORRESPONDENCES


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_points_give_an_answer(count):
    points = np.array([[0.0, 0, 0], [1.0, 2, 3]])[:count]
    result = reg.registration_icp(points, points + 0.01, 0.1)
    np.testing.assert_allclose(points @ result.transformation[:3, :3].T + result.transformation[:3, 3], points + 0.01)


# --- methods, kernels, criteria ---


@pytest.mark.parametrize(
    ("kernel", "residual", "weight"),
    [
        (reg.L2Loss(), 3.0, 1.0),
        (reg.L1Loss(), -4.0, 0.25),
        (reg.L1Loss(), 0.0, np.inf),
        (reg.HuberLoss(0.5), 0.5, 1.0),
        (reg.HuberLoss(0.5), -2.0, 0.25),
        (reg.CauchyLoss(2.0), 2.0, 0.5),
        (reg.GMLoss(2.0), 1.0, 2 / 9),
        (reg.TukeyLoss(2.0), 1.0, 9 / 16),
        (reg.TukeyLoss(2.0), -2.1, 0.0),
    ],
)
def test_kernel_weights(kernel, residual, weight):
    assert kernel.weight(residual) == pytest.approx(weight)


def test_kernels_and_methods_copy_convert_and_refuse():
    huber = reg.HuberLoss(0.5)
    assert reg.HuberLoss(huber).k == 0.5
    huber.k = 2
    estimation = method("PointToPlane", huber)
    assert estimation.kernel is huber
    assert method("PointToPlane", estimation).kernel is huber
    assert method("ForGeneralizedICP", huber).kernel is huber
    assert method("ForGeneralizedICP", huber).epsilon == 0.001
    assert method("PointToPoint", 1).with_scaling is True
    for bad in (lambda: reg.HuberLoss(), lambda: reg.HuberLoss("1"), lambda: method("PointToPlane", 1),
                lambda: method("PointToPoint", "a"), lambda: reg.RobustKernel(), lambda: reg.L2Loss(3),
                lambda: reg.TransformationEstimation(), lambda: reg.ICPConvergenceCriteria(max_iteration=3.5),
                lambda: reg.ICPConvergenceCriteria("a")):  # fmt: skip
        with pytest.raises(TypeError):
            bad()
    criteria = reg.ICPConvergenceCriteria(1e-3)
    with pytest.raises(AttributeError):
        criteria.max_iterations = 3  # the typo that Open3D accepts in silence from no one either
    assert reg.ICPConvergenceCriteria(criteria).relative_fitness == 1e-3
    assert pickle.loads(pickle.dumps(criteria)).max_iteration == 30


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_reach_the_objective(name, kernel):
    objective = method(name, kernel=getattr(reg, kernel)(*KERNELS[kernel]))._objective()
    assert objective.kernel == kernel.removesuffix("Loss").lower()
    assert objective.kernel_parameter == (KERNELS[kernel] or (1.0,))[0]


@pytest.mark.parametrize("name", NAMES)
def test_compute_transformation_and_rmse_of_given_pairs(clouds, name):
    source, target = clouds
    pairs = np.stack([np.arange(100), np.arange(100) * 2], axis=1)
    s, t = legacy(source), legacy(target)
    estimation = method(name)
    if name == "ForGeneralizedICP":
        assert np.array_equal(estimation.compute_transformation(s, t, pairs), np.eye(4))  # as Open3D: no covariances
        assert estimation.compute_rmse(s, t, pairs) == 0.0
        return
    update = estimation.compute_transformation(s, t, pairs)
    shifted = SimpleNamespace(**vars(s))
    shifted.points = s.points @ update[:3, :3].T + update[:3, 3]
    shifted.normals = s.normals @ update[:3, :3].T
    assert estimation.compute_rmse(shifted, t, pairs) < estimation.compute_rmse(s, t, pairs)
    assert np.array_equal(estimation.compute_transformation(s, t, np.zeros((0, 2), int)), np.eye(4))
    with pytest.raises(InputError, match=r"row \(0, 5000\)"):
        estimation.compute_transformation(s, t, [[0, 5000]])


def test_information_matrix_is_about_the_frames_origin(clouds):
    source, target = map(legacy, clouds)
    information = reg.get_information_matrix_from_point_clouds(source, target, 0.3, TRUTH)
    matched = target.points[reg.evaluate_registration(source, target, 0.3, TRUTH).correspondence_set[:, 1]]
    g = np.zeros((len(matched), 3, 6))
    x, y, z = matched.T
    g[:, 0, 1], g[:, 0, 2], g[:, 1, 0], g[:, 1, 2], g[:, 2, 0], g[:, 2, 1] = z, -y, -z, x, y, -x
    g[:, :, 3:] = np.eye(3)
    np.testing.assert_allclose(information, np.einsum("nij,nik->jk", g, g), rtol=1e-10, atol=1e-9)


def test_zero_iterations_evaluate_the_start(clouds):
    result = reg.registration_icp(
        *map(legacy, clouds), 0.3, TRUTH, criteria=reg.ICPConvergenceCriteria(max_iteration=0)
    )
    expected = reg.evaluate_registration(*map(legacy, clouds), 0.3, TRUTH)
    assert np.array_equal(result.transformation, TRUTH)
    assert result.fitness == expected.fitness
    assert result.inlier_rmse == expected.inlier_rmse


# --- results and names ---


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, reg.RegistrationResult, lambda r: pickle.loads(pickle.dumps(r))]
)
def test_results_copy_and_pickle(clouds, copied):
    result = reg.registration_icp(*map(legacy, clouds), 0.3)
    other = copied(result)
    assert type(other) is reg.RegistrationResult
    assert np.array_equal(other.transformation, result.transformation)
    assert np.array_equal(other.correspondence_set, result.correspondence_set)
    assert other.status is result.status
    assert repr(other) == repr(result)


def test_a_result_prints_and_converts_as_open3ds():
    result = reg.RegistrationResult()
    assert str(result) == (
        "RegistrationResult with fitness=0.000000e+00, inlier_rmse=0.000000e+00, and correspondence_set size of 0\n"
        "Access transformation to get result."
    )
    pairs = np.asarray(result.correspondence_set)
    assert (pairs.dtype, pairs.shape) == (np.int32, (0, 2))
    assert np.array_equal(result.transformation, np.eye(4))


def test_names_that_are_missing_say_so(monkeypatch):
    with pytest.raises(AttributeError, match=r"has no 'registration_magic' \(yet\); it has: .*registration_icp"):
        reg.registration_magic  # noqa: B018
    assert set(reg.__all__) <= set(dir(reg))
    monkeypatch.setitem(sys.modules, "open3d", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"PoseGraph is Open3D's own.*pip install 'dlc_reg\[open3d\]'"):
        reg.PoseGraph  # noqa: B018


def test_signatures():
    expected = {
        reg.registration_colored_icp: "source target max_correspondence_distance init estimation_method criteria",
        reg.registration_icp: "source target max_correspondence_distance init estimation_method criteria",
        reg.registration_generalized_icp: "source target max_correspondence_distance init estimation_method criteria",
        reg.evaluate_registration: "source target max_correspondence_distance transformation",
        reg.get_information_matrix_from_point_clouds: "source target max_correspondence_distance transformation",
        reg.ICPConvergenceCriteria: "relative_fitness relative_rmse max_iteration",
    }
    for function, names in expected.items():
        parameters = inspect.signature(function).parameters.values()
        assert " ".join(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY) == names


# --- far from the origin ---


@pytest.mark.parametrize("name", NAMES)
def test_georeferenced_clouds_keep_their_accuracy(clouds, name):
    """At 10^7 m the answer is that of the clouds near the origin, where Open3D's chart would throw the cloud away."""
    source, target = map(legacy, clouds)
    start = about(np.zeros(3), (1, 2, 3), 8) @ TRUTH
    near = reg.registration_icp(source, target, 0.5, start, method(name), reg.ICPConvergenceCriteria(1e-9, 1e-9, 100))
    shift = np.eye(4)
    shift[:3, 3] = [5e6, -1e7, 2e6]
    for cloud in (source, target):
        cloud.points = cloud.points + shift[:3, 3]
    far_start = shift @ start @ np.linalg.inv(shift)
    far = reg.registration_icp(
        source, target, 0.5, far_start, method(name), reg.ICPConvergenceCriteria(1e-9, 1e-9, 100)
    )
    at = lambda t, p: p @ t[:3, :3].T + t[:3, 3]  # noqa: E731
    gap = at(far.transformation, source.points) - shift[:3, 3] - at(near.transformation, source.points - shift[:3, 3])
    assert np.abs(gap).max() < (2e-3 if name == "PointToPoint" else 2e-5)
