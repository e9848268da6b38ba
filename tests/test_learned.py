"""The learned model where people meet it: `register`, the Open3D face, and a batch of clouds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from registering import NEAR, any_pose, distance, move, pose, same_bytes, scaling, thin

import dlc_reg
from dlc_reg.errors import InputError
from dlc_reg.geometry import localize
from dlc_reg.networks.invariant import invariants
from dlc_reg.networks.neighbours import ABSENT
from dlc_reg.pipelines import registration as reg
from dlc_reg.registration.assignment import Assignment, SoftAssignment
from dlc_reg.registration.global_search import GlobalSearch
from dlc_reg.registration.learned import softicp
from dlc_reg.registration.learned.apply import SHIPPED, estimate, shipped
from dlc_reg.registration.learned.softicp import SoftICP
from dlc_reg.registration.learned.weights import load_model, shipped_models


@pytest.fixture(scope="module")
def whole(bunny_pair):
    """Two samples without a common point of the bunny as one scan sees it, 900 points each."""
    order = np.random.default_rng(3).permutation(len(bunny_pair.target))
    return bunny_pair.target[order[:900]], bunny_pair.target[order[900:1800]]


# --- register --------------------------------------------------------------------------------------------------------
def test_the_shipped_model_is_small_and_describes_itself():
    model = shipped()
    assert SHIPPED in shipped_models() and isinstance(model, SoftICP) and not model.training
    assert sum(p.numel() for p in model.parameters()) * 4 < 2e6
    assert {"recipe", "figures", "data", "command"} <= set(model.card)
    assert dlc_reg.load_model(SHIPPED).card == model.card


def test_the_learned_method_finds_the_real_pair_from_a_far_pose(bunny_pair, rng):
    away = any_pose(rng, shift=0.2)
    result = dlc_reg.register(move(away, bunny_pair.source), bunny_pair.target, method="learned")
    truth = bunny_pair.T_target_source @ np.linalg.inv(away)
    assert distance(result.transformation, truth, move(away, bunny_pair.source)) < NEAR
    assert "learn" in result.timings and result.settings["method"] == "learned"


@pytest.mark.parametrize("angle", [60, 120, 180])
def test_whole_clouds_are_found_at_any_angle(whole, angle):
    source, target = whole
    truth = pose([1.0, 2.0, -0.5], angle, (0.1, -0.05, 0.02))
    result = dlc_reg.register(source, move(truth, target), method="learned")
    assert distance(result.transformation, truth, source) < NEAR


@pytest.mark.parametrize("change", [scaling(1000.0), pose([0, 0, 1], 0, (4.5e5, 5.8e6, 300.0))])
def test_unit_and_place_do_not_matter(whole, change):
    source, target = whole
    plain = dlc_reg.register(source, target, method="learned").transformation
    changed = dlc_reg.register(move(change, source), move(change, target), method="learned").transformation
    assert distance(changed @ change, change @ plain, source) < 1e-3


def test_the_answer_does_not_depend_on_threads(whole):
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(dlc_reg.register(*whole, method="learned", num_threads=threads))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    same_bytes(*results)


def test_auto_asks_the_model_beside_the_classical_search(whole, monkeypatch):
    """Its pose is among the candidates: where it alone knows the answer, auto finds it."""
    source, target = whole
    truth = pose([1.0, 2.0, 0.5], 150, (0.3, 0.0, 0.1))
    clouds = dlc_reg.PointCloud.from_any(source), dlc_reg.PointCloud.from_any(move(truth, target))
    monkeypatch.setattr(GlobalSearch, "_turns", lambda self: torch.zeros(0, 4, 4, dtype=torch.float64))
    monkeypatch.setattr(dlc_reg.ops, "propose_poses", lambda *a, **k: (torch.zeros(0, 4, 4, dtype=torch.float64), None))
    for known, near in ((localize(truth, *clouds), True), (np.eye(4), False)):
        monkeypatch.setattr(dlc_reg.api, "estimate", lambda *arguments, known=known: torch.from_numpy(known))
        found = dlc_reg.register(*clouds).transformation
        assert bool(distance(found, truth, source) < NEAR) == near


def test_only_auto_and_learned_ask_the_model(whole, monkeypatch):
    monkeypatch.setattr(dlc_reg.api, "estimate", lambda *arguments: pytest.fail("asked"))
    for method in ("global", "point_to_plane"):
        assert "learn" not in dlc_reg.register(*whole, method=method).timings


def test_a_scale_is_not_for_the_learned_method(whole):
    with pytest.raises(InputError, match="method"):
        dlc_reg.register(*whole, method="learned", with_scaling=True)


# --- by Open3D's names -----------------------------------------------------------------------------------------------
def test_registration_icp_leaves_the_basin_that_point_to_point_is_stuck_in(whole):
    source, target = whole
    truth = pose([0.3, 1.0, 0.2], 110, (0.02, 0.0, 0.01))
    far = move(truth, target)
    stuck = reg.registration_icp(source, far, 0.02, np.eye(4))
    found = reg.registration_icp(source, far, 0.02, np.eye(4), reg.TransformationEstimationLearned())
    assert distance(stuck.transformation, truth, source) > 0.2
    assert distance(found.transformation, truth, source) < NEAR
    assert found.fitness > 0.9


def test_registration_icp_takes_weights_by_name_and_refuses_others(whole, tmp_path):
    estimation = reg.TransformationEstimationLearned(SHIPPED)
    assert reg.registration_icp(*whole, 0.02, np.eye(4), estimation).fitness > 0.9
    with pytest.raises(InputError, match=SHIPPED):
        reg.registration_icp(*whole, 0.02, np.eye(4), reg.TransformationEstimationLearned(tmp_path / "none"))


# --- as a module -----------------------------------------------------------------------------------------------------
def test_a_batch_of_ragged_clouds_is_registered_in_one_call(whole, rng):
    model = load_model(SHIPPED)
    source, target = (np.float32(10 * (c - c.mean(0))) for c in whole)
    truths = [pose(rng.normal(size=3), 150, rng.normal(size=3) * 0.2) for _ in range(3)]
    counts = (900, 700, 500)
    sources, targets = torch.zeros(3, 900, 3), torch.zeros(3, 900, 3)
    mask = torch.arange(900) < torch.tensor(counts)[:, None]
    for b, (truth, count) in enumerate(zip(truths, counts, strict=True)):
        sources[b, :count] = torch.from_numpy(thin(source, count, b))
        targets[b, :count] = torch.from_numpy(np.float32(move(truth, thin(target, count, b + 9))))
    solution = model(sources, targets, mask, mask)
    offset = np.eye(4)
    offset[:3, 3] = 10 * (whole[0].mean(0) - whole[1].mean(0))
    for found, truth in zip(solution.omega.numpy(), truths, strict=True):
        assert distance(found, truth @ offset, source) < 5 * NEAR


@pytest.mark.parametrize("filler", [0.3, np.nan])
def test_padding_has_no_part_in_the_search(whole, filler):
    """A hundred real points among thousands of padding, in front of them too."""
    model = load_model(SHIPPED)
    source, target = (torch.from_numpy(10 * (c - c.mean(0))[:100]).float()[None] for c in whole)
    turn = torch.from_numpy(pose([1, 0, 2], 100)).float()
    target = target @ turn[:3, :3].mT
    plain = model(source, target).omega
    junk = torch.full((1, 1500, 3), filler)
    longer, wider = torch.cat([junk, source, junk], 1), torch.cat([target, junk], 1)
    masks = (torch.arange(3100) // 100 == 15)[None], (torch.arange(1600) < 100)[None]
    torch.testing.assert_close(model(longer, wider, *masks).omega, plain, rtol=0, atol=1e-3)


@pytest.mark.parametrize("extent", [0.0, 1e-30])
def test_points_that_coincide_leave_the_start(extent):
    points = torch.ones(20, 3) + extent * torch.arange(60).reshape(20, 3)
    start = torch.from_numpy(pose([0, 0, 1], 30)).double()
    assert torch.equal(estimate(shipped(), points, points, start), start)


def test_wrong_sizes_are_refused():
    for arguments in ({"heads": 5}, {"heads": 0}, {"anchors": 0}, {"blocks": -1}, {"hypotheses": -1}, {"turns": -1}):
        with pytest.raises(InputError, match=next(iter(arguments))):
            SoftICP(**arguments)


def test_energies_are_exact_under_autocast(whole):
    source, target = (torch.from_numpy(10 * (c - c.mean(0))[:200]).float()[None] for c in whole)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        encoded = shipped().encode(source, target)
    assert encoded.affinity.dtype == torch.float32 and encoded.source.dtype == torch.float32


def ragged(whole):
    """Two pairs, the second of 500 and 600 points, with masks."""
    clouds = [torch.from_numpy(10 * (c - c.mean(0))).float().repeat(2, 1, 1) for c in whole]
    masks = [torch.arange(900) < torch.tensor([[900], [count]]) for count in (500, 600)]
    return (*clouds, *masks)


def call_large(monkeypatch):
    """From here on every cloud is too large for a matrix of affinities: the sizes of the strips that are formed."""
    sizes, matrix = [], dlc_reg.ops.Affinity.matrix

    def watched(self, rows=slice(None)):
        answer = matrix(self, rows)
        sizes.append(answer.numel())
        return answer

    monkeypatch.setattr(dlc_reg.ops.Affinity, "matrix", watched)
    monkeypatch.setattr(softicp, "MATRIX", 0)
    monkeypatch.setattr(softicp, "STRIP", 20_000)
    return sizes


def test_large_clouds_are_registered_without_a_matrix(whole, monkeypatch):
    model, batch = shipped(), ragged(whole)
    with torch.no_grad():
        expected, kept = model(*batch).omega, model.encode(*batch)
    sizes = call_large(monkeypatch)
    with torch.no_grad():
        found, encoded = model(*batch).omega, model.encode(*batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert isinstance(encoded.affinity, dlc_reg.ops.Affinity) and isinstance(kept.affinity, torch.Tensor)
    assert sizes and max(sizes) <= 20_000
    assert torch.equal(encoded.matrix(), kept.affinity)
    real = batch[2][:, :, None] & batch[3][:, None, :]
    assert (kept.affinity[~real] <= ABSENT).all() and (kept.affinity[real] > ABSENT / 10).all()


def test_matches_are_searched_strip_by_strip(whole, monkeypatch):
    with torch.no_grad():
        encoded = shipped().encode(*ragged(whole))
    pairs = [softicp._pair(encoded, b) for b in (0, 1)]
    expected = [softicp._matches(pair) for pair in pairs]
    call_large(monkeypatch)
    for pair, (rows, columns) in zip(pairs, expected, strict=True):
        found = {*zip(*(x.tolist() for x in softicp._matches(pair)), strict=True)}
        assert len(rows) == len(found) == softicp.MATCHES
        wanted = {*zip(rows.tolist(), columns.tolist(), strict=True)}
        assert len(found & wanted) >= softicp.MATCHES - 2  # the last ones may change places
    assert int(expected[1][0].max()) < 500 and int(expected[1][1].max()) < 600


def test_what_is_trained_keeps_the_matrix(whole, monkeypatch):
    call_large(monkeypatch)
    encoded = shipped().encode(*ragged(whole))
    assert isinstance(encoded.affinity, torch.Tensor) and encoded.affinity.requires_grad


def test_estimate_brings_an_exact_rotation_and_uses_the_start():
    """A model that returns its start: what comes back is the start itself, in the clouds' own coordinates."""

    class Still(SoftICP):
        def forward(self, source, target, *masks, init, **options):
            assert float(source.norm(dim=-1).max()) < 2.5
            return self.solve(self.encode(source, target), init, 0)

    rng = np.random.default_rng(1)
    points = torch.from_numpy(rng.normal(size=(80, 3)) * [300, 200, 100]).float()
    start = torch.from_numpy(any_pose(rng, shift=500))
    found = estimate(Still(width=16, out=8, heads=2, blocks=1).eval(), points, points + 40, start)
    torch.testing.assert_close(found, start, rtol=0, atol=1e-3)
    torch.testing.assert_close(found[:3, :3] @ found[:3, :3].mT, torch.eye(3).double(), rtol=0, atol=1e-14)


