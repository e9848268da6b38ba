"""Held degrees of freedom and gravity: what must hold of every answer, and what they decide that is open without."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from registering import SHAPED, any_pose, box, distance, move, pose, thin
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

import dlc_reg
from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud
from dlc_reg.registration.constraint import DOF, TOLERANCE, Constraint
from dlc_reg.registration.frame import Pair
from dlc_reg.registration.icp import Convergence, icp
from dlc_reg.registration.objectives import PointToPlane, PointToPoint, Symmetric
from dlc_reg.registration.steps import nearest_turn

FEW = settings(max_examples=5, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
METHODS = ("auto", "global", "learned", *SHAPED)
Z = np.array([0.0, 0.0, 1.0])


def courtyard(rng, count):
    """Ground with unlike boxes on it: no two of its yaws look alike."""
    ground = np.c_[rng.uniform(-6, 6, (count // 2, 2)), np.zeros(count // 2)]
    sizes = [((3, 1, 2), (2, 3)), ((1, 2, 3), (-3, 1)), ((2, 2, 1), (-1, -4)), ((1, 1, 2.5), (4, -2))]
    boxes = [box(rng, count // 8, size) + np.array([*place, size[2] / 2]) for size, place in sizes]
    return np.concatenate([ground, *boxes]) + rng.normal(0, 0.005, (count // 2 + 4 * (count // 8), 3))


@pytest.fixture(scope="module")
def yard():
    """Two samplings of one scene: (source, target), aligned by the identity."""
    rng = np.random.default_rng(5)
    return courtyard(rng, 3000), courtyard(rng, 3000)


def room(seed):
    """A room with four boxes, unlike any other seed's."""
    rng = np.random.default_rng(seed)
    walls = box(rng, 1500, np.array([*rng.uniform(3, 6, 2), 2.5]))
    sizes = rng.uniform(0.4, 1.2, (4, 3))
    places = np.c_[rng.uniform(-1, 1, (4, 2)), sizes[:, 2] / 2 - 1.25]
    inside = [box(rng, 375, size) + place for size, place in zip(sizes, places, strict=True)]
    return np.concatenate([walls, *inside]) + rng.normal(0, 0.005, (3000, 3))


@pytest.mark.parametrize("method", ["auto", "point_to_plane"])
@pytest.mark.parametrize("dof", DOF)
def test_clouds_that_do_not_match_are_not_aligned(dof, method):
    for seed in range(100, 112, 4):
        r = dlc_reg.register(room(seed), room(seed + 1), dof=dof, method=method)
        assert r.verdict != "aligned", (seed, r.verdict_reasons)


# --- the answer keeps to the constraint ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_translation_does_not_turn_at_all(yard, method):
    source, target = yard
    shift = np.array([0.3, -0.2, 0.1])
    r = dlc_reg.register(source - shift, target, dof="translation", method=method)
    assert np.array_equal(r.transformation[:3, :3], np.eye(3))
    assert np.abs(r.transformation[:3, 3] - shift).max() < 0.03
    assert r.settings["dof"] == "translation"


@pytest.mark.parametrize("method", METHODS)
def test_yaw_keeps_the_vertical(yard, method):
    source, target = yard
    truth = pose(Z, 5 if method in SHAPED else 130, (0.3, -0.2, 0.1))
    r = dlc_reg.register(move(np.linalg.inv(truth), source), target, dof="yaw+translation", method=method)
    assert np.abs(r.transformation[:3, :3] @ Z - Z).max() < 1e-12
    assert np.abs(r.transformation[:3, :3] @ r.transformation[:3, :3].T - np.eye(3)).max() < 1e-12
    if method != "learned":  # its first pose may lie in another basin
        assert distance(r.transformation, truth, source) < 0.01


def test_colours_keep_to_it_too(yard):
    source, target = yard
    colour = lambda p: np.stack([0.5 + 0.4 * np.sin(p[:, 0]), 0.5 + 0.4 * np.cos(p[:, 1]), np.full(len(p), 0.5)], 1)  # noqa: E731
    clouds = [PointCloud.from_any(p).attach(colors=torch.from_numpy(colour(p)).float()) for p in (source, target)]
    r = dlc_reg.register(*clouds, method="colored", dof="yaw+translation", init=pose(Z, 3, (0.05, 0.05, 0.0)))
    assert np.abs(r.transformation[:3, :3] @ Z - Z).max() < 1e-12
    assert distance(r.transformation, np.eye(4), source) < 0.01


