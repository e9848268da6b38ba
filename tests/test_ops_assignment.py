"""The native soft assignment: against the torch formulas in float64, cases known beforehand, and its invariances."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from surfaces import SEEDS, generator, rigid

from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.networks.neighbours import ABSENT
from dlc_reg.registration.assignment import Assignment, SoftAssignment, transform

pytestmark = pytest.mark.usefixtures("one_thread_for_torch")


def problem(
    n: int, m: int, *, batch: int = 2, beta: float = 20.0, outlier: float = -5.0, padding: int = 0, seed: int = 0
) -> Assignment:
    """Clouds about one unit wide whose first points answer one another, at poses near the identity; pair b has
    b * padding points less."""
    source, target = (torch.rand(batch, k, 3, generator=generator(seed + k)) for k in (n, m))
    common = min(n, m)
    target[:, :common] = source[:, :common] + 0.05 * torch.randn(batch, common, 3, generator=generator(seed + 1))
    affinity = -4 * torch.rand(batch, n, m, generator=generator(seed + 2))
    affinity[:, range(common), range(common)] += 3
    real = [torch.arange(k) < k - padding * torch.arange(batch)[:, None] for k in (n, m)]
    affinity = affinity.masked_fill(~(real[0][:, :, None] & real[1][:, None]), ABSENT)
    weights = [r / r.sum(1, keepdim=True) for r in real]
    return Assignment(source, target, affinity, torch.full((batch,), beta), torch.full((batch,), outlier), *weights)


def poses(count: int, batch: int = 2, angle: float = 0.2, shift: float = 0.1, seed: int = 5) -> torch.Tensor:
    """(count, batch, 4, 4) float64."""
    one = [rigid(seed + 10 * i, shift, angle) for i in range(count * batch)]
    return torch.stack(one).reshape(count, batch, 4, 4) if one else torch.zeros(count, batch, 4, 4)


def double(data: Assignment) -> Assignment:
    return Assignment(*(x.double() for x in data if x is not None))


def native(
    data: Assignment, omega: torch.Tensor, both_ways: bool = True, threads: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    energy, after = ops.soft_assignment(
        *data[:3],
        omega,
        *data[3:],  # type: ignore[arg-type]
        both_ways=both_ways,
        num_threads=threads,
    )
    assert after is not None
    return energy, after


def check(
    data: Assignment, omega: torch.Tensor, energy_atol: float = 2e-6, pose_atol: float = 5e-6, both_ways: bool = True
) -> None:
    """Against torch's formulas; the shares of absent points are exactly nothing there, too."""
    energy, after = native(data, omega, both_ways)
    formula, exact = SoftAssignment(both_ways=both_ways), double(data)
    assert energy.dtype == after.dtype == torch.float64
    torch.testing.assert_close(energy, formula.value(omega.double(), exact), rtol=2e-6, atol=energy_atol)
    torch.testing.assert_close(after, formula.step(omega.double(), exact), rtol=0, atol=pose_atol)


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize("beta", [0.0, 1e-3, 1.0, 20.0, 300.0])
@pytest.mark.parametrize(("n", "m"), [(3, 3), (3, 9), (8, 16), (33, 77), (70, 13)])
def test_equals_the_formulas(n: int, m: int, beta: float, both_ways: bool) -> None:
    check(problem(n, m, beta=beta), poses(3, angle=0.05, shift=0.02), both_ways=both_ways)  # so that the shares hold it


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("n", "m", "padding"), [(21, 30, 7), (20, 24, 8), (40, 12, 3)])
def test_equals_the_formulas_with_padding(n: int, m: int, padding: int, both_ways: bool) -> None:
    check(problem(n, m, batch=3, padding=padding), poses(2, 3), both_ways=both_ways)