# --- the features ----------------------------------------------------------------------------------------------------
def test_invariants_do_not_turn_but_see_a_mirror():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)
    normals = torch.nn.functional.normalize(torch.randn(5, 3, generator=generator, dtype=torch.float64), dim=-1)
    turn = torch.from_numpy(any_pose(np.random.default_rng(2))[:3, :3])
    plain = invariants(vectors, normals)
    torch.testing.assert_close(invariants(vectors @ turn.T, normals @ turn.T), plain)
    torch.testing.assert_close(invariants(vectors, -normals), plain)  # a normal's sign is not known
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    mirrored = invariants(vectors @ mirror, normals @ mirror)
    torch.testing.assert_close(mirrored[:, :20], plain[:, :20])
    torch.testing.assert_close(mirrored[:, 20:], -plain[:, 20:])
    by_hand = 4 * torch.linalg.det(vectors[:, :3])
    torch.testing.assert_close(plain[:, 20], by_hand)


def test_features_hardly_depend_on_the_pose(whole):
    """Not at all but for anchors and far neighbours, which are picked along a curve through space."""
    cloud = torch.from_numpy(10 * (whole[0] - whole[0].mean(0))).float()[None]
    turned = torch.from_numpy(move(pose([1, 2, 3], 77, (0.3, 0, 0)), cloud[0].numpy())).float()[None]
    with torch.no_grad():
        a, b, _, _ = shipped().encoder(cloud, turned, None, None)
    assert float((a * b).sum(-1).median()) > 0.95
    assert float((a[:, :-50] * b[:, 50:]).sum(-1).median()) < 0.8  # of different points