@FEW
@given(seed=SEEDS)
def test_gravity_is_met_exactly_under_yaw(yard, seed):
    """Any frames: the answer of two clouds that were turned away from their verticals, with these told."""
    source, target = yard
    rng = np.random.default_rng(seed)
    a, b = any_pose(rng), any_pose(rng)
    down = -Z
    gravities = {"source_gravity": 9.81 * a[:3, :3] @ down, "target_gravity": b[:3, :3] @ down}
    r = dlc_reg.register(move(a, source), move(b, target), dof="yaw+translation", method="global", **gravities)
    turned = r.transformation[:3, :3] @ a[:3, :3] @ down
    assert np.abs(turned - gravities["target_gravity"]).max() < 1e-12
    assert distance(r.transformation, b @ np.linalg.inv(a), move(a, source)) < 0.01


@FEW
@given(seed=SEEDS)
def test_motions_that_respect_it_move_the_answer(yard, seed):
    """register(G s, G' t) = G' T G^-1 for turns about z."""
    source, target = yard
    rng = np.random.default_rng(seed)
    g, h = (pose(Z, rng.uniform(-180, 180), rng.uniform(-5, 5, 3)) for _ in range(2))
    options = {"dof": "yaw+translation", "method": "global"}
    r = dlc_reg.register(move(g, source), move(h, target), **options)
    plain = dlc_reg.register(source, target, **options)
    assert distance(np.linalg.inv(h) @ r.transformation @ g, plain.transformation, source) < 0.003


@pytest.mark.parametrize("dof", DOF[1:])
def test_swapping_the_clouds_inverts_the_answer(yard, dof):
    source, target = yard
    truth = pose(Z, 0 if dof == "translation" else 70, (1.0, -2.0, 0.5))
    moved = move(np.linalg.inv(truth), source)
    there, back = (dlc_reg.register(*pair, dof=dof) for pair in ((moved, target), (target, moved)))
    assert distance(back.transformation @ there.transformation, np.eye(4), moved) < 0.003


def test_a_scale_is_found_beside(yard):
    source, target = yard
    truth = pose(Z, 40, (1.0, 0.0, 0.2)) @ np.diag([1.25, 1.25, 1.25, 1.0])
    r = dlc_reg.register(move(np.linalg.inv(truth), source), target, dof="yaw+translation", with_scaling=True)
    assert r.settings["scale"] == pytest.approx(1.25, rel=0.01)
    assert np.abs(r.transformation[:3, :3] @ Z / r.settings["scale"] - Z).max() < 1e-12
    assert distance(r.transformation, truth, move(np.linalg.inv(truth), source)) < 0.01


def test_prepare_registers_as_register_does(yard):
    source, target = yard
    options = {"dof": "yaw+translation", "target_gravity": [0.0, 0.0, -1.0]}
    first = dlc_reg.prepare(target, **options).register(source, source_gravity=[0.0, 0.1, -1.0])
    second = dlc_reg.register(source, target, source_gravity=[0.0, 0.1, -1.0], **options)
    assert first.transformation.tobytes() == second.transformation.tobytes()


def test_many_pass_it_on(yard):
    options = {"dof": "yaw+translation", "source_gravity": (0, 0, -1), "target_gravity": (0, 0, -1), "budget": 1e6}
    (record,) = dlc_reg.register_many([yard], **options)
    assert record.error is None
    assert record.result.settings["dof"] == "yaw+translation" and record.result.settings["budget_skipped"] == []
    with pytest.raises(InputError, match="source_gravity"):
        dlc_reg.register_many([yard], target_gravity=(0, 0, -1))


# --- what it decides -------------------------------------------------------------------------------------------------


def test_flat_ground_tilts_only_without_it():
    """The source has a kerb that the target lacks, at a strip's edge: a free plane is fitted to both and tilts."""
    rng = np.random.default_rng(0)
    target = np.c_[rng.uniform(-10, 10, 4000), rng.uniform(-1, 1, 4000), np.zeros(4000)]
    source = target[rng.permutation(4000)[:3000]] + rng.normal(0, 0.003, (3000, 3))
    source[:, 2] += np.where(source[:, 0] > 5, 0.15, 0.0)
    clouds = [
        PointCloud.from_any(p).attach(normals=torch.tensor([[0.0, 0.0, 1.0]]).repeat(len(p), 1))
        for p in (source, target)
    ]
    free, held = (
        icp(*clouds, PointToPlane(), max_distance=0.5, constraint=Constraint(dof)) for dof in ("rigid", DOF[1])
    )
    assert np.degrees(Constraint().tilt(free.transformation)) > 0.2
    assert Constraint().tilt(held.transformation) < 1e-12
    assert held.transformation[2, 3] == pytest.approx(-source[:, 2].mean(), abs=1e-3)  # the mean of the residuals