def test_what_padding_holds_does_not_matter() -> None:
    data, omega = problem(20, 25, padding=5), poses(2)
    energy, after = native(data, omega)
    for points, filled in ((data.source, 15), (data.target, 20)):
        points[1, filled:] = 1e6 * torch.randn(5, 3, generator=generator(3))
    again = native(data, omega)
    assert torch.equal(energy, again[0]) and torch.equal(after, again[1])
    cut = Assignment(
        data.source[1:, :15],
        data.target[1:, :20],
        data.affinity[1:, :15, :20],
        *(x[1:] for x in data[3:5]),  # type: ignore[index]
        data.source_weight[1:, :15],
        data.target_weight[1:, :20],
    )
    smaller = native(cut, omega[:, 1:])
    torch.testing.assert_close(energy[:, 1:], smaller[0], rtol=0, atol=1e-7)
    torch.testing.assert_close(after[:, 1:], smaller[1], rtol=0, atol=1e-6)


def test_minus_infinity_is_absent() -> None:
    data, omega = problem(20, 25, padding=5), poses(2)
    without = data._replace(affinity=data.affinity.masked_fill(data.affinity == ABSENT, -math.inf))
    for found, expected in zip(native(without, omega), native(data, omega), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("outlier", [-900.0, -300.0, -70.0, -45.0, 0.0, 5.0, 30.0])
def test_any_outlier_level(outlier: float) -> None:
    check(problem(30, 41, outlier=outlier, padding=4), poses(2))


def test_extreme_sharpness() -> None:
    """Logits change by 1 within 3 mm of a cloud of one metre: what float32 coordinates hold of them is 1e-4."""
    data = problem(60, 60, beta=1e5)
    data.target[:] = data.source + 2e-3 * torch.randn(2, 60, 3, generator=generator(4))
    check(data, torch.eye(4).expand(1, 2, 4, 4), energy_atol=1e-3, pose_atol=1e-5)


@pytest.mark.parametrize("beta", [20.0, 1e5])
def test_far_poses(beta: float) -> None:
    omega = poses(2)
    omega[0, :, :3, 3] += 1e4
    data = problem(30, 30, beta=beta)
    energy, after = native(data, omega)
    torch.testing.assert_close(energy[0], torch.full((2,), 5.0, dtype=torch.float64))  # all is outlier
    assert torch.equal(after[0], torch.eye(4, dtype=torch.float64).expand(2, 4, 4))
    assert after.isfinite().all()


def test_far_from_the_origin_nothing_is_lost() -> None:
    data, offset = problem(50, 40, beta=100.0), torch.tensor([3000.0, -2000.0, 1000.0])
    data = data._replace(source=data.source + offset, target=data.target - 2 * offset)
    omega = torch.eye(4, dtype=torch.float64).repeat(1, 2, 1, 1)
    omega[..., :3, 3] = -3 * offset
    energy, after = native(data, omega)
    exact, formula = double(data), SoftAssignment(both_ways=True)
    centred = exact._replace(source=exact.source - offset, target=exact.target + 2 * offset)
    torch.testing.assert_close(energy, formula.value(torch.eye(4).double().repeat(1, 2, 1, 1), centred))
    found, expected = (transform(x, data.source.double()) for x in (after, formula.step(omega, exact)))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_two_points_by_hand() -> None:
    """E = -log(exp(a - beta d^2) + exp(o)) for one point a cloud, and one two-way mean with an idle point."""
    ones = torch.ones(1, 1)
    source, target = torch.tensor([[[1.0, 0.0, 0.0]]]), torch.tensor([[[1.0, 2.0, 0.0]]])
    beta, outlier = torch.tensor([0.25]), torch.tensor([-1.0])
    one = Assignment(source, target, torch.full((1, 1, 1), 0.5), beta, outlier, ones, ones)
    energy, after = native(one, torch.eye(4).expand(1, 1, 4, 4))
    assert energy.item() == pytest.approx(-math.log(math.exp(0.5 - 0.25 * 4) + math.exp(-1)), abs=1e-7)
    torch.testing.assert_close(transform(after[0], source.double()), target.double())  # it goes where it is drawn
    idle = one._replace(
        target=torch.cat([target, target + 1e3], 1),
        affinity=torch.full((1, 1, 2), 0.5),
        target_weight=torch.full((1, 2), 0.5),
    )
    met = -math.log(math.exp(-0.5) + math.exp(-1))
    expected = (met + (met + 1.0) / 2) / 2  # the idle point's own energy is -o
    assert native(idle, torch.eye(4).expand(1, 1, 4, 4))[0].item() == pytest.approx(expected, abs=1e-7)


@settings(max_examples=15)
@given(SEEDS)
def test_a_step_never_raises_the_energy(seed: int) -> None:
    for both_ways in (True, False):
        data = problem(40, 31, beta=5.0 + seed % 90, outlier=-1.0 - seed % 7, padding=6, seed=seed)
        omega, before = poses(3, angle=0.8, shift=0.3, seed=seed), math.inf * torch.ones(3, 2)
        for _ in range(8):
            energy, omega = native(data, omega, both_ways)
            assert (energy <= before + 1e-6).all(), (energy - before).max()
            before = energy


@settings(max_examples=15)
@given(SEEDS)
def test_order_does_not_matter_and_neither_does_the_direction(seed: int) -> None:
    data, omega = problem(37, 50, seed=seed), poses(2, seed=seed)
    energy, after = native(data, omega)
    rows, columns = torch.randperm(37, generator=generator(seed)), torch.randperm(50, generator=generator(seed))
    shuffled = data._replace(
        source=data.source[:, rows], target=data.target[:, columns], affinity=data.affinity[:, rows][:, :, columns]
    )
    for found, expected in zip(native(shuffled, omega), (energy, after), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    swapped = Assignment(data.target, data.source, data.affinity.mT, *data[3:5], data.target_weight, data.source_weight)
    back, back_after = native(swapped, torch.linalg.inv(omega))
    torch.testing.assert_close(back, energy, rtol=0, atol=2e-6)
    torch.testing.assert_close(back_after, torch.linalg.inv(after), rtol=0, atol=5e-6)


def test_each_pose_and_pair_by_itself() -> None:
    data, omega = problem(20, 30, batch=3), poses(4, 3)
    data.sharpness[1], data.outlier[2] = 3.0, -2.0  # type: ignore[index]
    energy, after = native(data, omega)
    for k in range(4):
        for b in range(3):
            one = Assignment(*(x[b : b + 1] for x in data))  # type: ignore[index]
            alone = native(one, omega[k : k + 1, b : b + 1])
            assert torch.equal(alone[0][0, 0], energy[k, b]) and torch.equal(alone[1][0, 0], after[k, b])


def test_any_number_of_threads_gives_the_same_bits() -> None:
    data, omega = problem(61, 45, padding=3), poses(5)
    for found, expected in zip(native(data, omega, threads=2), native(data, omega), strict=True):
        assert torch.equal(found, expected)
    energy, nothing = ops.soft_assignment(*data[:3], omega, *data[3:], moments=False)  # type: ignore[arg-type]
    assert nothing is None and torch.equal(energy, native(data, omega)[0])


SUMMARY = """
import sys; sys.path[:0] = sys.argv[1:]
from test_ops_assignment import *
energy, after = native(problem(61, 45, padding=3), poses(5))
print(ops.simd_level(), energy.flatten().tolist(), after.flatten().tolist())
"""


@pytest.mark.skipif(ops.simd_level() == "scalar", reason="this processor has no AVX2")
def test_without_avx2_the_bits_are_the_same() -> None:
    folder = Path(__file__).resolve().parent
    run = subprocess.run(
        [sys.executable, "-c", SUMMARY, str(folder), str(Path(ops.__file__).parents[2])],
        env={**os.environ, "DLC_REG_SIMD": "scalar"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    energy, after = native(problem(61, 45, padding=3), poses(5))
    assert run.stdout.strip() == f"scalar {energy.flatten().tolist()} {after.flatten().tolist()}"


@pytest.mark.parametrize(("count", "batch", "n", "m"), [(0, 2, 5, 5), (3, 0, 5, 5), (2, 2, 0, 5), (2, 2, 5, 0)])
def test_nothing_to_do(count: int, batch: int, n: int, m: int) -> None:
    energy, after = native(problem(n, m, batch=batch), poses(count, batch))
    assert energy.shape == (count, batch) and after.shape == (count, batch, 4, 4)
    assert after.isfinite().all()
    if n != m:  # the one cloud is all outliers
        torch.testing.assert_close(energy, torch.full_like(energy, 5.0 / 2))


# bad input


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("source", torch.rand(2, 9, 2)),
        ("source", torch.rand(9, 3)),
        ("source", [[0.0, 0.0, 0.0]]),
        ("source", torch.full((2, 9, 3), math.nan)),
        ("source", torch.ones(2, 9, 3, dtype=torch.int64)),
        ("target", torch.rand(3, 11, 3)),
        ("target", torch.full((2, 11, 3), math.inf)),
        ("affinity", torch.rand(2, 11, 9)),
        ("affinity", torch.rand(2, 9, 11).half()),
        ("affinity", torch.full((2, 9, 11), math.nan)),
        ("affinity", torch.full((2, 9, 11), math.inf)),
        ("poses", torch.eye(4)),
        ("poses", torch.eye(4).expand(1, 3, 4, 4)),
        ("poses", torch.full((1, 2, 4, 4), math.nan)),
        ("sharpness", torch.ones(3)),
        ("sharpness", torch.tensor([1.0, -1.0])),
        ("sharpness", torch.tensor(math.inf)),
        ("sharpness", 1.0),
        ("outlier", torch.tensor([1.0, math.nan])),
        ("source_weight", torch.ones(2, 11)),
        ("source_weight", -torch.ones(2, 9)),
        ("target_weight", torch.ones(2, 9)),
        ("target_weight", torch.full((2, 11), math.nan)),
        ("num_threads", 0),
    ],
)
def test_bad_arguments(argument: str, value: object) -> None:
    arguments = {**problem(9, 11)._asdict(), "poses": poses(1), argument: value}
    with pytest.raises(InputError) as error:
        ops.soft_assignment(**arguments)  # type: ignore[arg-type]
    assert error.value.argument == argument


# SoftAssignment takes this way where it can


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of poses that the operator answered."""
    answered: list[tuple[int, ...]] = []
    operator = ops.soft_assignment

    def watched(*args: torch.Tensor, **options: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        answer = operator(*args, **options)  # type: ignore[arg-type]
        answered.append(tuple(args[3].shape))
        return answer

    monkeypatch.setattr(ops, "soft_assignment", watched)
    return answered


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (0,)])
def test_both_ways_of_soft_assignment_agree(
    calls: list[tuple[int, ...]], lead: tuple[int, ...], both_ways: bool
) -> None:
    energy, data = SoftAssignment(both_ways=both_ways), problem(50, 70, padding=9)
    omega = poses(math.prod(lead)).float().reshape(*lead, 2, 4, 4)
    value, step = energy.value(omega, data), energy.step(omega, data)
    assert calls == [(math.prod(lead), 2, 4, 4)] * 2
    watched = omega.clone().requires_grad_()
    by_torch = energy.value(watched, data), energy.step(watched, data)
    assert len(calls) == 2 and by_torch[0].requires_grad
    for found, expected in zip((value, step), by_torch, strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(energy.value(watched, data), value) and len(calls) == 3


def test_what_torch_has_to_do(calls: list[tuple[int, ...]]) -> None:
    energy, data, omega = SoftAssignment(both_ways=True), problem(9, 12), poses(1)[0].float()
    assert energy.value(omega, data._replace(outlier=None)).isfinite().all()
    assert energy.value(omega.double(), double(data)).dtype == torch.float64
    one = Assignment(*(x[0] for x in data))  # type: ignore[index]
    assert energy.value(omega[0], one).shape == () and energy.step(omega[0], one).shape == (4, 4)
    lost = omega.clone()
    lost[0, 0, 0] = math.nan  # flows through, as for every objective
    assert energy.value(lost, data).isnan().tolist() == [True, False]
    moved = torch.zeros_like(omega)
    moved[:, 0, 3] = 1.0
    value, slope = torch.func.jvp(lambda pose: energy.value(pose, data), (omega,), (moved,))
    many = torch.func.vmap(lambda pose: energy.value(pose, data))(omega[None])
    with torch.autograd.forward_ad.dual_level():
        dual = energy.value(torch.autograd.forward_ad.make_dual(omega, moved), data)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, slope)
    assert calls == []
    h = 1e-2
    difference = (energy.value(omega + h * moved, data) - energy.value(omega - h * moved, data)) / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(many[0], value)
