"""Poses near a start and the judge that chooses among them, against SciPy, closed forms and known motions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from learning import block
from scipy.optimize import linprog
from scipy.spatial import ConvexHull, cKDTree
from scipy.spatial.transform import Rotation

from dlc_reg.errors import InputError
from dlc_reg.metrics import rotation_error, translation_error
from dlc_reg.networks.judge import EVIDENCE, Judge, depth_in, describe, directions, evidence
from dlc_reg.registration.learned.nearby import MODES, _modes, angles, poses_near
from dlc_reg.registration.learned.ranked import RankedICP, choice_loss

START = torch.eye(4, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _quick(one_thread_for_torch):
    pass


def pose(rotvec, shift=(0.0, 0.0, 0.0)) -> torch.Tensor:
    out = torch.eye(4, dtype=torch.float64)
    out[:3, :3] = torch.from_numpy(Rotation.from_rotvec(rotvec).as_matrix())
    out[:3, 3] = torch.tensor(shift)
    return out


def cut_pair(seed: int = 0, keep: float = 0.75, count: int = 500):
    """Two samples of a notched block, each cut by its own plane, and the motion between them, 63 degrees."""
    rng = np.random.default_rng(seed)
    truth = pose([0.6, -0.5, 0.78], (0.3, -0.2, 0.1))
    clouds = []
    for _ in range(2):
        points = block(rng, 2 * count)
        height = points @ (lambda v: v / np.linalg.norm(v))(rng.normal(size=3))
        clouds.append(torch.from_numpy(points[height > np.quantile(height, 1 - keep)][:count]))
    target = clouds[1] @ truth[:3, :3].T + truth[:3, 3]
    return clouds[0].float(), target.float(), truth


# --- what the judge sees ---------------------------------------------------------------------------------------------
def test_directions_cover_the_sphere():
    unit = directions()
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(len(unit)))
    anywhere = torch.nn.functional.normalize(torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    assert (anywhere @ unit.T).amax(1).min() > math.cos(math.radians(6))


def test_depth_in_a_hull_is_that_of_scipys_hull():
    """Its directions are a few degrees apart, so a hull is measured a little too large, never too small."""
    rng = np.random.default_rng(1)
    cloud, inside = rng.normal(size=(80, 3)) / 3, rng.normal(size=(300, 3)) / 3
    planes = ConvexHull(cloud).equations
    exact = -(inside @ planes[:, :3].T + planes[:, 3]).max(1)
    support = (torch.from_numpy(cloud).float() @ directions().T).amax(0)
    found = depth_in(torch.from_numpy(inside).float(), support).numpy()
    within = exact > 0
    assert within.sum() > 50
    assert (found[within] > exact[within] - 1e-5).all() and (found - exact)[within].max() < 0.06
    outside = found < 0
    feasible = [
        linprog(np.zeros(80), A_eq=np.vstack([cloud.T, np.ones(80)]), b_eq=[*p, 1.0]).success for p in inside[outside]
    ]
    assert not any(feasible)  # what lies outside is no mean of the cloud's points


def test_evidence_of_a_cloud_on_itself_and_far_away():
    source, _, _ = cut_pair()
    cloud, rows = describe(source), torch.arange(0, len(source), 3)
    seen = evidence(cloud, cloud, torch.stack([START, pose([0, 0, 0], (9.0, 0, 0))]), rows)
    assert seen.shape == (2, len(rows), EVIDENCE) and torch.isfinite(seen).all()
    torch.testing.assert_close(seen[0, :, :3], torch.ones(len(rows), 3), rtol=0, atol=1e-4)
    torch.testing.assert_close(seen[0, :, 9], torch.zeros(len(rows)), rtol=0, atol=1e-5)  # of FPFH
    assert seen[1, :, :5].max() < 1e-6 and (seen[1, :, 7] == -1).all()


def test_evidence_of_nearness_is_that_of_scipys_tree():
    source, target, truth = cut_pair()
    rows = torch.arange(100)
    seen = evidence(describe(source), describe(target), truth[None], rows)[0]
    moved = source[rows].double().numpy() @ truth[:3, :3].numpy().T + truth[:3, 3].numpy()
    distance, nearest = cKDTree(target.double().numpy()).query(moved)
    np.testing.assert_allclose(seen[:, 1], np.exp(-((distance / 0.06) ** 2)), atol=1e-4)
    normals = [describe(c).normals.double().numpy() for c in (source, target)]
    cosine = np.abs(((normals[0][:100] @ truth[:3, :3].numpy().T) * normals[1][nearest]).sum(1))
    np.testing.assert_allclose(seen[:, 5], cosine, atol=1e-4)


def test_evidence_does_not_depend_on_where_the_pair_lies():
    source, target, truth = cut_pair()
    motion = pose([1.0, 2.0, -0.5], (0.3, 0.1, -0.2))
    moved = (target.double() @ motion[:3, :3].T + motion[:3, 3]).float()
    rows = torch.arange(0, len(source), 2)
    one = evidence(describe(source), describe(target), truth[None], rows)
    other = evidence(describe(source), describe(moved), (motion @ truth)[None], rows)
    hulls = torch.tensor([7, 8])  # measured in directions that stay where they are
    depth = 0.4 * (one - other)[..., 8].abs()
    assert depth.max() < 0.06  # so far apart lie two hulls measured in other directions
    others = torch.ones(EVIDENCE, dtype=torch.bool).index_fill(0, hulls, False)
    others[14] = False  # below the own hull, likewise
    assert ((one - other)[..., others].abs() > 0.02).float().mean() < 0.01  # of FPFH, whose bins have edges


def test_the_judge_treats_both_clouds_alike():
    torch.manual_seed(0)
    seen, angle = torch.rand(5, 2, 20, EVIDENCE), torch.rand(5)
    judge = Judge(8)
    torch.testing.assert_close(judge(seen.flip(1), angle), judge(seen, angle))
    torch.testing.assert_close(judge(seen[:, :, torch.randperm(20)], angle), judge(seen, angle))


# --- the poses -------------------------------------------------------------------------------------------------------
def test_angles_are_scipys():
    turns = Rotation.random(20, random_state=0)
    poses = torch.eye(4, dtype=torch.float64).repeat(20, 1, 1)
    poses[:, :3, :3] = torch.from_numpy(turns.as_matrix())
    np.testing.assert_allclose(angles(poses, START), turns.magnitude(), atol=1e-6)
    assert angles(poses[:1], poses[0]).item() < 1e-6


def test_the_vote_finds_the_shift_among_wrong_matches():
    generator = torch.Generator().manual_seed(0)
    p, wrong = (torch.rand(400, 3, generator=generator) - 0.5 for _ in range(2))
    rotation = pose([0.3, 0.4, -0.5])[:3, :3].float()
    shift = torch.tensor([0.31, -0.42, 0.17])
    q = torch.cat([p[:100] @ rotation.T + shift, wrong[100:]])
    modes = _modes(rotation[None], p, q)
    assert modes.shape == (1, MODES, 3)
    assert (modes[0, 0] - shift).abs().max() < 0.1  # a cell is 0.12 wide


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_truth_is_among_the_poses_and_all_are_within_the_angle(seed):
    source, target, truth = cut_pair(seed)
    poses = poses_near(source, target, START, max_turn_deg=80, turns=600, refined=60)
    assert poses.dtype == torch.float64 and len(poses) <= 61 and torch.equal(poses[-1], START)
    assert rotation_error(poses, START[None]).max() <= math.radians(80) + 1e-6
    errors = rotation_error(poses, truth[None]) + translation_error(poses, truth[None])
    assert errors.min() < 0.12
    assert torch.equal(poses, poses_near(source, target, START, max_turn_deg=80, turns=600, refined=60))
    narrow = poses_near(source, target, START, max_turn_deg=30, turns=600, refined=60)  # the truth is at 63
    assert rotation_error(narrow, truth[None]).min() > math.radians(30)
    about = poses_near(source, target, truth, max_turn_deg=30, turns=600, refined=60)
    assert rotation_error(about, truth[None]).max() <= math.radians(30) + 1e-6


# --- the model -------------------------------------------------------------------------------------------------------
def test_the_loss_of_a_choice_is_worked_by_hand():
    """Scores 0, log 3: the right pose has a quarter; the wrong one counts 2 * 30 / 60 + 0.1 / 0.5."""
    poses = torch.stack([START, pose([math.radians(30), 0, 0], (0.1, 0.0, 0.0))])
    scores = torch.tensor([0.0, math.log(3)])
    torch.testing.assert_close(choice_loss(scores, poses, START).item(), 0.75 * 1.2 - math.log(0.25), atol=1e-5, rtol=0)
    far = pose([0, 2.5, 0], (0.0, 5.0, 0.0))  # nothing is right: only the expected error, at its bound
    torch.testing.assert_close(choice_loss(scores, poses, far).item(), 3.0, atol=1e-5, rtol=0)


def test_the_judge_learns_to_choose():
    """On two pairs: afterwards the right poses are taken, from scores that took others."""
    given = [cut_pair(seed) for seed in (0, 1)]
    count = min(min(len(s), len(t)) for s, t, _ in given)
    source, target, truth = (torch.stack([g[i][:count] if i < 2 else g[i] for g in given]) for i in range(3))
    torch.manual_seed(0)
    model = RankedICP(16, turns=300, refined=40, points=96)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = model.matching_loss(model.encode(source, target), truth.float()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1
    found = model.eval()(source, target).omega
    assert rotation_error(found, truth).rad2deg().max() < 6
    assert torch.equal(found, model(source, target).omega)


def test_the_start_counts():
    """Beyond `max_turn_deg` of the given start nothing is looked for; and on a line there is nothing to choose by."""
    source, target, truth = cut_pair()
    torch.manual_seed(0)
    model = RankedICP(8, max_turn_deg=20, turns=300, refined=20).eval()
    batch = source[None], target[None]
    found = model(*batch, iterations=0).omega
    assert rotation_error(found, START[None]).rad2deg().item() <= 20 + 1e-3
    about = model(*batch, init=truth.float()[None], iterations=0).omega
    assert rotation_error(about, truth[None]).rad2deg().item() <= 20 + 1e-3
    line = torch.linspace(0, 1, 40)[:, None] * torch.tensor([1.0, 2.0, 0.0])
    torch.testing.assert_close(model(line[None], line[None], iterations=0).omega, torch.eye(4)[None])


@pytest.mark.parametrize("given", [{"max_turn_deg": 0.0}, {"max_turn_deg": 181.0}, {"refined": 0}, {"points": 0}])
def test_what_is_no_setting_is_refused(given):
    with pytest.raises(InputError):
        RankedICP(**given)
