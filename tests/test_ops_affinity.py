"""Soft assignment with affinities by their factors: against the formulas, against the matrix, and in bounded memory."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from surfaces import generator
from test_ops_assignment import native, poses, problem

from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.registration.assignment import Assignment, SoftAssignment

pytestmark = pytest.mark.usefixtures("one_thread_for_torch")


def factored(n: int, m: int, channels: int = 7, *, batch: int = 2, padding: int = 0, seed: int = 0) -> Assignment:
    """Points that answer one another have like features, of length 2."""
    data = problem(n, m, batch=batch, padding=padding, seed=seed)
    f, g = (torch.randn(batch, k, channels, generator=generator(seed + k + 3)) for k in (n, m))
    common = min(n, m)
    g[:, :common] = f[:, :common] + 0.1 * torch.randn(batch, common, channels, generator=generator(seed + 4))
    f, g = (2 * torch.nn.functional.normalize(x, dim=2) for x in (f, g))
    r, c = (-2 * torch.rand(batch, k, generator=generator(seed + k + 5)) for k in (n, m))
    r, c = (x.masked_fill(w == 0, -2e4) for x, w in ((r, data.source_weight), (c, data.target_weight)))
    return data._replace(affinity=ops.Affinity(f, g, r, c))


def double(data: Assignment) -> Assignment:
    """In float64, with a matrix that is formed without `Affinity.matrix`."""
    assert isinstance(data.affinity, ops.Affinity)
    f, g, r, c = (x.double() for x in data.affinity)
    matrix = torch.einsum("bic,bjc->bij", f, g) + r[:, :, None] + c[:, None, :]
    fields = {name: x.double() for name, x in data._asdict().items() if name != "affinity"}
    return data._replace(affinity=matrix, **fields)


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize("count", [1, 3, 20])  # of poses: more than share the affinities, too
@pytest.mark.parametrize(
    ("n", "m", "channels", "padding"), [(1, 1, 1, 0), (9, 8, 3, 0), (33, 77, 7, 6), (70, 13, 64, 5), (40, 40, 0, 0)]
)
def test_equals_the_formulas_and_the_matrix(
    n: int, m: int, channels: int, padding: int, count: int, both_ways: bool
) -> None:
    data, omega = factored(n, m, channels, padding=padding), poses(count, angle=0.05, shift=0.02)
    energy, after = native(data, omega, both_ways)
    formula, exact = SoftAssignment(both_ways=both_ways), double(data)
    torch.testing.assert_close(energy, formula.value(omega.double(), exact), rtol=2e-6, atol=2e-6)
    if min(n, m) > 2:  # fewer points do not hold a rotation
        torch.testing.assert_close(after, formula.step(omega.double(), exact), rtol=0, atol=1e-5)
    by_matrix = native(data._replace(affinity=data.matrix()), omega, both_ways)
    torch.testing.assert_close(energy, by_matrix[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(after, by_matrix[1], rtol=0, atol=3e-6)


@pytest.mark.parametrize("outlier", [-300.0, -60.0, -40.0, 30.0])
def test_any_outlier_level(outlier: float) -> None:
    data, omega = factored(40, 50, padding=3), poses(2, angle=0.05, shift=0.02)
    data = data._replace(outlier=torch.full((2,), outlier))
    energy, _ = native(data, omega)
    expected = SoftAssignment(both_ways=True).value(omega.double(), double(data))
    torch.testing.assert_close(energy, expected, rtol=2e-6, atol=2e-6)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    """Whatever it is that they share the poses out by."""
    data, omega = factored(70, 45, 16, padding=3), poses(35)
    expected = native(data, omega)
    for threads in (2, 3, 8):
        for found, want in zip(native(data, omega, threads=threads), expected, strict=True):
            assert torch.equal(found, want)
    alone = native(data, omega[17:18])
    assert torch.equal(alone[0][0], expected[0][17]) and torch.equal(alone[1][0], expected[1][17])


def test_minus_infinity_is_absent_and_float64_is_taken() -> None:
    data, omega = factored(20, 25, padding=5), poses(2)
    assert isinstance(data.affinity, ops.Affinity)
    expected = native(data, omega)
    f, g, r, c = data.affinity
    lowest = ops.Affinity(f, g, *(x.masked_fill(x == -2e4, -math.inf) for x in (r, c)))
    for affinity in (lowest, ops.Affinity(*(x.double() for x in data.affinity))):
        for found, want in zip(native(data._replace(affinity=affinity), omega), expected, strict=True):
            assert torch.equal(found, want)


@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0)])
def test_one_cloud_without_points(n: int, m: int) -> None:
    energy, after = native(factored(n, m), poses(2))
    torch.testing.assert_close(energy, torch.full_like(energy, 5.0 / 2))
    assert after.isfinite().all()


def test_some_rows_of_the_matrix() -> None:
    data = factored(20, 25)
    whole = data._replace(affinity=data.matrix())
    for some in (slice(None), slice(3, 9), slice(18, 30)):
        torch.testing.assert_close(data.matrix(some), double(data).matrix(some).float(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(whole.matrix(some), data.matrix(some), rtol=1e-6, atol=1e-6)
    assert isinstance(data.affinity, ops.Affinity)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(data.affinity.matrix(), data.matrix()) and data.matrix().dtype == torch.float32


def test_what_is_differentiated_goes_through_torch() -> None:
    """And gives the factors a gradient."""
    data, omega, energy = factored(20, 25), poses(1)[0].float(), SoftAssignment(both_ways=True)
    assert isinstance(data.affinity, ops.Affinity)
    parts = [x.clone().requires_grad_() for x in data.affinity]
    watched = data._replace(affinity=ops.Affinity(*parts))
    value = energy.value(omega, watched)
    torch.testing.assert_close(value.detach(), energy.value(omega, data), rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(value.sum(), parts)
    shares = energy.responsibilities(omega, data)
    torch.testing.assert_close(gradients[0], -shares @ data.affinity.target_features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[3], -shares.sum(1), rtol=1e-4, atol=1e-5)


PEAK = """
import sys; sys.path[:0] = sys.argv[1:]
import torch
from dlc_reg import ops
def peak():  # of this process alone: what getrusage says begins with the parent's
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
n = 20_000
cloud, features, bias = torch.rand(1, n, 3), torch.rand(1, n, 8), torch.zeros(1, n)
affinity, pose = ops.Affinity(features, features, bias, bias), torch.eye(4).expand(1, 1, 4, 4)
level = torch.tensor([100.0]), torch.tensor([0.0]), torch.full((1, n), 1 / n), torch.full((1, n), 1 / n)
before = peak()
energy, after = ops.soft_assignment(cloud, cloud, affinity, pose, *level)
assert energy.isfinite().all() and after.isfinite().all()
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak where Linux writes it")
def test_large_clouds_need_no_matrix() -> None:
    """1.6 GB it would have."""
    root = str(Path(ops.__file__).parents[2])
    run = subprocess.run([sys.executable, "-c", PEAK, root], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 100, f"{run.stdout} MB"


GOOD = ops.Affinity(torch.rand(2, 9, 5), torch.rand(2, 11, 5), torch.rand(2, 9), torch.rand(2, 11))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source_features", torch.rand(2, 11, 5)),
        ("source_features", torch.rand(9, 5)),
        ("source_features", torch.full((2, 9, 5), math.nan)),
        ("source_features", torch.full((2, 9, 5), -math.inf)),
        ("source_features", [[0.0]]),
        ("target_features", torch.rand(2, 11, 4)),
        ("target_features", torch.rand(1, 11, 5)),
        ("target_features", torch.ones(2, 11, 5, dtype=torch.int64)),
        ("source_bias", torch.rand(2, 9, 1)),
        ("source_bias", torch.rand(2, 11)),
        ("source_bias", torch.full((2, 9), math.inf)),
        ("target_bias", torch.rand(2, 9)),
        ("target_bias", torch.full((2, 11), math.nan)),
    ],
)
def test_bad_factors(field: str, value: object) -> None:
    arguments = {**problem(9, 11)._asdict(), "poses": poses(1)}
    ops.soft_assignment(**{**arguments, "affinity": GOOD})
    with pytest.raises(InputError) as error:
        ops.soft_assignment(**{**arguments, "affinity": GOOD._replace(**{field: value})})
    assert error.value.argument == f"affinity.{field}"
