"""Signatures of histograms of orientations: against their twin, by hand, and what they do not depend on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surfaces import SEEDS, generator, rigid, terrain, turned

from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.ops import _hypotheses_reference as reference

pytestmark = pytest.mark.usefixtures("one_thread_for_torch")


def signatures(points: torch.Tensor, normals: torch.Tensor, radius: float, oriented: bool) -> torch.Tensor:
    return ops.signatures(ops.SearchIndex(points), normals, radius, oriented=oriented)


def shaken(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    points, normals = terrain(count, seed)
    noise = 0.3 * torch.randn(count, 3, generator=generator(seed))
    return points, torch.nn.functional.normalize(normals + noise, dim=1)


@pytest.mark.parametrize("oriented, size", [(True, 352), (False, 192)])
@pytest.mark.parametrize("flip", [False, True])
def test_they_equal_their_twin(oriented: bool, size: int, flip: bool) -> None:
    points, normals = shaken(500, 1)
    if flip:
        normals = normals * (1 - 2 * (torch.arange(500) % 2))[:, None]
    found = signatures(points, normals, 0.3, oriented)
    expected = reference.signatures(points.double(), normals.double(), 0.3, oriented=oriented)
    assert found.shape == (500, size) and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(500), rtol=0, atol=1e-5)


def test_a_neighbourhood_by_hand() -> None:
    # The first neighbour alone leaves the tangent plane, so that x points to it: its azimuth is 0, between the last bin
    # and the first. The others lie in the plane, at the middles of the first three azimuths.
    def at(azimuth: float, sine: float, distance: float) -> list[float]:
        across = distance * math.sqrt(1 - sine**2)
        return [across * math.cos(azimuth), across * math.sin(azimuth), distance * sine]

    others = [at(math.pi / 8 * (2 * k + 1), 0.0, 0.75) for k in range(3)]
    points = torch.tensor([[0.0, 0.0, 0.0], at(0.0, 0.5, 0.25), *others])
    up = torch.tensor([[0.0, 0.0, 1.0]] * 5)
    expected = torch.zeros(8, 2, 2, 11)  # azimuth, elevation, shell, cosine
    expected[[0, 7], 1, 0, 10] = 0.5
    expected[:3, :, 1, 10] = 0.5
    found = signatures(points, up, 1.0, True)[0].reshape(8, 2, 2, 11)
    torch.testing.assert_close(found, expected / expected.norm(), rtol=0, atol=1e-5)
    down = signatures(points, -up, 1.0, False)[0].reshape(8, 2, 2, 6)  # turned to where the first neighbour is
    torch.testing.assert_close(down[..., -1], found[..., -1], rtol=0, atol=1e-5)
    assert not down[..., :-1].any()


@settings(max_examples=15)
@given(SEEDS, st.booleans())
def test_they_ignore_rigid_motion_order_and_scale(seed: int, oriented: bool) -> None:
    points, normals = shaken(300, seed)
    found = signatures(points, normals, 0.4, oriented)
    moved = signatures(*turned(rigid(seed), points, normals), 0.4, oriented)
    # Rounding may let a neighbour in or out at the radius; where x is hardly defined, it turns.
    assert float((moved - found).norm(dim=1).median()) < 1e-3
    assert float(((moved - found).norm(dim=1) < 0.1).double().mean()) > 0.95
    order = torch.randperm(300, generator=generator(seed))
    shuffled = signatures(points[order], normals[order], 0.4, oriented)
    torch.testing.assert_close(shuffled, found[order], rtol=0, atol=1e-3)
    torch.testing.assert_close(signatures(8 * points, normals, 8 * 0.4, oriented), found, rtol=0, atol=1e-4)


@settings(max_examples=15)
@given(SEEDS)
def test_sign_free_ones_ignore_the_signs_of_normals(seed: int) -> None:
    points, normals = shaken(300, seed)
    signs = torch.randint(0, 2, (300, 1), generator=generator(seed)) * 2 - 1
    found, flipped = (signatures(points, n, 0.4, False) for n in (normals, normals * signs))
    torch.testing.assert_close(flipped, found, rtol=0, atol=1e-5)
    oriented, wrong = (signatures(points, n, 0.4, True) for n in (normals, normals * signs))
    assert float((oriented - wrong).norm(dim=1).median()) > 0.5  # what it is that they ignore


@pytest.mark.parametrize("oriented", [True, False])
def test_of_what_has_no_frame(oriented: bool) -> None:
    up = torch.tensor([[0.0, 0.0, 1.0]])
    flat = torch.cat([torch.rand(50, 2, generator=generator(1)), torch.zeros(50, 1)], dim=1)
    for points in (flat, torch.full((9, 3), 0.7), torch.rand(4, 3, generator=generator(2))):
        assert not signatures(points, up.expand(len(points), 3), 2.0, oriented).any()
    tiny = torch.rand(30, 3, generator=generator(3)) * 1e-20
    found = signatures(tiny, up.expand(30, 3), 1e-20, oriented)
    assert found.isfinite().all() and found.any()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"index": torch.rand(9, 3)}, "index: got a Tensor"),
        ({"normals": torch.rand(8, 3)}, "normals"),
        ({"normals": torch.full((9, 3), math.nan)}, "normals"),
        ({"radius": 0.0}, "radius"),
        ({"radius": math.inf}, "radius"),
    ],
)
def test_bad_input_is_named(changes: dict[str, object], message: str) -> None:
    points = torch.rand(9, 3, generator=generator(0))
    good = {"index": ops.SearchIndex(points), "normals": torch.ones(9, 3), "radius": 0.5}
    with pytest.raises(InputError, match=message):
        ops.signatures(**{**good, **changes})  # type: ignore[arg-type]


def test_threads_change_nothing() -> None:
    points, normals = shaken(700, 5)
    index = ops.SearchIndex(points)
    for oriented in (True, False):
        one, three = (ops.signatures(index, normals, 0.3, oriented=oriented, num_threads=n) for n in (1, 3))
        assert torch.equal(one, three)
