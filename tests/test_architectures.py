"""What holds for every registration network of the frame, whatever its paper."""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np
import pytest
import torch
from learning import SMALL, block
from scipy.spatial.transform import Rotation

from dlc_reg._losses import pose_loss
from dlc_reg.errors import InputError
from dlc_reg.iterate import Status
from dlc_reg.manifold import SE3
from dlc_reg.registration.learned import ARCHITECTURES
from dlc_reg.registration.learned.passes import _shares
from dlc_reg.registration.learned.pointnetlk import PointNetLK

EVERY = pytest.mark.parametrize("name", SMALL)
REPEATED = ("dcp", "prnet", "rpmnet")
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(autouse=True)
def _quick(one_thread_for_torch):
    pass


def network(name: str, seed: int = 0, **more):
    torch.manual_seed(seed)
    return ARCHITECTURES[name](**SMALL[name], **more)


def pairs(batch: int = 3, count: int = 48, angle: float = 0.5, seed: int = 0, shift: float = 0.1):
    """Notched blocks and their motions: source, target (as many points, in another order) and truth."""
    rng = np.random.default_rng(seed)
    source = np.stack([block(rng, count) for _ in range(batch)])
    truth = np.tile(np.eye(4), (batch, 1, 1))
    axis = rng.normal(size=(batch, 3))
    truth[:, :3, :3] = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis, axis=1)[:, None]).as_matrix()
    truth[:, :3, 3] = shift * rng.normal(size=(batch, 3))
    target = (source @ truth[:, :3, :3].transpose(0, 2, 1) + truth[:, None, :3, 3])[:, rng.permutation(count)]
    return tuple(torch.from_numpy(a).float() for a in (source, target, truth))


def padded(points: torch.Tensor, count: int, filler: float = math.nan) -> tuple[torch.Tensor, torch.Tensor]:
    """With points behind that are `filler` or a copy of the first; and the mask."""
    junk = points[:, :1].repeat(1, count, 1)
    junk[:, ::2] = filler
    mask = torch.arange(points.shape[1] + count) < points.shape[1]
    return torch.cat([points, junk], 1), mask.expand(len(points), -1)


def poses(batch: int, *lead: int, seed: int = 1) -> torch.Tensor:
    xi = torch.randn(*lead, batch, 6, generator=torch.Generator().manual_seed(seed))
    return SE3().retract(torch.eye(4), 0.4 * xi)


def solve(model, source, target, *masks, **options):
    """From the start alone: what searches among several is another matter."""
    encoded = model.encode(source, target, *masks)
    return model.solve(encoded, model.start(source), **options)


def values_of_passes(solution) -> list[torch.Tensor]:
    """Of each pass (iterations + 1, B)."""
    passes = groupby(solution.history, key=lambda r: r.get("pass", 1))
    return [torch.stack([r["value"] for r in records]) for _, records in passes]


def test_every_architecture_is_tested():
    assert set(SMALL) == set(ARCHITECTURES)


# --- the frame -------------------------------------------------------------------------------------------------------
@EVERY
def test_a_solution_is_rigid_and_finite(name):
    source, target, _ = pairs()
    for training in (True, False):
        solution = network(name).train(training)(source, target[:, :40])
        assert solution.omega.shape == (3, 4, 4) and solution.value.shape == (3,)
        rotation = solution.omega[:, :3, :3]
        torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(3, 3, 3), rtol=0, atol=1e-5)
        assert (torch.linalg.det(rotation) > 0.9).all()
        torch.testing.assert_close(solution.omega[:, 3], torch.tensor([0.0, 0, 0, 1]).expand(3, 4))
        assert solution.omega.requires_grad is training
        assert not solution.status.failed


@EVERY
@pytest.mark.parametrize("seed", [0, 1])
def test_the_energy_never_rises_and_more_iterations_than_in_training_work(name, seed):
    """From random weights and large rotations: it is the update that holds it, not the training."""
    source, target, _ = pairs(angle=1.5, seed=seed)
    model = network(name, seed).eval()
    few, many = (solve(model, source, target, iterations=count) for count in (2, 14))
    for values in values_of_passes(many):
        assert (values[1:] <= values[:-1] + 3e-6 * values[0].abs().clamp(min=1)).all()
        assert (values[-1] < values[0]).all()
    assert many.iterations > few.iterations or many.status is Status.CONVERGED
    assert (values_of_passes(many)[0][-1] <= values_of_passes(few)[0][-1] + 3e-6).all()


