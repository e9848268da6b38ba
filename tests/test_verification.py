"""The verdict: what is ambiguous is called so and named, what is wrong is never called aligned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from registering import any_pose, box, can, cylinder, distance, move, plane, pose, sphere, thin

import dlc_reg
from dlc_reg.iterate import Status
from dlc_reg.registration import verification
from dlc_reg.registration.freedom import FreeMotion
from dlc_reg.registration.result import RegistrationResult, Verdict
from dlc_reg.registration.verification import Evidence, decide, trust

GOOD = Evidence(gap=2.0, overlap=0.7, rival_overlap=0.2, matches=200.0, violations=-1.0, closeness=0.75, weakest=0.1)
STATES = [{"viewpoints": v, "quick": q} for v in (False, True) for q in (False, True)]


def settled(**options):
    pairs = np.zeros((500, 2), np.int32)
    fields = {"status": Status.CONVERGED, "correspondence_set": pairs, "settings": {"free_motions": []}}
    return RegistrationResult(**(fields | options))


# --- the rule itself --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
def test_good_evidence_is_trusted(state):
    verdict, reasons = decide(replace(GOOD, **state), settled())
    assert verdict is Verdict.ALIGNED and "70% of the surfaces overlap, 200 feature matches" in reasons[-1]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("gap", (-1, 0, 1, 4)),
        ("matches", (0, 5, 50, 500)),
        ("closeness", (0, 0.3, 0.6, 1)),
        ("weakest", (0, 0.01, 0.2)),
        ("backward", (10, 1, 0.1)),
    ],
)
def test_trust_grows_with_each_piece_of_evidence(state, field, values):
    base = replace(GOOD, gap=0.5, matches=10.0, closeness=0.3, **state)
    trusts = [trust(replace(base, **{field: float(value)})) for value in values]
    assert all(0 <= p <= 1 for p in trusts) and (np.diff(trusts) > 0).all()


@pytest.mark.parametrize("state", STATES)
def test_trust_is_a_probability_at_the_extremes(state):
    nothing = Evidence(-1e6, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, backward=1e6, **state)
    everything = Evidence(1e6, 1.0, 0.0, 1e9, 0.0, 1.0, 1.0, **state)
    assert 0 <= trust(nothing) < 1e-6 and 1 - 1e-6 < trust(everything) <= 1


SLIDE = FreeMotion(np.array([0.0, 0, 0, 1, 0, 0]), np.zeros(3), "slides along (1.00, 0.00, 0.00)")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    ("evidence", "result", "verdict"),
    [
        (GOOD, settled(correspondence_set=np.zeros((0, 2), np.int32)), "failed"),
        (GOOD, settled(status=Status.NO_CORRESPONDENCES), "failed"),
        (GOOD, settled(status=Status.DIVERGED), "failed"),
        (replace(GOOD, free_motions=(SLIDE,)), settled(), "ambiguous"),
        (replace(GOOD, rival_overlap=0.69, gap=0.1), settled(), "ambiguous"),
        (replace(GOOD, gap=-0.6), settled(), "doubtful"),
        (replace(GOOD, gap=0.2, matches=5.0, weakest=0.01), settled(), "doubtful"),
        (Evidence(-2.0, 0.05, 0.2, 0.0, -1.0, 0.1, 0.001), settled(), "failed"),
    ],
)
def test_each_kind_of_evidence_has_its_verdict(state, evidence, result, verdict):
    decided, reasons = decide(replace(evidence, **state), result)
    assert decided == verdict
    assert reasons and all(len(reason) > 20 for reason in reasons)


def test_a_free_motion_is_named():
    _, reasons = decide(replace(GOOD, free_motions=(SLIDE,)), settled())
    assert reasons[0].startswith("the matched surface slides along (1.00, 0.00, 0.00)")


def test_noise_does_not_hide_that_a_dense_plane_slides():
    """Where the noise exceeds the spacing, normals of the whole cloud are noise: those of the thinned one are not."""
    r, _, _ = registered(plane, 0, count=20_000, noise=0.005)
    assert len(r.settings["free_motions"]) == 3 and r.covariance is None and r.verdict == "ambiguous"


# --- surfaces that move along themselves ------------------------------------------------------------------------------


def registered(shape, seed, *, count=1000, noise=0.0, **options):
    """A shape and the same shape sampled again, noisy and moved: (result, the pose applied, the source)."""
    rng = np.random.default_rng(seed)
    applied = any_pose(rng)
    source, target = (shape(rng, count) + noise * rng.normal(size=(count, 3)) for _ in range(2))
    return dlc_reg.register(source, move(applied, target), **options), applied, source


@pytest.mark.parametrize("method", ["auto", "point_to_plane"])
@pytest.mark.parametrize(("shape", "verb"), [(plane, "slides along"), (sphere, "about"), (can, "spins about the axis")])
def test_free_surfaces_are_ambiguous(shape, verb, method):
    rng = np.random.default_rng(0)
    r = dlc_reg.register(shape(rng, 1500), shape(rng, 1500), method=method)
    assert r.verdict == "ambiguous", r.verdict_reasons
    assert any(verb in reason for reason in r.verdict_reasons)
    assert r.covariance is None


def test_the_free_directions_of_a_plane_lie_in_it():
    r, applied, _ = registered(plane, 1)
    normal = applied[:3, 2]
    slides = [np.array(t[3:]) for t, text in zip(r.settings["free_twists"], r.settings["free_motions"], strict=True)
              if text.startswith("slides")]  # fmt: skip
    assert len(slides) == 2
    for slide in slides:
        assert abs(slide @ normal) < 0.01 * np.linalg.norm(slide)


def test_the_free_axis_of_a_can_is_its_own():
    r, applied, _ = registered(can, 2, count=3000)
    assert len(r.settings["free_twists"]) == 1
    axis = np.array(r.settings["free_twists"][0][:3])
    assert abs(axis @ applied[:3, 2]) > 0.999 * np.linalg.norm(axis)


@pytest.mark.parametrize("noise", [0.0, 0.005, 0.02])
@pytest.mark.parametrize("shape", [plane, sphere, cylinder, can], ids=lambda shape: shape.__name__)
def test_free_surfaces_are_never_trusted(shape, noise):
    for count in (300, 1500):
        r, _, _ = registered(shape, 3, count=count, noise=noise)
        assert r.verdict != "aligned", (count, r.verdict_reasons)


# --- shapes that repeat -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 2), (1, 2, 3)])
def test_boxes_look_the_same_after_turns(size, noise):
    for seed in range(2):
        r, _, _ = registered(lambda rng, count: box(rng, count, size), seed, noise=noise)
        assert r.verdict != "aligned", r.verdict_reasons


def doubled(points, rng):
    """Two clouds of a shape together with its copy after half a turn, every part sampled on its own."""
    half_turn = np.array([-1.0, -1.0, 1.0])
    quarters = np.split(points[rng.permutation(len(points))][: len(points) // 4 * 4], 4)
    return [np.concatenate([quarters[i], half_turn * quarters[i + 1]]) for i in (0, 2)]


def test_two_bunnies_that_are_each_others_copies(bunny_pair):
    """Everything else about them is rich: features match well, and to two poses equally."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        shape = thin(bunny_pair.target, 6000, seed) + np.array([0.15, 0.0, 0.0])
        a, b = doubled(shape, rng)
        r = dlc_reg.register(a, move(any_pose(rng), b))
        assert r.verdict in ("ambiguous", "doubtful"), r.verdict_reasons


