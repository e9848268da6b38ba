"""Judging and refining poses, and bad input to the global search: against the twins and cases known beforehand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from surfaces import SEEDS, generator, planted, rigid, terrain, turned

from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.ops import _hypotheses_reference as reference
from dlc_reg.ops._hypotheses_reference import moved

pytestmark = pytest.mark.usefixtures("one_thread_for_torch")

JUDGE = {"distance": 0.1, "normal_cosine": 0.8, "oriented": True, "free_margin": 0.1}
REFINE = {"iterations": 10, "first_distance": 0.25, "last_distance": 0.1}


# judging and refining


def surface(points: torch.Tensor, normals: torch.Tensor, **options: object) -> ops.Surface:
    return ops.Surface(points, normals, **{"cell": 0.04, "reach": 0.1, **options})


def twin(s: ops.Surface, **options: object) -> reference.Surface:
    return reference.Surface(s.points.double(), s.normals.double(), **{"cell": 0.04, "reach": 0.1, **options})


def some_poses(seed: int) -> torch.Tensor:
    eye = torch.eye(4, dtype=torch.float64)
    close = [rigid(seed + k, shift=0.02 * k, angle=0.05 * k) for k in range(5)]
    return torch.stack([eye, *close, *(rigid(seed + 20 + k, shift=0.3) for k in range(4))])


@pytest.mark.parametrize("oriented", [True, False])
@pytest.mark.parametrize("eyes", [True, False])
@pytest.mark.parametrize("samples", [100, 5000])
def test_judge_poses_equals_its_twin(oriented: bool, eyes: bool, samples: int) -> None:
    kinds = [
        {"eye": torch.tensor(e, dtype=torch.float64), "bin_angle": 0.1} for e in ((0.1, 0.2, 3.0), (1.0, -0.5, 2.0))
    ]
    options = kinds if eyes else [{}, {}]
    clouds = [terrain(400, 4), terrain(300, 5)]
    surfaces = [surface(*c, **o) for c, o in zip(clouds, options, strict=True)]
    twins = [twin(s, **o) for s, o in zip(surfaces, options, strict=True)]
    how = {**JUDGE, "oriented": oriented, "samples": samples}
    judged = ops.judge_poses(*surfaces, some_poses(6), **how)
    expected = reference.judge_poses(*twins, some_poses(6), **how)
    found = torch.stack([judged.source_overlap, judged.target_overlap, judged.violations, judged.closeness], 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=2.1 / min(samples, 300))
    assert float((found - expected).abs().amax(1).lt(1e-5).double().mean()) > 0.8
    assert expected[:, 0].max() > 0.5 and expected[:, 0].min() < 0.2  # the poses tell something
    assert (expected[:, 2] == -1).all() if not eyes else expected[:, 2].max() > 0.1


def test_a_grid_that_would_not_fit_has_larger_cells() -> None:
    points, normals = terrain(200)
    wide = surface(100 * points, normals, cell=0.05, reach=10.0)
    expected = twin(wide, cell=0.05, reach=10.0)
    assert expected.size > 0.5
    how = {**JUDGE, "distance": 8.0}
    found = ops.judge_poses(wide, wide, some_poses(3), **how)
    judged = reference.judge_poses(expected, expected, some_poses(3), **how)
    torch.testing.assert_close(found.source_overlap, judged[:, 0], rtol=0, atol=0.011)


def test_identical_clouds_overlap_and_disjoint_ones_do_not() -> None:
    points, normals = terrain(1000)
    a, b = surface(points, normals), surface(points, -normals)
    away = torch.eye(4, dtype=torch.float64)
    away[0, 3] = 50
    huge = away.clone()
    huge[0, 3] = 1e300
    poses = torch.stack([torch.eye(4, dtype=torch.float64), away, huge])
    # A cell of the grid answers with the point nearest to its centre, so the cells must be small beside the spacing.
    same = ops.judge_poses(a, a, poses, **JUDGE)
    assert same.source_overlap.tolist() == same.target_overlap.tolist() == [1, 0, 0]
    assert same.violations.tolist() == [-1, -1, -1]
    assert same.closeness[0] > 0.85 and same.closeness[1:].tolist() == [0, 0]
    assert ops.judge_poses(a, b, poses, **JUDGE).source_overlap.tolist() == [0, 0, 0]  # the normals are opposed
    unsigned = ops.judge_poses(a, b, poses, **{**JUDGE, "oriented": False})
    assert unsigned.source_overlap.tolist() == [1, 0, 0]


def test_closeness_is_of_the_distances() -> None:
    x, y = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    points, up = torch.stack([x, y, 0 * x], -1).reshape(-1, 3), torch.tensor([0.0, 0.0, 1.0]).expand(400, 3)
    sheet = surface(points, up, cell=0.1, reach=0.9)
    lift = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    lift[:, 2, 3] = torch.tensor([0.0, 0.4, 0.7])
    judged = ops.judge_poses(sheet, sheet, lift, **{**JUDGE, "distance": 0.8})
    assert judged.source_overlap.tolist() == [1, 1, 1]
    torch.testing.assert_close(judged.closeness, 1 - (lift[:, 2, 3] / 0.8) ** 2, rtol=0, atol=1e-6)
    assert ops.judge_poses(sheet, sheet, lift, **{**JUDGE, "distance": 0.6}).source_overlap.tolist() == [1, 1, 0]


def wall(depth: float, half: float = 1.0, n: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """A square wall at z = depth that faces the origin."""
    x, y = torch.meshgrid(*[torch.linspace(-half, half, n)] * 2, indexing="ij")
    return torch.stack([x, y, torch.full_like(x, depth)], -1).reshape(-1, 3), torch.tensor([[0.0, 0.0, -1.0]] * n * n)


def test_a_plane_before_a_seen_wall_violates_free_space_and_one_behind_it_does_not() -> None:
    origin = (0.0, 0.0, 0.0)
    options = {"cell": 0.05, "reach": 0.1}
    plane, seen = surface(*wall(2.0, 0.4), **options), surface(*wall(2.0), eye=origin, bin_angle=0.05, **options)
    poses = torch.eye(4, dtype=torch.float64).repeat(5, 1, 1)
    poses[:, 2, 3] = torch.tensor(
        [-1.0, -0.2, -0.05, 0.0, 1.0]
    )  # before, before, within the margin, on, behind the wall
    judged = ops.judge_poses(plane, seen, poses, **JUDGE)
    assert judged.violations.tolist() == [1, 1, 0, 0, 0]
    aside = poses.clone()
    aside[:, 0, 3] = 50  # nothing was seen there
    assert ops.judge_poses(plane, seen, aside, **JUDGE).violations.tolist() == [-1] * 5
    # The eye belongs to the target, so turning both about it changes nothing; as the source's it judges backwards.
    backwards = ops.judge_poses(seen, plane, torch.linalg.inv(poses), **JUDGE)
    assert torch.equal(backwards.violations, judged.violations)
    unknown = ops.judge_poses(plane, surface(*wall(2.0), **options), poses, **JUDGE)
    assert unknown.violations.tolist() == [-1] * 5


@settings(max_examples=10)
@given(SEEDS)
def test_judging_backwards_swaps_the_clouds(seed: int) -> None:
    a = surface(*terrain(400, seed), eye=(0.0, 0.0, 3.0), bin_angle=0.1)
    b = surface(*terrain(300, seed + 1), eye=(0.5, 0.0, 3.0), bin_angle=0.1)
    poses = some_poses(seed)
    there, back = ops.judge_poses(a, b, poses, **JUDGE), ops.judge_poses(b, a, torch.linalg.inv(poses), **JUDGE)
    torch.testing.assert_close(there.source_overlap, back.target_overlap, rtol=0, atol=0.01)
    torch.testing.assert_close(there.target_overlap, back.source_overlap, rtol=0, atol=0.01)
    torch.testing.assert_close(there.violations, back.violations, rtol=0, atol=0.01)
    torch.testing.assert_close(there.closeness, back.closeness, rtol=0, atol=0.02)


@pytest.mark.parametrize("oriented", [True, False])
def test_refine_poses_equals_its_twin(oriented: bool) -> None:
    source, target = surface(*terrain(400, 8)), surface(*terrain(400, 9))
    how = {**REFINE, "iterations": 3, "oriented": oriented, "samples": 300}
    refined = ops.refine_poses(source, target, some_poses(10), **how)
    expected = reference.refine_poses(twin(source), twin(target), some_poses(10), **how)
    apart = (refined - expected).abs().amax((1, 2))
    assert float((apart < 1e-4).double().mean()) > 0.8, apart
    assert (expected - some_poses(10)).abs().amax((1, 2))[:6].min() > 1e-4


@settings(max_examples=10)
@given(SEEDS)
def test_refining_brings_a_perturbed_surface_back(seed: int) -> None:
    points, normals = terrain(3000, seed % 100)
    pose = rigid(seed, shift=0.5)
    source = surface(*turned(torch.linalg.inv(pose), points, normals))
    start = torch.stack([rigid(seed + k, shift=0.03, angle=0.06) @ pose for k in range(4)])
    refined = ops.refine_poses(source, surface(points, normals), start, **REFINE)
    error = (moved(refined[0], source.points.double()) - points.double()).norm(dim=1)
    assert float(error.max()) < 0.02 < 2 * float((moved(start[0], source.points.double()) - points).norm(dim=1).max())
    for other in refined[1:]:
        torch.testing.assert_close(other, refined[0], rtol=0, atol=0.02)


def test_a_pose_without_footing_stays_as_it_was() -> None:
    points, normals = terrain(500)
    here = surface(points, normals)
    away = torch.eye(4, dtype=torch.float64).repeat(4, 1, 1)
    away[1:, 0, 3] = torch.tensor([50.0, 1e300, 0.02], dtype=torch.float64)
    given_poses = away.clone()
    refined = ops.refine_poses(here, here, away, **REFINE)
    assert torch.equal(away, given_poses)  # the argument is not written to
    assert torch.equal(refined[1:3], away[1:3]) and not torch.equal(refined[3], away[3])
    five = surface(points[:5], normals[:5])
    assert torch.equal(ops.refine_poses(five, here, away, **REFINE), away)
    opposed = surface(points, -normals)
    assert torch.equal(ops.refine_poses(opposed, here, away, oriented=True, **REFINE), away)


def test_a_plane_slides_but_does_not_run_away() -> None:
    points, normals = wall(0.0, n=40)
    start = torch.eye(4, dtype=torch.float64)[None].clone()
    start[0, :3, 3] = torch.tensor([0.01, -0.02, 0.03])
    refined = ops.refine_poses(surface(points, normals), surface(points, normals), start, **REFINE)
    torch.testing.assert_close(refined[0, 2, 3].item(), 0.0, rtol=0, atol=1e-3)
    torch.testing.assert_close(refined[0, :2, 3], start[0, :2, 3], rtol=0, atol=1e-3)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_points_are_judged_and_left_alone(n: int) -> None:
    points, normals = terrain(100)
    few, poses = surface(points[:n], normals[:n], eye=(0.0, 0.0, 3.0)), some_poses(0)
    judged = ops.judge_poses(few, few, poses, **JUDGE)
    assert judged.source_overlap[0] == 1 and len(judged.violations) == len(poses)
    assert torch.equal(ops.refine_poses(few, few, poses, **REFINE), poses)
    same = surface(points[:1].expand(n, 3), normals[:1].expand(n, 3), eye=points[0])  # even with the eye in the point
    assert ops.judge_poses(same, same, poses[:1], **JUDGE).violations.tolist() == [-1]


def test_no_poses() -> None:
    here, none = surface(*terrain(50)), torch.empty(0, 4, 4)
    assert ops.judge_poses(here, here, none, **JUDGE).closeness.shape == (0,)
    assert ops.refine_poses(here, here, none, **REFINE).shape == (0, 4, 4)


def test_threads_change_no_bit() -> None:
    points, normals = terrain(1500, 11)
    index, poses = ops.SearchIndex(points), some_poses(12)
    source, target, _ = planted(300, 100, 13, noise=0.01)
    here, there = surface(points, normals, eye=(0.0, 0.0, 3.0)), surface(*terrain(1200, 14), eye=(0.0, 0.0, 3.0))

    def everything(threads: int) -> list[torch.Tensor]:
        features = [ops.fpfh(index, normals, 0.2, oriented=o, num_threads=threads) for o in (True, False)]
        judged = ops.judge_poses(here, there, poses, num_threads=threads, **JUDGE)
        return [
            *features,
            *ops.mutual_matches(*features, num_threads=threads),
            *ops.propose_poses(source, target, 0.05, num_threads=threads),
            *vars(judged).values(),
            ops.refine_poses(here, there, poses, num_threads=threads, **REFINE),
        ]

    one = everything(1)
    for threads in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(one, everything(threads), strict=True))


# bad input

GOOD, UP = torch.rand(6, 3, generator=generator(0)), torch.tensor([[0.0, 0.0, 1.0]] * 6)
HERE = ops.Surface(GOOD, UP, cell=0.1, reach=0.2)
EYE4 = torch.eye(4)[None]
NAN = torch.full((6, 3), math.nan)


def judge(**changes: object) -> object:
    return ops.judge_poses(**{"source": HERE, "target": HERE, "poses": EYE4, **JUDGE, **changes})


def refine(**changes: object) -> object:
    return ops.refine_poses(**{"source": HERE, "target": HERE, "poses": EYE4, **REFINE, **changes})


def propose(**changes: object) -> object:
    return ops.propose_poses(**{"source": GOOD, "target": GOOD, "tolerance": 0.1, **changes})


def make(**changes: object) -> object:
    return ops.Surface(**{"points": GOOD, "normals": UP, "cell": 0.1, "reach": 0.1, **changes})


def describe(**changes: object) -> object:
    return ops.fpfh(**{"index": ops.SearchIndex(GOOD), "normals": UP, "radius": 0.5, **changes})


def match(**changes: object) -> object:
    return ops.mutual_matches(**{"a": torch.rand(4, 7), "b": torch.rand(5, 7), **changes})


BAD_ROWS = [GOOD.numpy(), None, GOOD[:, :2], GOOD[0], GOOD.long(), NAN, GOOD / 0]
BAD_LENGTHS = [0, -1.0, math.nan, math.inf, 1e39, 1e-60, "far", None]
BAD_COUNTS = [0, -3, 2.5, "many", None]
BAD_COSINES = [1.5, -2, math.nan, "steep", None]
BAD_POSES = [
    np.eye(4)[None], EYE4[0], EYE4[:, :3], EYE4.long(), EYE4 * math.nan, 2 * EYE4, "pose", None
]  # fmt: skip
BAD = {
    (describe, "index"): [GOOD, None],
    (describe, "normals"): [*BAD_ROWS, UP[:5]],
    (describe, "radius"): BAD_LENGTHS,
    (describe, "num_threads"): [0, -1, 1.5],
    (match, "a"): [None, GOOD.numpy(), GOOD[0], GOOD.long(), NAN, torch.rand(4, 0)],
    (match, "b"): [None, torch.rand(5, 6), torch.rand(5, 7).numpy(), torch.full((5, 7), math.inf)],
    (match, "num_threads"): [0, -1, 1.5],
    (propose, "source"): BAD_ROWS,
    (propose, "target"): [*BAD_ROWS, GOOD[:5]],
    (propose, "tolerance"): BAD_LENGTHS,
    (propose, "max_seeds"): BAD_COUNTS,
    (propose, "max_clique"): BAD_COUNTS,
    (propose, "num_threads"): [0, -1, 1.5],
    (make, "points"): [*BAD_ROWS, GOOD[:0]],
    (make, "normals"): [*BAD_ROWS, UP[:5]],
    (make, "cell"): BAD_LENGTHS,
    (make, "reach"): BAD_LENGTHS,
    (make, "bin_angle"): BAD_LENGTHS,
    (make, "eye"): [3.0, (1, 2), (1, 2, math.nan), (1, 2, 1e39), "here", [[1, 2], [3]]],
    (judge, "source"): [GOOD, None],
    (judge, "target"): [GOOD, None],
    (judge, "poses"): BAD_POSES,
    (judge, "distance"): BAD_LENGTHS,
    (judge, "normal_cosine"): BAD_COSINES,
    (judge, "free_margin"): [-1.0, math.nan, "far", None],
    (judge, "samples"): BAD_COUNTS,
    (judge, "num_threads"): [0, -1, 1.5],
    (refine, "source"): [GOOD, None],
    (refine, "target"): [GOOD, None],
    (refine, "poses"): BAD_POSES,
    (refine, "iterations"): BAD_COUNTS,
    (refine, "first_distance"): BAD_LENGTHS,
    (refine, "last_distance"): BAD_LENGTHS,
    (refine, "normal_cosine"): BAD_COSINES,
    (refine, "samples"): BAD_COUNTS,
    (refine, "num_threads"): [0, -1, 1.5],
}


@pytest.mark.parametrize(("call", "argument"), BAD)
def test_bad_arguments_are_named(call, argument: str) -> None:  # type: ignore[no-untyped-def]
    call()
    for value in BAD[call, argument]:
        with pytest.raises(InputError) as error:
            call(**{argument: value})
        assert error.value.argument == argument, value


def test_float64_and_strides_are_taken() -> None:
    points, normals = terrain(300)
    strided = torch.cat([points, normals], 1).double()
    surfaces = surface(points, normals), surface(strided[:, :3], strided[:, 3:])
    assert repr(surfaces[0]) == "Surface(300 points)" and len(surfaces[1]) == 300
    judged = [ops.judge_poses(s, s, some_poses(0).mT.contiguous().mT, **JUDGE) for s in surfaces]
    assert torch.equal(judged[0].closeness, judged[1].closeness)
    with pytest.raises(ValueError, match="float32"):
        surface(points * 1e38, normals, reach=3e38)