@EVERY
def test_fewer_iterations_are_the_beginning_of_more(name):
    source, target, _ = pairs()
    passes = {"passes": 1} if name in REPEATED else {}
    model = network(name, **passes).eval()
    three, five = (solve(model, source, target, iterations=count) for count in (3, 5))
    for few, more in zip(three.history, five.history, strict=False):
        torch.testing.assert_close(few["value"], more["value"])
    trajectory = model.trajectory(model.encode(source, target), model.start(source), 5)
    torch.testing.assert_close(trajectory[2], three.omega, **CLOSE)
    torch.testing.assert_close(trajectory[4], five.omega, **CLOSE)


@EVERY
def test_init_is_where_it_starts(name):
    source, target, truth = pairs()
    model = network(name).eval()
    if name == "softicp":
        model.hypotheses = 0
    if name == "ranked":
        model.turns = 0
    solution = model(source, target, init=truth, iterations=0)
    torch.testing.assert_close(solution.omega, truth)
    first = solution.history[0]["value"]
    if name in REPEATED:
        torch.testing.assert_close(first, model.value(truth, model.encode(source, target, at=truth)))
    else:
        torch.testing.assert_close(first, model.value(truth, model.encode(source, target)))


@EVERY
def test_values_of_many_poses_in_one_call_are_those_of_a_loop(name):
    source, target, _ = pairs()
    model = network(name)
    encoded, omega = model.encode(source, target), poses(3, 4, 2)
    together = model.value(omega, encoded)
    assert together.shape == (4, 2, 3) and together.std(dim=(0, 1)).min() > 0
    for i in range(4):
        for j in range(2):
            torch.testing.assert_close(together[i, j], model.value(omega[i, j], encoded), **CLOSE)


# --- what must not matter --------------------------------------------------------------------------------------------
@EVERY
@pytest.mark.parametrize("filler", [0.3, math.nan])
def test_padding_changes_nothing(name, filler):
    source, target, _ = pairs()
    model = network(name).eval()
    longer, source_mask = padded(source, 7, filler)
    wider, target_mask = padded(target, 11, filler)
    plain, masked = model.encode(source, target), model.encode(longer, wider, source_mask, target_mask)
    omega = poses(3, 2)
    torch.testing.assert_close(model.value(omega, masked), model.value(omega, plain), **CLOSE)
    expected = solve(model, source, target, iterations=3).omega
    found = solve(model, longer, wider, source_mask, target_mask, iterations=3).omega
    torch.testing.assert_close(found, expected, **CLOSE)


@EVERY
def test_ragged_batches_have_finite_gradients(name):
    source, target, _ = pairs()
    longer, source_mask = padded(source, 7)
    wider, target_mask = padded(target, 11)
    model = network(name)
    encoded = model.encode(longer, wider, source_mask, target_mask)
    loss = model.trajectory(encoded, model.start(source), 2).square().sum() + model.value(poses(3), encoded).sum()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@EVERY
def test_a_batch_is_its_pairs_one_by_one(name):
    source, target, _ = pairs()
    model = network(name).eval()
    together = solve(model, source, target, iterations=3)
    for b in range(3):
        alone = solve(model, source[b : b + 1], target[b : b + 1], iterations=3)
        torch.testing.assert_close(together.omega[b], alone.omega[0], **CLOSE)
        torch.testing.assert_close(together.value[b], alone.value[0], **CLOSE)


@EVERY
def test_the_order_of_points_changes_nothing(name):
    source, target, _ = pairs()
    model = network(name).eval()
    if name == "softicp":  # its anchors are chosen along a curve through all points
        model.encoder.anchors = 48
    expected = solve(model, source, target, iterations=3).omega
    torch.manual_seed(3)
    mixed = solve(model, source[:, torch.randperm(48)], target[:, torch.randperm(48)], iterations=3).omega
    torch.testing.assert_close(mixed, expected, **CLOSE)