def test_cad_shapes_with_a_copy(shared_data):
    shapes = np.load(shared_data / "cad_2048.npz")["points"].astype(float)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        shape = shapes[rng.integers(len(shapes))]
        a, b = doubled(shape - shape.min(0), rng)
        r = dlc_reg.register(a, move(any_pose(rng), b))
        assert r.verdict != "aligned", r.verdict_reasons


# --- clouds that do not belong together -------------------------------------------------------------------------------


def lump(rng, count, waves=6):
    """A star-shaped body with random bumps."""
    directions = sphere(rng, count)
    return (
        directions
        * np.exp(0.15 * np.sin(directions @ rng.normal(size=(3, waves)) * 2 + rng.uniform(0, 6, waves)).sum(1))[:, None]
    )


@pytest.mark.parametrize("with_scaling", [False, True])
def test_unrelated_bodies_are_never_trusted(with_scaling):
    for seed in range(3 if with_scaling else 8):
        rng = np.random.default_rng(seed)
        r = dlc_reg.register(lump(rng, 1200), lump(rng, 1200), with_scaling=with_scaling)
        assert r.verdict != "aligned", (seed, r.verdict_reasons)


def test_a_body_is_recognised_where_it_is_there():
    """The other side of the coin, or never saying `aligned` would pass."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        body = lump(rng, 4000)
        applied = any_pose(rng)
        r = dlc_reg.register(body[:2000], move(applied, body[2000:]))
        assert r.verdict == "aligned" and distance(r.transformation, applied, body) < 0.02, (seed, r.verdict_reasons)


def test_unrelated_cad_shapes_are_never_trusted(shared_data):
    data = np.load(shared_data / "cad_2048.npz")
    shapes, categories = data["points"].astype(float), data["category"]
    rng = np.random.default_rng(11)
    pairs = [(i, j) for i, j in rng.integers(len(shapes), size=(12, 2)) if categories[i] != categories[j]]
    assert len(pairs) > 4
    for i, j in pairs:
        r = dlc_reg.register(move(any_pose(rng), shapes[i]), shapes[j])
        assert r.verdict != "aligned", (i, j, r.verdict_reasons)


def test_a_bunny_is_not_a_street(shared_data, bunny_pair):
    street = np.fromfile(shared_data / "kitti" / "000000.bin", np.float32).reshape(-1, 4)[::20, :3]
    r = dlc_reg.register(thin(bunny_pair.source, 4000) * 300, street)
    assert r.verdict in ("failed", "doubtful")


# --- the same verdict from another side -------------------------------------------------------------------------------


def test_the_way_back_gets_the_same_verdict(bunny_pair):
    a, b = thin(bunny_pair.source, 2000), thin(bunny_pair.target, 2000)
    assert dlc_reg.register(b, a).verdict == dlc_reg.register(a, b).verdict == "aligned"


def test_a_right_start_is_confirmed_and_a_wrong_optimum_is_not(bunny_pair):
    """Refining alone: the verdict compares with the rivals that the search finds."""
    a, b, truth = thin(bunny_pair.source, 2000), thin(bunny_pair.target, 2000), bunny_pair.T_target_source
    right = dlc_reg.register(a, b, init=truth, method="point_to_point")
    assert right.verdict == "aligned"
    middle = b.mean(0)
    for axis in np.eye(3):
        about = pose(axis, 180)
        about[:3, 3] = middle - about[:3, :3] @ middle
        wrong = dlc_reg.register(a, b, init=about @ truth, method="point_to_point")
        assert wrong.verdict != "aligned" or distance(wrong.transformation, truth, a) < 0.01
        assert wrong.settings["trust"] < right.settings["trust"]


def test_evidence_is_reported(bunny_pair):
    r = dlc_reg.register(thin(bunny_pair.source, 2000), thin(bunny_pair.target, 2000))
    evidence = Evidence(**r.settings["evidence"])
    assert r.settings["trust"] == trust(evidence)
    assert 0 <= evidence.rival_overlap < evidence.overlap <= 1 and evidence.gap <= verification.MAX_GAP
    assert evidence.violations == -1  # no viewpoints
