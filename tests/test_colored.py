"""Coloured ICP: what colour holds where geometry slides, what it does not depend on, and what it asks for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from colored import SHAPES, apart, cloud, clouds, move, slide, surface
from scipy.spatial.transform import Rotation

import dlc_reg
from dlc_reg import io, ops
from dlc_reg.errors import InputError
from dlc_reg.iterate import Status
from dlc_reg.ops import _linearize, _reference
from dlc_reg.pipelines import registration as reg
from dlc_reg.registration.frame import Pair
from dlc_reg.registration.icp import Convergence, coarse_to_fine, icp
from dlc_reg.registration.objectives import Colored, PointToPlane

TIGHT = Convergence(1e-12, 1e-12, 60)
REACH = 0.1
NEAR = 2e-3  # of shapes two units wide, sampled every 0.03


def register(source, target, objective=None, start=None, **options):
    return icp(source, target, objective or Colored(), start, max_distance=REACH, convergence=TIGHT, **options)


# --- what it is for ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_colour_holds_what_geometry_leaves_free(shape):
    source, target, truth = clouds(shape)
    assert apart(np.eye(4), truth) > 0.05
    found = register(source, target)
    assert apart(found.transformation, truth) < NEAR
    if shape != "wave":
        assert apart(register(source, target, PointToPlane()).transformation, truth) > 0.03


@pytest.mark.parametrize("shape", ["plane", "sphere"])
def test_only_a_texture_makes_the_pose_certain(shape):
    source, target, truth = clouds(shape)
    held = register(source, target, start=truth)
    assert held.settings["free_motions"] == [] and held.covariance is not None
    grey = [c.attach(colors=torch.full_like(c.colors, 0.4)) for c in (source, target)]
    free = register(*grey, start=truth)
    assert len(free.settings["free_motions"]) == 3 and free.covariance is None
    plane = register(source, target, PointToPlane(), start=truth)
    assert len(plane.settings["free_motions"]) == 3


def test_through_levels_of_voxels_and_without_normals():
    source, target, truth = clouds("plane", 8000)
    bare = [c.attach(normals=None) for c in (source, target)]
    for sizes, reach in (([0.1, 0.05, 0.0], [0.3, 0.15, 0.1]), ([0.1, 0.05], [0.3, 0.15])):
        found = coarse_to_fine(*bare, Colored(), voxel_sizes=sizes, max_distances=reach)
        assert apart(found.transformation, truth) < 2 * NEAR
        assert found.fitness > 0.9


@pytest.mark.parametrize("ending", ["ply", "pcd"])
def test_register_reads_the_colours_of_files(tmp_path, ending):
    source, target, truth = clouds("plane")
    paths = []
    for c in (source, target):
        paths.append(tmp_path / f"{c.name}.{ending}")
        io.write(paths[-1], c.to_absolute(), colors=c.colors.numpy())
    found = dlc_reg.register(*paths, method="colored")
    assert apart(found.transformation, truth) < NEAR
    assert apart(dlc_reg.register(*paths, method="point_to_plane").transformation, truth) > 0.03
    assert found.settings["method"] == "colored" and found.settings["lambda_geometric"] == 0.968


def test_the_verdict_says_what_only_the_colours_hold():
    source, target, truth = clouds("plane")
    found = dlc_reg.register(source, target, method="colored")
    assert apart(found.transformation, truth) < NEAR and found.covariance is not None
    assert any("only the colours hold" in reason for reason in found.verdict_reasons), found.verdict_reasons
    assert not any("not determined" in reason for reason in found.verdict_reasons)
    assert found.verdict == "doubtful"  # the calibration knows shapes alone
    grey = [c.attach(colors=torch.full_like(c.colors, 0.4)) for c in (source, target)]
    free = dlc_reg.register(*grey, method="colored")
    assert free.covariance is None and any("not determined" in reason for reason in free.verdict_reasons)


# --- what it is made of -----------------------------------------------------------------------------------------------


def test_all_weight_on_geometry_is_point_to_plane():
    source, target, _ = clouds("wave")
    plane, colored = register(source, target, PointToPlane()), register(source, target, Colored(lambda_geometric=1.0))
    np.testing.assert_allclose(colored.transformation, plane.transformation, atol=1e-12)
    assert colored.fitness == plane.fitness
    assert np.array_equal(colored.correspondence_set, plane.correspondence_set)


def test_the_record_and_the_step_are_those_of_the_twin():
    """Residuals, Jacobians by automatic differentiation and gradients, all from the slow definitions."""
    source, target, _ = clouds("wave", 1000)
    pair = Pair.prepare(source, target, Colored(kernel="cauchy", kernel_parameter=0.01), max_distance=REACH)
    omega = pair.to_omega(np.eye(4))
    found = Colored(kernel="cauchy", kernel_parameter=0.01).evaluate(omega, pair).linearization
    local = pair.to_local(omega)
    rows = found.indices >= 0
    at = found.indices[rows]
    gradients = _reference.intensity_gradients(
        target.points.double(), target.colors.double().mean(dim=1, keepdim=True), target.normals.double(), 30, 2 * REACH
    )
    hessian, gradient, cost = _reference.normal_equations(
        "colored",
        pair.source[rows].double() @ local[:3, :3].T + local[:3, 3],
        target.points[at].double(),
        "cauchy",
        0.01,
        target_normals=target.normals[at].double(),
        intensities=(source.colors[pair.order][rows].double().mean(dim=1, keepdim=True), gradients[at]),
    )
    torch.testing.assert_close(found.hessian, hessian, rtol=1e-5, atol=1e-5 * float(hessian.abs().max()))
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-5, atol=1e-6 * float(hessian.abs().max()))
    assert found.cost == pytest.approx(float(cost), rel=1e-5)


@pytest.mark.parametrize("reach", [0.05, 0.2, None])
@pytest.mark.parametrize("k", [3, 4, 12, 30])
def test_gradients_are_the_twins(k, reach):
    rng = np.random.default_rng(k)
    points, normals = rng.uniform(-1, 1, (800, 3)), rng.normal(size=(800, 3))
    points[:, 2] *= 0.2
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    given = [torch.from_numpy(x.astype(np.float32)) for x in (points, rng.random((800, 1)), normals)]
    found = ops.intensity_gradients(ops.SearchIndex(given[0]), *given[1:], k, max_distance=reach)
    expected = _reference.intensity_gradients(*(x.double() for x in given), k, float("inf") if reach is None else reach)
    assert found.shape == (800, 4) and found.dtype == torch.float32
    assert (expected[:, 1:].abs().amax(dim=1) > 0).any() == (k > 3)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)
    many = ops.intensity_gradients(ops.SearchIndex(given[0]), *given[1:], k, max_distance=reach, num_threads=3)
    assert torch.equal(found, many)


def test_a_linear_texture_has_its_slope_as_gradient():
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.uniform(-1, 1, (500, 3)) * [1, 1, 0]).float()
    normals = torch.tensor([[0.0, 0.0, -1.0]]).expand(500, 3)
    shade = points @ torch.tensor([[0.3], [-0.2], [5.0]]) + 0.4
    found = ops.intensity_gradients(ops.SearchIndex(points), shade, normals)
    torch.testing.assert_close(found[:, :1], shade)
    torch.testing.assert_close(found[:, 1:], torch.tensor([[0.3, -0.2, 0.0]]).expand(500, 3), rtol=0, atol=1e-5)


def test_the_value_falls_along_the_step():
    source, target, _ = clouds("plane")
    pair = Pair.prepare(source, target, Colored(), max_distance=REACH)
    omega = pair.to_omega(np.eye(4))
    evaluation = Colored().evaluate(omega, pair)
    assert Colored().value(Colored().step(omega, evaluation), pair) < 0.5 * Colored().value(omega, pair)


# --- what it depends on -----------------------------------------------------------------------------------------------


def test_moving_both_clouds_moves_the_answer_with_them():
    (p, p_colors), (q, q_colors) = surface("wave", 2500, 0), surface("wave", 2000, 1)
    p = move(np.linalg.inv(slide("wave")), p)
    plain = register(cloud(p, p_colors), cloud(q, q_colors)).transformation
    a, b = (np.eye(4) for _ in range(2))
    a[:3, :3], b[:3, :3] = Rotation.random(2, random_state=0).as_matrix()
    a[:3, 3], b[:3, 3] = (3.0, -2.0, 1.0), (-100.0, 50.0, 7.0)
    start = b @ np.linalg.inv(a)
    found = register(cloud(move(a, p), p_colors), cloud(move(b, q), q_colors), start=start).transformation
    np.testing.assert_allclose(np.linalg.inv(b) @ found @ a, plain, atol=2e-5)


def test_the_order_of_points_and_the_number_of_threads_do_not_matter():
    source, target, _ = clouds("sphere")
    plain = register(source, target, num_threads=1)
    assert np.array_equal(register(source, target, num_threads=3).transformation, plain.transformation)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(c)) for c in (source, target)]
    mixed = register(*(c.select(order) for c, order in zip((source, target), orders, strict=True)))
    np.testing.assert_allclose(mixed.transformation, plain.transformation, atol=1e-6)
    pairs = np.stack([order[mixed.correspondence_set[:, i]] for i, order in enumerate(orders)], axis=1)
    assert np.array_equal(pairs[np.argsort(pairs[:, 0])], plain.correspondence_set)


def test_light_on_both_clouds_does_not_matter_but_on_one_it_does():
    source, target, _ = clouds("plane")
    plain = register(source, target).transformation
    lighter = [c.attach(colors=c.colors + 0.25) for c in (source, target)]
    assert apart(register(*lighter).transformation, plain) < 1e-5
    assert apart(register(lighter[0], target).transformation, plain) > 1e-3


def test_far_from_the_origin_the_answer_is_the_same():
    (p, p_colors), (q, q_colors) = surface("plane", 2500, 0), surface("plane", 2000, 1)
    p, place = move(np.linalg.inv(slide("plane")), p), np.array([4e5, -5.8e6, 1e7])
    found, near = (
        register(cloud(p + shift, p_colors), cloud(q + shift, q_colors)).transformation for shift in (place, 0 * place)
    )
    back = move(found, p + place) - place
    np.testing.assert_allclose(back, move(near, p), atol=1e-6)


def test_only_the_mean_of_the_channels_counts():
    source, target, _ = clouds("plane")
    plain = register(source, target).transformation
    swapped = source.attach(colors=source.colors[:, [2, 0, 1]].contiguous())
    grey = target.attach(colors=target.intensities.expand(-1, 3).contiguous())
    assert apart(register(swapped, grey).transformation, plain) < 1e-6


def test_another_unit_of_length_needs_another_lambda():
    """Lengths are weighed against intensities: lambda / (1 - lambda) goes with the unit's square."""
    source, target, _ = clouds("plane")
    plain = register(source, target).transformation
    unit = 100.0
    odds = 0.968 / 0.032 / unit**2
    longer = [replace(c, points=c.points * unit, origin=c.origin * unit) for c in (source, target)]
    found = icp(
        *longer, Colored(lambda_geometric=odds / (1 + odds)), max_distance=unit * REACH, convergence=TIGHT
    ).transformation
    found[:3, 3] /= unit
    assert apart(found, plain) < 1e-5