def test_the_free_motions_are_of_the_permitted_ones():
    rng = np.random.default_rng(0)
    # a post on the ground: free to spin, but not where turns are held
    angle = rng.uniform(0, 2 * np.pi, 2000)
    post = np.c_[np.cos(angle), np.sin(angle), rng.uniform(0, 4, 2000)]
    ground = np.c_[rng.uniform(-3, 3, (2000, 2)), np.zeros(2000)]
    ground = ground[np.hypot(ground[:, 0], ground[:, 1]) < 3]
    cloud = np.concatenate([post, ground])
    noisy = cloud + rng.normal(0, 0.003, cloud.shape)
    yaw, shift = (dlc_reg.register(noisy, cloud, dof=dof, method="point_to_plane") for dof in DOF[1:])
    assert yaw.verdict == "ambiguous" and len(yaw.settings["free_motions"]) == 1
    assert shift.settings["free_motions"] == [] and shift.covariance is not None
    assert np.array_equal(shift.covariance[:3], np.zeros((3, 6))) and np.array_equal(
        shift.covariance[:, :3], np.zeros((6, 3))
    )
    assert np.linalg.eigvalsh(shift.covariance[3:, 3:]).min() > 0


@pytest.mark.parametrize("dof", DOF[1:])
@pytest.mark.parametrize("objective", [PointToPlane(), PointToPoint(), Symmetric()])
def test_the_step_is_scipys_of_the_permitted_parameters(dof, objective):
    """With given correspondences and one linearisation after another, the minimum of the sum of squares."""
    rng = np.random.default_rng(3)
    axis = np.array([0.36, -0.48, 0.8])
    q = rng.uniform(-1, 1, (60, 3)) * [2, 1, 1]
    normals = rng.normal(size=(60, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    p = move(np.linalg.inv(pose([0.3, 0.1, 1.0], 9, (0.1, 0.05, -0.1))), q) + rng.normal(0, 0.02, (60, 3))
    constraint = Constraint(dof, (tuple(axis), tuple(axis)) if dof == DOF[1] else None)
    source, target = (PointCloud.from_any(c).attach(normals=torch.from_numpy(normals).float()) for c in (p, q))
    pair = Pair.prepare(source, target, objective, max_distance=10.0, constraint=constraint)
    pair = pair.with_correspondences(np.stack([np.arange(60)] * 2, 1))
    omega = pair.to_omega(np.eye(4))
    for _ in range(30):
        omega = objective.step(omega, objective.evaluate(omega, pair))
    found = pair.to_absolute(omega)

    def matrix(x):
        turn = np.eye(4)
        turn[:3, 3] = x[-3:]
        if dof == DOF[1]:
            turn[:3, :3] = Rotation.from_rotvec(x[0] * axis).as_matrix()
        return turn

    def residuals(x):
        T = matrix(x)
        difference = move(T, p) - q
        if objective.kind == "point_to_point":
            return difference.ravel()
        if objective.kind == "point_to_plane":
            return (difference * normals).sum(1)
        turned = normals @ T[:3, :3].T
        signs = np.sign((turned * normals).sum(1, keepdims=True))
        return (difference * (normals + signs * turned)).sum(1)

    best = least_squares(residuals, np.zeros(4 if dof == DOF[1] else 3), xtol=1e-14, ftol=1e-14, gtol=1e-14)
    # the symmetric step leaves out how the normals turn, so that it stops near the minimum and not at it
    assert np.abs(found - matrix(best.x)).max() < (0.02 if objective.kind == "symmetric" else 1e-5)


@settings(max_examples=30)
@given(seed=SEEDS)
def test_the_nearest_turn_is_the_nearest(seed):
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    matrix = rng.normal(size=(3, 3))
    score = lambda angle: (Rotation.from_rotvec(angle * axis).as_matrix() * matrix).sum()  # noqa: E731
    best = max(map(score, np.linspace(0, 2 * np.pi, 721)))
    turn = nearest_turn(matrix, axis)
    assert (turn * matrix).sum() >= best - 1e-12
    assert np.abs(turn @ axis - axis).max() < 1e-14 and np.abs(turn @ turn.T - np.eye(3)).max() < 1e-14


# --- gravity as a prior ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def brick():
    """A brick with two bumps that half a turn about x takes to each other: it looks the same upside down."""
    rng = np.random.default_rng(1)

    def made(count):
        bumps = np.concatenate(
            [box(rng, count // 6, (1, 0.5, 0.5)) + s * np.array([0, 0.6, 0.7]) + [0.8, 0, 0] for s in (1, -1)]
        )
        return np.concatenate([box(rng, count, (4, 2, 1)), bumps]) + rng.normal(0, 0.005, (count + len(bumps), 3))

    return made(2500), made(2500)


def test_gravity_resolves_what_is_upside_down(brick):
    source, target = brick
    truth = pose([0.1, 0.2, 1.0], 50, (0.5, 0.2, -0.3))
    moved = move(np.linalg.inv(truth), source)
    plain = dlc_reg.register(moved, target)
    assert plain.verdict == "ambiguous"
    down = {"source_gravity": truth[:3, :3].T @ -Z + [0.03, 0.02, 0.0], "target_gravity": -Z}
    told = dlc_reg.register(moved, target, **down)
    assert told.verdict == "aligned", told.verdict_reasons
    assert distance(told.transformation, truth, moved) < 0.01
    assert any("disagrees with gravity by" in reason for reason in told.verdict_reasons)
    assert told.settings["hypotheses"] <= plain.settings["hypotheses"]
    # the other way up, which the clouds alone allow as well
    other = dlc_reg.register(moved, target, source_gravity=-down["source_gravity"], target_gravity=-Z)
    assert distance(other.transformation, truth, moved) > 0.1
    assert other.transformation[:3, :3] @ down["source_gravity"] @ Z > np.cos(TOLERANCE)


def test_an_answer_far_from_gravity_is_not_aligned(yard):
    """Point-to-plane starts upright and the clouds pull it 14 degrees off: the clouds or the gravity are wrong."""
    source, target = yard
    moved = move(np.linalg.inv(pose([1, 0, 0], 9)), source)
    wrong = pose([1, 0, 0], 5)[:3, :3] @ -Z
    r = dlc_reg.register(moved, target, method="point_to_plane", source_gravity=wrong, target_gravity=-Z)
    assert distance(r.transformation, pose([1, 0, 0], 9), moved) < 0.01
    assert r.verdict != "aligned"
    assert any("more than the 10 allowed" in reason for reason in r.verdict_reasons)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"dof": "yaw"}, "dof"),
        ({"dof": "translation", "init": pose(Z, 1)}, "init"),
        ({"dof": "yaw+translation", "init": pose([1, 0, 0], 1)}, "init"),
        ({"source_gravity": (0, 0, -1)}, "target_gravity"),
        ({"target_gravity": (0, 0, -1)}, "source_gravity"),
        ({"source_gravity": (0, 0, -1), "target_gravity": (0, 0, 0)}, "target_gravity"),
        ({"source_gravity": (0, np.nan, -1), "target_gravity": (0, 0, -1)}, "source_gravity"),
        ({"source_gravity": (0, 0, 1), "target_gravity": (0, 0, -1), "init": np.eye(4)}, "init"),
        ({"budget": 0}, "budget"),
        ({"budget": "1"}, "budget"),
        ({"budget": np.inf}, "budget"),
    ],
)
def test_bad_input(yard, options, argument):
    with pytest.raises(InputError) as caught:
        dlc_reg.register(*(thin(points, 300) for points in yard), **options)
    assert caught.value.argument == argument


def test_an_init_that_respects_it_is_taken(yard):
    source, target = yard
    start = np.round(pose(Z, 2, (0.05, 0.0, 0.0)), 6)
    r = dlc_reg.register(source, target, dof="yaw+translation", init=start, method="point_to_plane")
    assert np.abs(r.transformation[:3, :3] @ Z - Z).max() < 1e-12


def test_icp_stops_where_nothing_is_left_to_turn(yard):
    """No iterations: the start as it was given."""
    source, target = (PointCloud.from_any(points) for points in yard)
    start = pose(Z, 3)
    r = icp(
        source,
        target,
        PointToPoint(),
        start,
        max_distance=1.0,
        convergence=Convergence(max_iterations=0),
        constraint=Constraint(DOF[1]),
    )
    assert np.array_equal(r.transformation, start)