# --- the likelihood --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("both_ways", [False, True])
def test_the_likelihood_is_that_of_the_mixture(both_ways):
    """By loops, in logarithms."""
    rng = np.random.default_rng(5)
    p, q, a = rng.normal(size=(4, 3)), rng.normal(size=(5, 3)), -rng.uniform(size=(4, 5))
    beta, o, volume = 3.0, -2.0, 4.18879
    data = Assignment(
        *(torch.from_numpy(x)[None] for x in (p, q, a)),
        torch.tensor([beta]).double(), torch.tensor([o]).double(),
        torch.full((1, 4), 1 / 4).double(), torch.full((1, 5), 1 / 5, dtype=torch.float64),
    )  # fmt: skip
    truth = any_pose(rng)
    moved = move(truth, p)

    def one_way(x, y, affinity):
        total = 0.0
        for i in range(len(x)):
            joint = sum(np.exp(affinity[i, j] - beta * ((x[i] - y[j]) ** 2).sum()) for j in range(len(y))) + np.exp(o)
            mass = sum(np.exp(affinity[i, j]) * (np.pi / beta) ** 1.5 for j in range(len(y))) + np.exp(o) * volume
            total -= np.log(joint / mass) / len(x)
        return total

    expected = one_way(moved, q, a)
    if both_ways:
        expected = (expected + one_way(q, moved, a.T)) / 2
    energy = SoftAssignment(both_ways=both_ways)
    found = energy.negative_log_likelihood(torch.from_numpy(truth)[None], data, volume)
    assert found.item() == pytest.approx(expected, rel=1e-10)