# --- training --------------------------------------------------------------------------------------------------------
@EVERY
def test_gradients_reach_all_parameters(name):
    source, target, truth = pairs()
    model = network(name)
    encoded = model.encode(source, target)
    loss = pose_loss(model.trajectory(encoded, model.start(source), 2), truth).sum()
    loss = loss + model.value(poses(3, 2), encoded).sum()
    if hasattr(model, "matching_loss"):
        loss = loss + model.matching_loss(encoded, truth).sum()
    loss.backward()
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), label
        without = name == "prnet" and label == "attention.norm.bias"  # it moves all features alike: no distance changes
        assert without or parameter.grad.abs().max() > 1e-7, label


@EVERY
def test_the_energys_gradients_are_those_of_finite_differences(name):
    source, target, truth = (a.double() for a in pairs(2, 24))
    model = network(name).double()
    omega = SE3().retract(truth, 0.2 * torch.randn(2, 6, dtype=torch.float64))
    xi = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    encoded = model.encode(source, target)
    energy = model.value(SE3().retract(omega, xi), encoded).sum()
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(energy, [xi, *parameters.values()], allow_unused=True)
    step, moved = 1e-7, torch.randn(2, 6, dtype=torch.float64)  # short: a kink of a ReLU is rarely in between
    with torch.no_grad():
        ends = [model.value(SE3().retract(omega, s * step * moved), encoded).sum() for s in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close((gradients[0] * moved).sum(), slope, rtol=1e-4, atol=1e-6)
        for parameter, gradient in zip(parameters.values(), gradients[1:], strict=True):
            along = torch.randn_like(parameter)
            ends = []
            for s in (1, -2):
                parameter += s * step * along
                ends.append(model.value(omega, model.encode(source, target)).sum())
            parameter += step * along
            slope = (ends[0] - ends[1]) / (2 * step)
            found = slope * 0 if gradient is None else (gradient * along).sum()
            torch.testing.assert_close(found, slope, rtol=1e-3, atol=1e-6)


@EVERY
def test_a_short_training_on_one_batch_lowers_the_pose_error(name):
    if name == "ranked":
        pytest.skip("its steps have two numbers to learn; what it learns is to choose, see test_ranked")
    source, target, truth = pairs(2, 48, angle=0.6, seed=4)
    model = network(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    errors = []
    for _ in range(30):
        encoded = model.encode(source, target)
        error = pose_loss(model.trajectory(encoded, model.start(source), 2), truth).mean()
        optimizer.zero_grad()
        error.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        errors.append(error.item())
    assert np.mean(errors[-3:]) < 0.6 * errors[0]


@EVERY
def test_encoding_in_half_precision_leaves_energies_whole(name):
    source, target, _ = pairs()
    model = network(name)
    exact = model.value(poses(3, 2), model.encode(source, target))
    with torch.autocast("cpu", torch.bfloat16):
        encoded = model.encode(source, target)
    value = model.value(poses(3, 2), encoded)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact, rtol=0.1, atol=0.1)


# --- what is each one's own ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pool", ["max", "mean"])
def test_pointnetlks_jacobian_is_that_of_finite_differences(pool):
    source, target, truth = (a.double() for a in pairs(2, 30))
    model = PointNetLK((16, 32, 64), pool).double()
    encoded = model.encode(source, target + 1, torch.rand(2, 30) < 0.8)
    omega = SE3().retract(truth, 0.2 * torch.randn(3, 2, 6, dtype=torch.float64))
    residual, jacobian = model.jacobian(omega, encoded)
    torch.testing.assert_close(residual, model.residual(omega, encoded))
    for axis in range(6):
        xi = torch.zeros(6, dtype=torch.float64)
        xi[axis] = 1e-6
        ends = [model.residual(SE3().retract(omega, s * xi.expand(3, 2, 6)), encoded) for s in (1, -1)]
        torch.testing.assert_close(jacobian[..., axis], (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-7)


def test_pointnetlk_finds_a_small_motion_without_any_training():
    """Same points, so r is zero at the truth; Aoki et al. see the same with random weights."""
    source, target, truth = pairs(4, 64, angle=0.15)
    torch.manual_seed(0)
    omega = PointNetLK((32, 64, 256)).eval()(source, target, iterations=20).omega
    assert pose_loss(omega, truth).max() < 1e-4


def test_pointnetlks_energy_of_a_quarter_turn_is_one():
    """On average over the axes, about the target's mean."""
    _, target, _ = pairs()
    model = network("pointnetlk")
    encoded, center = model.encode(target, target), target.mean(1)
    energies = []
    for axis in np.eye(3):
        pose = torch.eye(4).repeat(3, 1, 1)
        pose[:, :3, :3] = torch.from_numpy(Rotation.from_rotvec(np.pi / 2 * axis).as_matrix()).float()
        pose[:, :3, 3] = center - (pose[:, :3, :3] @ center[..., None])[..., 0]
        energies.append(model.value(pose, encoded))
    torch.testing.assert_close(torch.stack(energies).mean(0), torch.ones(3), **CLOSE)


def test_pointnetlks_energy_does_not_depend_on_the_size_of_features():
    source, target, _ = pairs()
    model = network("pointnetlk")
    before = model.value(poses(3), model.encode(source, target))
    with torch.no_grad():
        model.encoder.last.weight *= 7
        model.encoder.last.bias *= 7
    torch.testing.assert_close(model.value(poses(3), model.encode(source, target)), before, **CLOSE)


def test_dcp_without_beta_is_the_papers_one_shot_answer():
    """softmax(Phi Phi^T / sqrt(C)), then Kabsch by SciPy."""
    source, target, _ = pairs()
    model = network("dcp")
    with torch.no_grad():
        model.log_beta.fill_(-30.0)
        omega = model.step(poses(3), model.encode(source, target))
        x, y = model.features(source, target, None, None)
        matched = (x @ y.mT / 16**0.5).softmax(-1) @ target
    for b in range(3):
        p, q = source[b].double().numpy(), matched[b].double().numpy()
        rotation, _ = Rotation.align_vectors(q - q.mean(0), p - p.mean(0))
        np.testing.assert_allclose(omega[b, :3, :3], rotation.as_matrix(), atol=1e-4)
        np.testing.assert_allclose(omega[b, :3, 3], q.mean(0) - rotation.as_matrix() @ p.mean(0), atol=1e-4)


def test_prnets_keypoints_are_the_points_with_the_largest_features():
    source, target, _ = pairs()
    model = network("prnet")
    x, _ = model.features(source, target, None, None)
    data = model.encode(source, target).data
    for b in range(3):
        largest = x[b].norm(dim=-1).argsort(descending=True)[:24]
        torch.testing.assert_close(data.source[b].sort(0).values, source[b, largest].sort(0).values)
    mask = torch.arange(48) < torch.tensor([[48], [10], [30]])
    few = model.encode(source, target, mask).data
    assert (few.source_weight > 0).sum(1).tolist() == [24, 10, 24]


@pytest.mark.parametrize("name", REPEATED)
def test_a_pass_begins_where_the_one_before_ended_with_features_of_that_pose(name):
    source, target, _ = pairs()
    model = network(name, passes=2).eval() if name != "prnet" else network(name).eval()
    solution = model(source, target, iterations=3)
    records = [r["pass"] for r in solution.history]
    assert records == [1] * 4 + [2] * 4 + ([3] * 4 if name == "prnet" else [])
    assert solution.iterations == 3 * model.passes
    model.passes = 1
    first = model(source, target, iterations=3)
    second = model(source, target, init=first.omega, iterations=3)
    torch.testing.assert_close(solution.history[4]["value"], second.history[0]["value"], **CLOSE)
    # and that is the pair with the source really moved there
    there = source @ first.omega[:, :3, :3].mT + first.omega[:, None, :3, 3]
    again = model(there.detach(), target, iterations=3)
    torch.testing.assert_close(again.omega @ first.omega, second.omega, **CLOSE)


def test_steps_are_shared_by_passes():
    assert _shares(5, 2) == [3, 2] and _shares(2, 3) == [1, 1] and _shares(6, 1) == [6]


@EVERY
def test_what_is_no_batch_of_pairs_is_refused(name):
    source, target, _ = pairs()
    model = network(name)
    for given in ((source[0], target), (source, target[:2]), (source * math.nan, target), (source[:, :2], target)):
        with pytest.raises(InputError):
            model(*given)
