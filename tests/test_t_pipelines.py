"""Open3D's tensor registration by name, without Open3D: inputs, kinds of answers, scales, callbacks, errors."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_objectives import moved, pose, wavy

from dlc_reg.errors import InputError
from dlc_reg.iterate import Status
from dlc_reg.pipelines import registration as legacy
from dlc_reg.t.pipelines import registration as reg

TRUTH = pose([0.04, -0.03, 0.05], [0.02, 0.03, -0.02])
NAMES = ["PointToPoint", "PointToPlane", "Symmetric"]


def attributes(cloud):
    return {"positions": torch.from_numpy(cloud.to_absolute()), "normals": cloud.normals.double()}


@pytest.fixture(scope="module")
def clouds():
    target = wavy(1500, 0)
    return attributes(moved(wavy(700, 1), TRUTH)), attributes(target)


@pytest.mark.parametrize("name", NAMES)
def test_icp_is_the_legacy_faces(clouds, name):
    method = f"TransformationEstimation{name}"
    result = reg.icp(*clouds, 0.3, np.eye(4), getattr(reg, method)())
    expected = legacy.registration_icp(*clouds, 0.3, np.eye(4), getattr(legacy, method)())
    assert np.array_equal(result.transformation.numpy(), expected.transformation)
    assert (result.fitness, result.inlier_rmse) == (expected.fitness, expected.inlier_rmse)
    assert (result.converged, result.num_iterations) == (True, expected.iterations)
    partners = result.correspondence_set
    assert (partners.dtype, partners.shape) == (torch.int64, (700, 1))
    rows = (partners[:, 0] >= 0).nonzero()[:, 0]
    assert np.array_equal(np.stack([rows, partners[rows, 0]], axis=1), expected.correspondence_set)
    assert result.details.status is expected.status


@pytest.mark.parametrize(
    "kind",
    [
        lambda c: c["positions"],
        lambda c: c["positions"].numpy(),
        lambda c: c["positions"].numpy().tolist(),
        lambda c: {"positions": c["positions"].numpy()},
    ],
)
def test_clouds_of_any_kind_give_torch_tensors(clouds, kind):
    source, target = map(kind, clouds)
    result = reg.icp(source, target, 0.3)
    assert type(result.transformation) is torch.Tensor and result.transformation.dtype == torch.float64
    assert type(reg.get_information_matrix(source, target, 0.3, TRUTH)) is torch.Tensor
    np.testing.assert_allclose(result.transformation, reg.icp(*clouds, 0.3).transformation)


def test_open3d_is_not_imported(tmp_path):
    code = (
        "import sys, torch\nfrom dlc_reg.t.pipelines import registration as reg\np = torch.rand(50, 3)\n"
        "assert reg.icp(p, p, 0.1).transformation.shape == (4, 4)\nreg.RegistrationResult()\n"
        "print('open3d' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert run.stdout == "False\n", run.stderr


@pytest.mark.parametrize("name", ["ForGeneralizedICP", "Learned"])
def test_the_legacy_faces_methods_do_as_well(clouds, name):
    estimation = getattr(legacy, f"TransformationEstimation{name}")()
    result = reg.icp(*clouds, 0.3, np.eye(4), estimation)
    expected = legacy.registration_icp(*clouds, 0.3, np.eye(4), estimation)
    assert np.array_equal(result.transformation.numpy(), expected.transformation)
    assert np.abs(expected.transformation - TRUTH).max() < 0.02


def test_scales_go_from_coarse_to_fine(clouds):
    seen = []
    criteria = [reg.ICPConvergenceCriteria(1e-6, 1e-6, 5), reg.ICPConvergenceCriteria(), reg.ICPConvergenceCriteria()]
    result = reg.multi_scale_icp(
        *clouds,
        [0.4, 0.2, -1],
        criteria,
        [1.0, 0.5, 0.3],
        np.eye(4),
        reg.TransformationEstimationPointToPlane(),
        lambda record: seen.append({name: value.numpy() for name, value in record.items()}),
    )
    assert np.abs(result.transformation.numpy() - TRUTH).max() < 2e-3
    assert len(seen) == result.num_iterations
    assert [int(r["iteration_index"]) for r in seen] == list(range(len(seen)))
    scales = [int(r["scale_index"]) for r in seen]
    assert scales == sorted(scales) and set(scales) == {0, 1, 2}
    assert [int(r["scale_iteration_index"]) for r in seen][: scales.count(0)] == list(range(scales.count(0)))
    assert all(r["scale_index"].dtype == np.int64 and r["fitness"].dtype == np.float64 for r in seen)
    last = seen[-1]
    assert np.array_equal(last["transformation"], result.transformation.numpy())
    assert (float(last["fitness"]), float(last["inlier_rmse"])) == (result.fitness, result.inlier_rmse)
    assert result.correspondence_set.shape == (700, 1)


def test_a_voxel_size_thins_by_means_over_aligned_voxels(clouds):
    from dlc_reg.pipelines._clouds import read_cloud
    from dlc_reg.t.pipelines._scales import thinned

    cloud = read_cloud({**clouds[0], "dopplers": torch.arange(700.0)}, "source")
    thin = thinned(cloud, 0.3)
    cells = {}
    for i, point in enumerate(cloud.points):
        cells.setdefault(tuple(np.floor(point / 0.3)), []).append(i)
    expected = [(cloud.points[rows].mean(0), cloud.normals[rows].mean(0), np.mean(rows)) for rows in cells.values()]
    expected.sort(key=lambda row: tuple(np.floor(row[0] / 0.3)))
    for values, column in zip((thin.points, thin.normals, thin.dopplers), zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(values, np.array(column), atol=1e-12)


def test_no_correspondences_return_the_start_with_the_reason(clouds):
    start = pose([0, 0, 0], [100.0, 0, 0])
    result = reg.icp(*clouds, 0.3, start)
    assert np.array_equal(result.transformation.numpy(), start)
    assert (result.converged, result.num_iterations, result.fitness) == (False, 0, 0.0)
    assert result.details.status is Status.NO_CORRESPONDENCES
    assert (result.correspondence_set == -1).all()
    scales = reg.multi_scale_icp(*clouds, [0.4, 0.2], [reg.ICPConvergenceCriteria()] * 2, [0.3, 0.3], start)
    assert np.array_equal(scales.transformation.numpy(), start)
    with pytest.raises(InputError, match="max_correspondence_distance"):
        reg.get_information_matrix(*clouds, 0.3, start)


def test_evaluation_and_information(clouds):
    result = reg.evaluate_registration(*clouds, 0.3, torch.from_numpy(TRUTH))
    expected = legacy.evaluate_registration(*clouds, 0.3, TRUTH)
    assert (result.fitness, result.inlier_rmse) == (expected.fitness, expected.inlier_rmse)
    information = reg.get_information_matrix(*clouds, 0.3, TRUTH)
    wanted = legacy.get_information_matrix_from_point_clouds(*clouds, 0.3, TRUTH)
    np.testing.assert_allclose(information, wanted)


def test_non_finite_source_points_warn_and_have_no_partner(clouds):
    points = clouds[0]["positions"].clone()
    points[5] = torch.nan
    with pytest.warns(UserWarning, match="1 of 700 points"):
        result = reg.icp(points, clouds[1], 0.3)
    assert result.correspondence_set[5] == -1
    assert (result.correspondence_set >= 0).sum() == round(result.fitness * 700)
    with pytest.raises(InputError, match="target: got 1 non-finite"):
        reg.icp(clouds[0], points, 0.3)


def test_a_mapping_of_other_names_is_no_empty_cloud(clouds):
    with pytest.raises(InputError, match="source: got a mapping of points"):
        reg.icp({"points": clouds[0]["positions"]}, clouds[1], 0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_and_their_matches(clouds, dtype):
    given = [{name: values.to(dtype) for name, values in cloud.items()} for cloud in clouds]
    features = [reg.compute_fpfh_feature(cloud, 30, 0.8) for cloud in given]
    assert features[0].dtype == dtype and features[0].shape == (700, 33)
    expected = legacy.compute_fpfh_feature(given[0], (0.8, 30)).data.T
    np.testing.assert_allclose(features[0], expected, rtol=1e-6, atol=1e-4)
    some = reg.compute_fpfh_feature(given[0], 30, 0.8, torch.tensor([4, 2]))
    assert torch.equal(some, features[0][[2, 4]])
    for mutual in (False, True):
        pairs = reg.correspondences_from_features(*features, mutual)
        assert pairs.dtype == torch.int64
        wanted = legacy.correspondences_from_features(*(f.numpy().T for f in features), mutual)
        assert np.array_equal(pairs, wanted)


@pytest.mark.parametrize("copied", [reg.RegistrationResult, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
def test_results_copy_and_pickle(clouds, copied):
    result = reg.icp(*clouds, 0.3)
    other = copied(result)
    assert torch.equal(other.transformation, result.transformation)
    assert other.transformation.data_ptr() != result.transformation.data_ptr()
    assert (other.num_iterations, repr(other)) == (result.num_iterations, repr(result))
    assert other.details.status is result.details.status


def test_kernels_reach_the_core(clouds):
    kernels = reg.robust_kernel
    made = kernels.RobustKernel(kernels.RobustKernelMethod.TukeyLoss, 0.05)
    method = reg.TransformationEstimationPointToPlane(made)
    assert method.kernel is made
    result = reg.icp(*clouds, 0.3, np.eye(4), method)
    kernel = legacy.TukeyLoss(0.05)
    expected = legacy.registration_icp(*clouds, 0.3, np.eye(4), legacy.TransformationEstimationPointToPlane(kernel))
    assert np.array_equal(result.transformation.numpy(), expected.transformation)
    method.kernel = kernel  # a legacy one is understood
    assert (method.kernel.type, method.kernel.scaling_parameter) == (kernels.TukeyLoss, 0.05)
    with pytest.raises(TypeError, match="type: got 'TukeyLoss'"):
        kernels.RobustKernel("TukeyLoss")


def test_estimations_on_given_correspondences(clouds):
    source, target = clouds
    partners = reg.evaluate_registration(source, target, 0.3).correspondence_set
    rows = np.flatnonzero(partners[:, 0] >= 0)
    pairs = np.stack([rows, partners[rows, 0]], axis=1)
    for name in NAMES:
        method, twin = (getattr(m, f"TransformationEstimation{name}")() for m in (reg, legacy))
        for given in (partners, partners[:, 0].numpy()):
            update = method.compute_transformation(source, target, given)
            np.testing.assert_allclose(update, twin.compute_transformation(source, target, pairs))
        if name != "PointToPlane":
            assert method.compute_rmse(source, target, partners) == twin.compute_rmse(source, target, pairs)
    p, q, n = source["positions"][rows], target["positions"][pairs[:, 1]], target["normals"][pairs[:, 1]]
    products = float(((p - q) * n).square().sum(1).mean().sqrt())
    assert reg.TransformationEstimationPointToPlane().compute_rmse(source, target, partners) == pytest.approx(products)
    with pytest.raises(InputError, match=r"correspondences: got shape \(3,\)"):
        method.compute_rmse(source, target, [0, 1, 2])


ONE = [reg.ICPConvergenceCriteria()]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s, t: reg.icp(s, t, 0.0), "got 0 in scale 0; expected a distance above 0"),
        (lambda s, t: reg.evaluate_registration(s, t, 0.0), "expected a distance above 0"),
        (lambda s, t: reg.icp(np.zeros((0, 3)), t, 0.1), "source: got a cloud without points"),
        (lambda s, t: reg.icp(s, {}, 0.1), "target: got a cloud without points"),
        (lambda s, t: reg.multi_scale_icp(s, t, [0.1, 0.2], ONE * 2, [1, 1]), "strictly decreasing order"),
        (lambda s, t: reg.multi_scale_icp(s, t, [0.1], ONE * 2, [1, 1]), "lengths 1, 2, 2"),
        (lambda s, t: reg.multi_scale_icp(s, t, [0.2, 0.1], ONE * 2, [1, 0]), "got 0 in scale 1"),
        (
            lambda s, t: reg.icp(s, t["positions"], 0.1, np.eye(4), reg.TransformationEstimationPointToPlane()),
            "target: got a cloud of 1500 points without normals",
        ),
        (lambda s, t: reg.compute_fpfh_feature(s, 3), "max_nn: got 3 neighbours; expected a number of at least 4"),
        (lambda s, t: reg.compute_fpfh_feature(s, None), "neither a radius nor a number"),
        (lambda s, t: reg.icp(s, t, 0.1, np.full((4, 4), np.nan)), "init_source_to_target"),
    ],
)
def test_bad_input_is_named(clouds, call, words):
    with pytest.raises(InputError, match=words):
        call(*clouds)


def test_wrong_types_are_type_errors(clouds):
    with pytest.raises(TypeError, match="estimation_method: got int"):
        reg.icp(*clouds, 0.1, np.eye(4), 3)
    with pytest.raises(TypeError, match="init_source_to_target"):
        reg.icp(*clouds, 0.1, np.eye(3))
    with pytest.raises(TypeError, match="expected TransformationEstimationSymmetric"):
        reg.registration_symmetric_icp(*clouds, 0.1, np.eye(4), reg.TransformationEstimationPointToPoint())
    with pytest.raises(TypeError, match="abstract"):
        reg.TransformationEstimation()