# --- what it asks for -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["source", "target"])
def test_missing_colours_are_named(missing):
    source, target, _ = clouds("plane")
    pair = {"source": source, "target": target}
    pair[missing] = pair[missing].attach(colors=None)
    expected = f"{missing}: got a cloud of {len(pair[missing])} points without colors; expected colors"
    calls = [
        lambda: register(**pair),
        lambda: coarse_to_fine(**pair, objective=Colored(), voxel_sizes=[0.1, 0.05], max_distances=[0.3, 0.1]),
        lambda: dlc_reg.register(**pair, method="colored"),
        lambda: reg.registration_colored_icp(**pair, max_correspondence_distance=REACH),
        lambda: reg.TransformationEstimationForColoredICP().compute_rmse(**pair, corres=[[0, 0]]),
    ]
    for call in calls:
        with pytest.raises(InputError) as error:
            call()
        assert str(error.value).startswith(expected)


def test_missing_normals_are_named():
    source, target, _ = clouds("plane")
    with pytest.raises(InputError, match=r"^target: .*without normals"):
        register(source, target.attach(normals=None))
    register(source.attach(normals=None), target)


def test_colours_that_are_not_finite_are_named():
    source, target, _ = clouds("plane")
    colors = source.colors.clone()
    colors[3, 1] = float("nan")
    with pytest.raises(InputError, match=r"^source: got 1 non-finite colors"):
        reg.registration_colored_icp(source.attach(colors=colors), target, REACH)
    with pytest.raises(InputError, match=r"^source_intensities: got 1 rows"):
        register(source.attach(colors=colors), target)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_lambda_is_a_share(value):
    estimation = reg.TransformationEstimationForColoredICP()
    for call in (
        lambda: reg.TransformationEstimationForColoredICP(value),
        lambda: setattr(estimation, "lambda_geometric", value),
        lambda: register(*clouds("plane")[:2], Colored(lambda_geometric=value)),
    ):
        with pytest.raises(InputError, match=r"^lambda_geometric: "):
            call()
    assert estimation.lambda_geometric == 0.968


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"intensities": torch.rand(19, 1)}, "intensities"),
        ({"intensities": torch.rand(20)}, "intensities"),
        ({"intensities": torch.full((20, 1), float("inf"))}, "intensities"),
        ({"normals": torch.rand(20, 4)}, "normals"),
        ({"normals": torch.ones(20, 3, dtype=torch.int64)}, "normals"),
        ({"index": torch.rand(20, 3)}, "index"),
        ({"k": 0}, "k"),
        ({"max_distance": -1.0}, "max_distance"),
        ({"num_threads": 0}, "num_threads"),
    ],
)
def test_bad_arguments_of_gradients(change, argument):
    given = {
        "index": ops.SearchIndex(torch.rand(20, 3)),
        "intensities": torch.rand(20, 1),
        "normals": torch.rand(20, 3),
    }
    with pytest.raises(InputError) as error:
        ops.intensity_gradients(**{**given, **change})
    assert error.value.argument == argument


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"source_intensities": None}, "source_intensities"),
        ({"target_intensities": torch.rand(20, 3)}, "target_intensities"),
        ({"target_intensities": torch.full((20, 4), float("nan"))}, "target_intensities"),
        ({"target_normals": None}, "target_normals"),
        ({"lambda_geometric": 2.0}, "lambda_geometric"),
    ],
)
def test_bad_arguments_of_the_linearisation(change, argument):
    data = {
        "source_intensities": torch.rand(20, 1),
        "target_intensities": torch.rand(20, 4),
        "target_normals": torch.rand(20, 3),
    }
    points = torch.rand(20, 3)
    index = ops.SearchIndex(points)
    with pytest.raises(InputError) as error:
        ops.linearize("colored", points, index, torch.eye(4), max_distance=None, **{**data, **change})
    assert error.value.argument == argument


def test_the_operator_obeys_the_dispatcher():
    points = torch.rand(30, 3)
    options = (None, ops.KINDS["colored"], 0.5, 0, 1.0, 1, torch.rand(30, 1), torch.rand(30, 4), 0.9)
    given = (points, points.clone(), torch.eye(4, dtype=torch.float64), None, None, torch.rand(30, 3), None)
    torch.library.opcheck(_linearize.linearize_op, (*given, *options))


def test_without_correspondences_the_start_comes_back():
    source, target, _ = clouds("plane")
    start = np.eye(4)
    start[2, 3] = 50.0
    found = register(source, target, start=start)
    assert found.status is Status.NO_CORRESPONDENCES and np.array_equal(found.transformation, start)
