"""`register_multiway`: which pairs, the graph of their results, verdicts, and real scans."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np
import pytest
from commanding import surface
from graphs import Answers, between, largest_gap, poses
from hypothesis import given, settings
from hypothesis import strategies as st
from registering import any_pose, move, pose

import dlc_reg
from dlc_reg import InputError, PointCloud, multiway, register_multiway
from dlc_reg.registration.result import Verdict


@pytest.fixture
def known(monkeypatch):
    """Makes a stand-in for `register_many` that gives true poses, and puts it in its place."""

    def make(truth, clouds, **options):
        answers = Answers(truth, clouds, **options)
        monkeypatch.setattr(multiway, "register_many", answers)
        return answers

    return make


def scattered(rng, count, at=0.0):
    """Clouds of 50 points about `at`, each in its own frame."""
    return [rng.normal(size=(50, 3)) * [1.0, 0.8, 0.5] + at for _ in range(count)]


# --- poses -----------------------------------------------------------------------------------------------------------
@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1), st.permutations(range(4)))
def test_exact_pairs_give_exact_poses_in_any_order(seed, order):
    rng = np.random.default_rng(seed)
    truth, clouds = poses(rng, 4), scattered(rng, 4)
    truth, clouds = truth[list(order)], [clouds[n] for n in order]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiway, "register_many", Answers(truth, clouds))
        found = register_multiway(clouds)
    np.testing.assert_allclose(found.poses, np.linalg.inv(truth[0]) @ truth, atol=1e-9)
    assert found.verdict is Verdict.ALIGNED and found.groups == [[0, 1, 2, 3]] and not found.unconnected
    assert all(edge.used and edge.residual < 1e-9 for edge in found.edges)
    assert found.poses.dtype == np.float64


def test_georeferenced_coordinates(known):
    """A million metres away, each cloud somewhere else: poses as exact as the coordinates allow, 1e-10 m at best."""
    rng = np.random.default_rng(0)
    places = [1e6 * rng.uniform(0.5, 1, 3) for _ in range(5)]
    clouds = [cloud[0] for cloud in (scattered(rng, 1, at=place) for place in places)]
    truth = np.tile(np.eye(4), (5, 1, 1))
    for n in range(1, 5):  # each cloud turned about its own place and put near the first's
        turn = any_pose(rng)[:3, :3]
        truth[n, :3, :3], truth[n, :3, 3] = turn, places[0] + rng.normal(size=3) - turn @ places[n]
    known(truth, clouds, wrong={(3, 1): pose([1, 0, 0], 1e-4) @ between(truth, 3, 1)})
    found = register_multiway(clouds)
    assert largest_gap(found.poses, truth, clouds) < 5e-9
    assert [(e.source, e.target) for e in found.edges if not e.used] == [(3, 1)]
    assert found.merged().extent < 20


def test_a_wrong_pair_among_good_ones_is_named(known):
    rng = np.random.default_rng(1)
    truth, clouds = poses(rng, 5), scattered(rng, 5)
    off = pose([0, 0, 1], 90) @ between(truth, 4, 1)
    known(truth, clouds, wrong={(4, 1): off})
    found = register_multiway(clouds)
    np.testing.assert_allclose(found.poses, np.linalg.inv(truth[0]) @ truth, atol=1e-9)
    (bad,) = (edge for edge in found.edges if not edge.used)
    assert (bad.source, bad.target) == (4, 1) and "contradicts" in bad.reason
    expected = np.sqrt(np.square(move(off, clouds[4]) - move(between(truth, 4, 1), clouds[4])).sum(1).mean())
    assert bad.residual == pytest.approx(expected, rel=1e-6)
    assert found.verdict is Verdict.ALIGNED and "outvoted by the others: 4 -> 1" in found.verdict_reasons[1]


def test_a_contradiction_that_nothing_decides_is_doubtful(known):
    rng = np.random.default_rng(2)
    truth, clouds = poses(rng, 3), scattered(rng, 3)
    known(truth, clouds, wrong={(2, 1): any_pose(rng)})
    found = register_multiway(clouds)
    assert found.verdict is Verdict.DOUBTFUL and "nothing says which are wrong" in found.verdict_reasons[0]
    assert sum(edge.used for edge in found.edges) == 2 and np.isfinite(found.poses).all()


def test_clouds_that_no_trusted_pair_connects_are_named_and_have_no_pose(known):
    rng = np.random.default_rng(3)
    truth, clouds = poses(rng, 6), scattered(rng, 6)
    verdicts = {(j, i): Verdict.DOUBTFUL for i, j in combinations(range(6), 2) if (i < 3) != (j < 3)}
    verdicts |= {(2, 0): "it could not be read", (5, 3): Verdict.FAILED}
    known(truth, clouds, verdicts=verdicts)
    found = register_multiway(clouds)
    assert found.unconnected == [3, 4, 5] and found.groups == [[0, 1, 2], [3, 4, 5]]
    np.testing.assert_allclose(found.poses[:3], (np.linalg.inv(truth[0]) @ truth)[:3], atol=1e-9)
    assert np.isnan(found.poses[3:]).all()
    assert found.verdict is Verdict.DOUBTFUL
    assert found.verdict_reasons == [
        "no trusted pair connects 3, 4, 5 with the clouds of 0; 3, 4, 5 hang together",
        "1 of 15 pairs could not be registered, the first: it could not be read",
    ]
    edges = {(e.source, e.target): e for e in found.edges}
    assert edges[2, 0].reason == "it could not be read" and edges[2, 0].result is None
    assert "failed: because" in edges[5, 3].reason and np.isnan(edges[5, 3].residual)
    assert "no chain of trusted pairs" in edges[4, 3].reason and not edges[4, 3].used
    assert len(found.merged()) == 150
    document = json.loads(found.to_json())
    assert document["poses"][3] is None and document["poses"][0] == np.eye(4).tolist()
    assert "3 of 6 clouds have a pose" in str(found)


def test_the_first_cloud_alone_is_a_failure(known):
    rng = np.random.default_rng(4)
    truth, clouds = poses(rng, 3), scattered(rng, 3)
    known(truth, clouds, verdicts={(1, 0): Verdict.FAILED, (2, 0): Verdict.AMBIGUOUS})
    found = register_multiway(clouds)
    assert found.verdict is Verdict.FAILED and found.groups == [[0], [1, 2]] and found.unconnected == [1, 2]
    assert "connects 0, the first cloud" in found.verdict_reasons[0]


# --- which pairs -----------------------------------------------------------------------------------------------------
def test_all_pairs_of_few_clouds(known):
    rng = np.random.default_rng(5)
    truth, clouds = poses(rng, 8), scattered(rng, 8)
    answers = known(truth, clouds)
    register_multiway(clouds, method="global", voxel_size=0.1, executor=None, in_flight=3)
    assert sorted(answers.asked) == sorted((j, i) for i, j in combinations(range(8), 2))
    assert answers.options == {"method": "global", "voxel_size": 0.1, "executor": None, "in_flight": 3}


def test_neighbours_and_then_what_comes_near_of_many(known):
    """Two rounds of one circle: the second round meets the first."""
    rng = np.random.default_rng(6)
    count = 24
    angles = 4 * np.pi * np.arange(count) / count
    truth = np.array([pose([0, 0, 1], np.degrees(a), [9 * np.cos(a), 9 * np.sin(a), 0]) for a in angles])
    truth = np.linalg.inv(truth[0]) @ truth
    clouds = scattered(rng, count)
    answers = known(truth, clouds)
    found = register_multiway(clouds)
    steps = {(n + skip, n) for skip in (1, 2) for n in range(count - skip)}
    assert set(answers.asked[: len(steps)]) == steps
    loops = answers.asked[len(steps) :]
    assert {(n + 12, n) for n in range(12)} == set(loops) and len(answers.asked) == len(set(answers.asked))
    np.testing.assert_allclose(found.poses, truth, atol=1e-8)
    assert found.verdict is Verdict.ALIGNED


def test_pairs_that_nothing_checks_are_named(known):
    rng = np.random.default_rng(11)
    truth, clouds = poses(rng, 4), scattered(rng, 4)
    known(truth, clouds)
    found = register_multiway(clouds, pairs=[(1, 0), (2, 1), (2, 0), (3, 2)])
    assert found.verdict is Verdict.ALIGNED
    assert found.verdict_reasons[1:] == ["in no loop, so that nothing checks them: 3 -> 2"]


def test_why_pairs_raised_is_said(known):
    rng = np.random.default_rng(12)
    truth, clouds = poses(rng, 3), scattered(rng, 3)
    known(truth, clouds, verdicts=dict.fromkeys(combinations(range(3), 2), "no colours"))
    found = register_multiway(clouds, pairs=np.array([[0, 1], [0, 2], [1, 2]]), tolerance=np.float32(0.1))
    assert found.verdict is Verdict.FAILED
    assert found.verdict_reasons[1] == "3 of 3 pairs could not be registered, the first: no colours"


def test_groups_that_the_neighbours_leave_apart_are_tried_across(known):
    """Nothing connects 0 to 4 with 5 to 11 by one step or two; three steps do."""
    rng = np.random.default_rng(10)
    count = 12
    truth, clouds = poses(rng, count, shift=20.0), scattered(rng, count)
    gap = {(j, i): Verdict.DOUBTFUL for i in range(5) for j in range(5, count) if j - i < 3}
    answers = known(truth, clouds, verdicts=gap)
    found = register_multiway(clouds)
    asked = answers.asked[2 * count - 3 :]
    assert {(5, 2), (6, 3), (7, 4)} <= set(asked) and (11, 0) not in asked
    assert all(sum(n in pair for pair in asked) <= 4 for n in range(count))
    np.testing.assert_allclose(found.poses, np.linalg.inv(truth[0]) @ truth, atol=1e-8)
    assert found.verdict is Verdict.ALIGNED


def test_given_pairs_and_starts(known):
    rng = np.random.default_rng(7)
    truth, clouds = poses(rng, 4), scattered(rng, 4)
    answers = known(truth, clouds)
    found = register_multiway(clouds, pairs=[(0, 1), (np.int64(3), 1, np.eye(4)), [2, 3]])
    assert answers.asked == [(0, 1), (3, 1), (2, 3)]
    np.testing.assert_allclose(found.poses, np.linalg.inv(truth[0]) @ truth, atol=1e-9)
    assert "none of them checked by a loop" in found.verdict_reasons[0]


# --- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"pairs": [(0, 3)]}, "pairs"),
        ({"pairs": [(1, 1)]}, "pairs"),
        ({"pairs": [(0, 1), (1, 0)]}, "pairs"),
        ({"pairs": [(0, True)]}, "pairs"),
        ({"pairs": [3]}, "pairs"),
        ({"pairs": "01"}, "pairs"),
        ({"pairs": 3}, "pairs"),
        ({"viewpoints": [(0, 0, 0)]}, "viewpoints"),
        ({"viewpoints": [(0, 0), None, None]}, "clouds[0]_viewpoint"),
        ({"viewpoints": 5}, "viewpoints"),
        ({"tolerance": 0}, "tolerance"),
        ({"tolerance": True}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"with_scaling": True}, "with_scaling"),
        ({"dof": "translation"}, "dof"),
        ({"source_gravity": np.array([0.0, 0, -1])}, "source_gravity"),
        ({"source_viewpoint": (0, 0, 0)}, "source_viewpoint"),
        ({"metod": "auto"}, "metod"),
        ({"method": "nonsense"}, "method"),
        ({"init": np.eye(4)}, "init"),
        ({"executor": 3}, "executor"),
    ],
)
def test_bad_options_are_named(options, argument):
    with pytest.raises(InputError) as caught:
        register_multiway([surface(300)] * 3, **options)
    assert caught.value.argument == argument, str(caught.value)


@pytest.mark.parametrize("clouds", [3, "a.ply", {"a": 1}, [], [surface(300)]])
def test_what_is_no_sequence_of_clouds(clouds):
    with pytest.raises(InputError) as caught:
        register_multiway(clouds)
    assert caught.value.argument == "clouds"


def test_a_bad_cloud_is_named():
    with pytest.raises(InputError) as caught:
        register_multiway([surface(300), surface(300), "missing.ply"])
    assert caught.value.argument == "clouds[2]" and "does not exist" in str(caught.value)


# --- with the real `register` ----------------------------------------------------------------------------------------
def test_what_register_finds_is_what_the_graph_is_made_of(tmp_path):
    rng = np.random.default_rng(8)
    truth = poses(rng, 3)
    clouds = [move(np.linalg.inv(pose_), surface(3000)) for pose_ in truth]
    np.save(tmp_path / "last.npy", clouds[2])
    given_ = [clouds[0], PointCloud.from_any(clouds[1]), tmp_path / "last.npy"]
    with ThreadPoolExecutor(2) as pool:
        found = register_multiway(given_, executor=pool, seed=1)
    assert found.names == ["0", "1", "last.npy"] and found.verdict is Verdict.ALIGNED
    assert largest_gap(found.poses, truth, clouds) < 1e-4
    for edge in found.edges:
        alone = dlc_reg.register(clouds[edge.source], clouds[edge.target], seed=1)
        np.testing.assert_array_equal(edge.result.transformation, alone.transformation)
        assert edge.result.clouds is None
    assert found.settings["seed"] == 1 and set(found.timings) == {"read", "register", "optimise"}
    merged = found.merged()
    assert len(merged) == 9000 and merged.normals is None
    gaps = np.linalg.norm(merged.to_absolute() - np.tile(surface(3000), (3, 1)), axis=1)
    assert gaps.max() < 1e-4


def test_merged_keeps_normals_and_colours_that_all_have(known):
    rng = np.random.default_rng(9)
    truth = poses(rng, 2)
    raws = []
    for cloud in scattered(rng, 2):
        normals = rng.normal(size=(50, 3))
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        raws.append(dlc_reg.io.RawCloud(cloud, normals, rng.uniform(size=(50, 3))))
    known(truth, [raw.points for raw in raws])
    merged = register_multiway(raws).merged()
    turn = (np.linalg.inv(truth[0]) @ truth[1])[:3, :3]
    np.testing.assert_allclose(merged.normals.numpy()[50:], raws[1].normals @ turn.T, atol=1e-6)
    np.testing.assert_allclose(merged.colors.numpy(), np.concatenate([raw.colors for raw in raws]), atol=1e-6)
    bare = register_multiway([raws[0], raws[1].points]).merged()
    assert bare.normals is None and bare.colors is None and len(bare) == 100


@pytest.mark.shared
def test_the_bunnys_four_scans(shared_data):
    """Against the recorded poses, themselves good to about 0.5 mm: as good as the best chain, without knowing which.

    Chaining the scans in their order takes the pair whose scans hardly overlap for as good as the others.
    """
    folder = shared_data / "bunny"
    recorded = json.loads((folder / "T_world_scan.json").read_text())
    names = ["bun000.ply", "bun045.ply", "bun090.ply", "bun315.ply"]
    truth = np.array([recorded[name] for name in names])
    truth = np.linalg.inv(truth[0]) @ truth
    found = register_multiway([folder / name for name in names])
    points = [cloud.to_absolute() for cloud in found.clouds]

    def errors(at):
        gaps = [move(a, p) - move(b, p) for a, b, p in zip(at, truth, points, strict=True)]
        return np.array([np.sqrt(np.square(gap).sum(1).mean()) for gap in gaps])

    pairs = {(edge.source, edge.target): edge.result.transformation for edge in found.edges}
    first = pairs[1, 0]
    in_order = [np.eye(4), first, first @ pairs[2, 1], first @ pairs[2, 1] @ pairs[3, 2]]
    best = [np.eye(4), first, first @ pairs[2, 1], pairs[3, 0]]
    for name, at in (("graph", found.poses), ("best chain", best), ("chain in order", in_order)):
        print(f"{name}: [mm] {1e3 * errors(at)}")  # docs/multiway.md has them
    assert found.verdict is Verdict.ALIGNED and not found.unconnected
    assert errors(found.poses).max() < 0.5e-3
    assert errors(found.poses).max() < 1.1 * errors(best).max()
    assert errors(in_order).max() > 0.1  # 131 mm
    (left_out,) = (edge for edge in found.edges if not edge.used)
    assert (left_out.source, left_out.target) == (3, 2)
