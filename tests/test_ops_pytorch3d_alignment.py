"""Alignment, ICP and the chamfer distance by PyTorch3D's names, against SciPy, closed forms and PyTorch3D."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from registering import thin
from scipy.optimize import minimize
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from dlc_reg import InputError, PointCloud, ops
from dlc_reg.pipelines import registration as reg

SEEDS = st.integers(0, 2**32 - 1)


class Clouds:
    """Stands in for pytorch3d.structures.Pointclouds."""

    def __init__(self, padded, sizes, normals=None):
        self.padded, self.sizes, self.normals = padded, torch.tensor(sizes), normals

    def points_padded(self):
        return self.padded

    def num_points_per_cloud(self):
        return self.sizes

    def normals_padded(self):
        return self.normals

    def update_padded(self, padded):
        return Clouds(padded, self.sizes.tolist())


def drawn(seed, n=3, p=12, d=3):
    """Points (n, p, d), a rotation, a translation and a scale for each, float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, p, d, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(n, d, d, generator=generator, dtype=torch.float64))[0]
    turn[:, 0] *= torch.linalg.det(turn).sign()[:, None]
    shift = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x, turn, shift, torch.rand(n, generator=generator, dtype=torch.float64) + 0.5


def moved(x, turn, shift, scale):
    return scale[:, None, None] * x @ turn + shift[:, None]


# --- corresponding_points_alignment ----------------------------------------------------------------------------------
@settings(max_examples=30)
@given(SEEDS, st.sampled_from([2, 3, 4]), st.booleans())
def test_a_transform_is_found_again(seed, d, scaled):
    x, turn, shift, scale = drawn(seed, d=d)
    if not scaled:
        scale = torch.ones(3, dtype=torch.float64)
    found = ops.corresponding_points_alignment(x, moved(x, turn, shift, scale), estimate_scale=scaled)
    for a, b in zip(found, (turn, shift, scale), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@settings(max_examples=20)
@given(SEEDS)
def test_noisy_weighted_points_are_aligned_as_scipy_aligns_them(seed):
    rng = np.random.default_rng(seed)
    x, turn, shift, scale = drawn(seed)
    y = moved(x, turn, shift, scale) + 0.3 * torch.from_numpy(rng.normal(size=x.shape))
    weights = torch.from_numpy(rng.uniform(0, 2, x.shape[:2]))
    found = ops.corresponding_points_alignment(x, y, weights)
    for b in range(3):
        a, c, w = x[b].numpy(), y[b].numpy(), weights[b].numpy()
        mean_a, mean_c = np.average(a, 0, w), np.average(c, 0, w)
        expected, _ = Rotation.align_vectors(c - mean_c, a - mean_a, w)
        np.testing.assert_allclose(found.R[b].T, expected.as_matrix(), atol=1e-7)
        np.testing.assert_allclose(found.T[b], mean_c - mean_a @ found.R[b].numpy(), atol=1e-9)
    assert (found.s == 1).all()


def test_no_similarity_is_better():
    """Weights, scale and a reflection at once, against a general minimiser."""
    rng = np.random.default_rng(0)
    x, turn, shift, scale = drawn(0, n=1)
    turn[:, 0] *= -1
    y = moved(x, turn, shift, scale) + 0.2 * torch.from_numpy(rng.normal(size=x.shape))
    weights = torch.from_numpy(rng.uniform(0, 2, x.shape[:2]))
    for reflected in (True, False):
        found = ops.corresponding_points_alignment(x, y, weights, estimate_scale=True, allow_reflection=reflected)
        assert float(torch.linalg.det(found.R)) == pytest.approx(-1 if reflected else 1)

        def cost(q, found=found):
            by = Rotation.from_rotvec(q[:3]).as_matrix()
            got = (found.s[0].item() + q[6]) * x[0].numpy() @ found.R[0].numpy() @ by + found.T[0].numpy() + q[3:6]
            return float((weights[0].numpy() * np.square(got - y[0].numpy()).sum(1)).sum())

        best = minimize(cost, np.zeros(7), method="BFGS", options={"gtol": 1e-9})
        assert cost(np.zeros(7)) <= best.fun * (1 + 1e-9)


def test_weights_of_zero_and_ragged_clouds_leave_points_out():
    x, turn, shift, scale = drawn(1)
    y = moved(x, turn, shift, scale)
    spoiled = y.clone()
    spoiled[:, 8:] = torch.nan
    weights = (torch.arange(12) < 8).double().expand(3, -1)
    for found in (
        ops.corresponding_points_alignment(x, spoiled, weights, estimate_scale=True),
        ops.corresponding_points_alignment(
            x, spoiled, [torch.ones(12).index_fill(0, torch.arange(8, 12), 0)] * 3, True
        ),
        ops.corresponding_points_alignment(Clouds(x, [8] * 3), Clouds(spoiled, [8] * 3), estimate_scale=True),
        ops.corresponding_points_alignment(Clouds(x, [8] * 3), Clouds(spoiled, [8] * 3), [torch.ones(8)] * 3, True),
    ):
        torch.testing.assert_close(found.R, turn)
        torch.testing.assert_close(found.s, scale)


@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_of_the_alignment(scaled):
    x, turn, shift, scale = drawn(2, n=2, p=5)
    y = moved(x, turn, shift, scale) + 0.1 * torch.randn(x.shape, dtype=torch.float64)
    weights = torch.rand(2, 5, dtype=torch.float64) + 0.1
    inputs = tuple(value.requires_grad_() for value in (x, y, weights))
    assert torch.autograd.gradcheck(
        lambda *a: tuple(ops.corresponding_points_alignment(*a, scaled))[: 2 + scaled], inputs
    )


def test_points_that_hold_no_rotation_are_warned_of():
    line = torch.arange(6.0)[None, :, None] * torch.tensor([1.0, 2.0, 3.0])
    with pytest.warns(UserWarning, match="do not determine a rotation"):
        found = ops.corresponding_points_alignment(line[:, :2], line[:, :2])
    torch.testing.assert_close(line[:, :2] @ found.R + found.T[:, None], line[:, :2], rtol=1e-5, atol=1e-5)
    assert float(torch.linalg.det(found.R)) == pytest.approx(1)


# --- iterative_closest_point -----------------------------------------------------------------------------------------
def test_icp_takes_scipys_steps():
    """The same closest points and the same closed form, written with SciPy, one iteration after the other."""
    x, _, _, _ = drawn(3, n=2, p=80)
    turn = torch.from_numpy(Rotation.from_rotvec([[0.1, 0.2, -0.1], [0, 0.1, 0.2]]).as_matrix())
    y = (x @ turn.mT + 0.05)[:, :70] + 0.01 * torch.randn(2, 70, 3, dtype=torch.float64)
    found = ops.iterative_closest_point(x, y, max_iterations=4, relative_rmse_thr=-1.0)
    assert not found.converged and len(found.t_history) == 4
    for b in range(2):
        tree, at = cKDTree(y[b].numpy()), x[b].numpy()
        for step in found.t_history:
            near = y[b].numpy()[tree.query(at)[1]]
            middle, mean = near.mean(0), x[b].numpy().mean(0)
            by, _ = Rotation.align_vectors(near - middle, x[b].numpy() - mean)
            np.testing.assert_allclose(step.R[b].T, by.as_matrix(), atol=1e-7)
            at = by.apply(x[b].numpy() - mean) + middle
        np.testing.assert_allclose(found.Xt[b], at, atol=1e-7)
        assert float(found.rmse[b]) == pytest.approx(np.sqrt(np.square(at - near).sum(1).mean()), rel=1e-6)


def test_icp_on_real_scans_is_the_packages_point_to_point(bunny_pair):
    """Row vectors and a start included; the package's own has another rule for stopping, so that both run long."""
    source, target = thin(bunny_pair.source, 1500), thin(bunny_pair.target, 1500, seed=1)
    start = bunny_pair.T_target_source
    parts = (torch.tensor(start[:3, :3].T)[None], torch.tensor(start[:3, 3])[None])
    init = ops.SimilarityTransform(*parts, torch.ones(1, dtype=torch.float64))
    x, y = torch.tensor(source)[None], torch.tensor(target)[None]
    found = ops.iterative_closest_point(x, y, init, max_iterations=500, relative_rmse_thr=0.0)
    assert found.converged and isinstance(found, ops.ICPSolution)
    clouds = [PointCloud.from_any(points) for points in (source, target)]
    estimation, criteria = reg.TransformationEstimationPointToPoint(), reg.ICPConvergenceCriteria(0.0, 0.0, 500)
    own = reg.registration_icp(*clouds, 1.0, start, estimation, criteria)
    np.testing.assert_allclose(found.RTs.R[0].T, own.transformation[:3, :3], atol=1e-4)
    np.testing.assert_allclose(found.RTs.T[0], own.transformation[:3, 3], atol=1e-5)
    assert float(found.rmse[0]) == pytest.approx(own.inlier_rmse, rel=1e-3)


def test_icp_of_exact_clouds_converges_to_nothing_left():
    x, _, _, _ = drawn(4, n=2, p=60)
    small = torch.from_numpy(Rotation.from_rotvec([0.02, 0, 0.03]).as_matrix())
    found = ops.iterative_closest_point(x, x @ small.T + 0.01)
    assert found.converged and float(found.rmse.max()) < 1e-9
    torch.testing.assert_close(found.RTs.R, small.T.expand(2, -1, -1), rtol=0, atol=1e-7)
    assert (found.RTs.s == 1).all()


def test_icp_of_ragged_clouds_is_that_of_each_alone():
    x, _, _, _ = drawn(5, n=2, p=50)
    y = 1.02 * x.flip(1) + 0.03
    sizes = ([50, 30], [50, 40])
    padded = [cloud.clone() for cloud in (x, y)]
    for cloud, size in zip(padded, sizes, strict=True):
        cloud[1, size[1] :] = torch.nan
    options = {"max_iterations": 5, "relative_rmse_thr": -1.0, "estimate_scale": True}
    found = ops.iterative_closest_point(Clouds(padded[0], sizes[0]), Clouds(padded[1], sizes[1]), **options)
    assert isinstance(found.Xt, Clouds)
    for b in range(2):
        alone = ops.iterative_closest_point(x[b : b + 1, : sizes[0][b]], y[b : b + 1, : sizes[1][b]], **options)
        for one, other in zip(found.RTs, alone.RTs, strict=True):
            torch.testing.assert_close(one[b], other[0])
        torch.testing.assert_close(found.rmse[b], alone.rmse[0])


def test_gradients_of_icp():
    x, _, _, _ = drawn(6, n=1, p=8)
    y = x.flip(1) @ torch.from_numpy(Rotation.from_rotvec([0.05, 0.02, 0]).as_matrix()) + 0.02
    x.requires_grad_(), y.requires_grad_()
    options = {"max_iterations": 2, "relative_rmse_thr": -1.0}
    assert torch.autograd.gradcheck(lambda a, b: ops.iterative_closest_point(a, b, **options).Xt, (x, y))


def test_icp_without_an_iteration_and_in_words(capsys):
    x, turn, shift, scale = drawn(7)
    start = ops.SimilarityTransform(turn, shift, scale)
    none = ops.iterative_closest_point(x, x, start, max_iterations=0)
    assert none.rmse is None and not none.converged and none.t_history == []
    torch.testing.assert_close(none.Xt, moved(x, *start))
    assert capsys.readouterr().out == ""
    ops.iterative_closest_point(x, x, max_iterations=1, verbose=True)
    assert capsys.readouterr().out.startswith("ICP iteration 0: mean/max rmse")


# --- chamfer_distance ------------------------------------------------------------------------------------------------
def by_hand(x, y, sizes, normals, norm, absolute):
    """For each cloud: (distances, cosines) of x's points and of y's, by the documentation."""
    out = []
    for b in range(len(x)):
        a, c = x[b, : sizes[0][b]].numpy(), y[b, : sizes[1][b]].numpy()
        off = a[:, None] - c
        table = np.abs(off).sum(2) if norm == 1 else np.square(off).sum(2)
        pair = []
        for d, mine, other in ((table, 0, 1), (table.T, 1, 0)):
            near = normals[other][b].numpy()[d.argmin(1)]
            own = normals[mine][b, : sizes[mine][b]].numpy()
            cosine = (own * near).sum(1) / np.linalg.norm(own, axis=1) / np.linalg.norm(near, axis=1)
            pair.append((d.min(1), 1 - (np.abs(cosine) if absolute else cosine)))
        out.append(pair)
    return out


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("point", ["mean", "sum", "max"])
@pytest.mark.parametrize("batch", ["mean", "sum", None])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("single", [False, True])
def test_the_chamfer_distance_is_what_its_documentation_says(norm, point, batch, weighted, single):
    x, _, _, _ = drawn(8)
    y, _, _, _ = drawn(9, p=9)
    normals = drawn(10)[0], drawn(11, p=9)[0]
    sizes = torch.tensor([12, 5, 1]), torch.tensor([9, 9, 2])
    weights = torch.tensor([0.5, 0.0, 2.0]).double() if weighted else None
    given_normals = (None, None) if point == "max" else normals
    got = ops.chamfer_distance(
        x, y, *sizes, *given_normals, weights, batch, point, norm=norm, single_directional=single, abs_cosine=single
    )
    reduce = {"mean": np.mean, "sum": np.sum, "max": np.max}[point]
    rows = []
    for pair in by_hand(x, y, sizes, normals, norm, single):
        ways = [(reduce(d), reduce(c)) for d, c in pair[: 1 if single else 2]]
        rows.append(np.max(ways, 0) if point == "max" else np.sum(ways, 0))
    rows = np.array(rows) * (1 if weights is None else weights.numpy()[:, None])
    if batch is not None:
        rows = rows.sum(0) / ((3 if weights is None else 2.5) if batch == "mean" else 1)
    np.testing.assert_allclose(got[0], rows[..., 0], rtol=1e-9)
    if point == "max":
        assert got[1] is None
    else:
        np.testing.assert_allclose(got[1], rows[..., 1], rtol=1e-9)


def test_the_chamfer_distance_of_each_point():
    x, y = drawn(12)[0], drawn(13, p=9)[0]
    (first, second), nothing = ops.chamfer_distance(x, y, batch_reduction=None, point_reduction=None)
    assert first.shape == (3, 12) and second.shape == (3, 9) and nothing is None
    alone, _ = ops.chamfer_distance(x, y, batch_reduction=None, point_reduction=None, single_directional=True)
    assert torch.equal(alone, first)
    torch.testing.assert_close((first.mean(1) + second.mean(1)).mean(), ops.chamfer_distance(x, y)[0])


def test_clouds_that_carry_their_normals():
    x, y = drawn(14)[0], drawn(15, p=9)[0]
    normals = drawn(16)[0], drawn(17, p=9)[0]
    sizes = [12, 4, 3], [9, 2, 1]
    got = ops.chamfer_distance(Clouds(x, sizes[0], normals[0]), Clouds(y, sizes[1], normals[1]))
    expected = ops.chamfer_distance(x, y, *map(torch.tensor, sizes), *normals)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("norm", [1, 2])
def test_gradients_of_the_chamfer_distance(norm):
    """To clouds and normals, whose padding holds NaN."""
    x, y = drawn(18, n=2, p=5)[0], drawn(19, n=2, p=4)[0]
    normals = [torch.nn.functional.normalize(drawn(seed, n=2, p=p)[0], dim=2) for seed, p in ((20, 5), (21, 4))]
    sizes = torch.tensor([5, 2]), torch.tensor([4, 3])
    inputs = tuple(value.requires_grad_() for value in (x, y, *normals))

    def distance(a, b, n, m):
        return ops.chamfer_distance(a, b, *sizes, n, m, norm=norm)

    assert torch.autograd.gradcheck(distance, inputs)
    spoiled = [value.detach().clone() for value in inputs]
    for value, size in zip(spoiled, (2, 3, 2, 3), strict=True):
        value[1, size:] = torch.nan
        value.requires_grad_()
    for got, expected in zip(
        torch.autograd.grad(sum(distance(*spoiled)), spoiled),
        torch.autograd.grad(sum(distance(*inputs)), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def test_weights_that_are_all_zero_give_zero():
    x, y = drawn(22)[0].requires_grad_(), drawn(23)[0]
    loss, _ = ops.chamfer_distance(x, y, weights=torch.zeros(3))
    loss.backward()
    assert loss.item() == 0 and (x.grad == 0).all()


# --- bad input -------------------------------------------------------------------------------------------------------
def test_bad_input_is_named():
    x, turn, shift, scale = drawn(24)
    y = drawn(25, p=9)[0]
    spoiled = x.clone()
    spoiled[1, 2, 0] = torch.nan
    for call, argument in (
        (lambda: ops.corresponding_points_alignment(x, y), "Y"),
        (lambda: ops.corresponding_points_alignment(x[0], x), "X"),
        (lambda: ops.corresponding_points_alignment(spoiled, x), "X"),
        (lambda: ops.corresponding_points_alignment(x, spoiled), "Y"),
        (lambda: ops.corresponding_points_alignment(x, x.to(torch.float16)), "Y"),
        (lambda: ops.corresponding_points_alignment(x, x, 3.0), "weights"),
        (lambda: ops.corresponding_points_alignment(x, x, -torch.ones(x.shape[:2])), "weights"),
        (lambda: ops.corresponding_points_alignment(x, x, torch.full(x.shape[:2], torch.nan)), "weights"),
        (lambda: ops.iterative_closest_point(spoiled, y), "X"),
        (lambda: ops.corresponding_points_alignment(x, x, torch.ones(3, 11)), "weights"),
        (lambda: ops.corresponding_points_alignment(x, x, [torch.ones(11)] * 3), "weights"),
        (lambda: ops.corresponding_points_alignment(Clouds(x, [3] * 3), Clouds(x, [4] * 3)), "Y"),
        (lambda: ops.iterative_closest_point(x, y[:2]), "Y"),
        (lambda: ops.iterative_closest_point(x, y, (turn, shift)), "init_transform"),
        (lambda: ops.iterative_closest_point(x, y, (turn, scale, shift)), "init_transform"),
        (lambda: ops.iterative_closest_point(x, y, 3), "init_transform"),
        (lambda: ops.chamfer_distance(x, y[:2]), "y"),
        (lambda: ops.chamfer_distance(x, y, torch.tensor([1, 2])), "x_lengths"),
        (lambda: ops.chamfer_distance(x, y, y_lengths=torch.tensor([1, 2, 10])), "y_lengths"),
        (lambda: ops.chamfer_distance(x, y, x_normals=y, y_normals=y), "x_normals"),
        (lambda: ops.chamfer_distance(x, y, weights=torch.ones(2)), "weights"),
        (lambda: ops.chamfer_distance(x, y, weights=-torch.ones(3)), "weights"),
        (lambda: ops.chamfer_distance(x, y, batch_reduction="max"), "batch_reduction"),
        (lambda: ops.chamfer_distance(x, y, point_reduction="median"), "point_reduction"),
        (lambda: ops.chamfer_distance(x, y, point_reduction=None), "batch_reduction"),
        (lambda: ops.chamfer_distance(x, y, x_normals=x, y_normals=y, point_reduction="max"), "point_reduction"),
        (lambda: ops.chamfer_distance(x, y, norm=3), "norm"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.argument == argument, str(caught.value)


# --- PyTorch3D itself ------------------------------------------------------------------------------------------------
def test_pytorch3d_agrees():
    theirs = pytest.importorskip("pytorch3d.ops", reason="PyTorch3D is not installed")
    from pytorch3d.loss import chamfer_distance

    x, turn, shift, scale = (value.float() for value in drawn(26, p=40))
    y = moved(x, turn, shift, scale) + 0.05 * torch.randn(x.shape)
    weights = (torch.rand(3, 40) > 0.2).float()  # others are squared there in the rotation: docs/pytorch3d.md
    for scaled in (False, True):
        ours = ops.corresponding_points_alignment(x, y, weights, scaled)
        for a, b in zip(ours, theirs.corresponding_points_alignment(x, y, weights, scaled), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    near = x.flip(1) + 0.02 * torch.randn(x.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, other = ops.iterative_closest_point(x, near), theirs.iterative_closest_point(x, near)
    torch.testing.assert_close(ours.Xt, other.Xt, rtol=1e-3, atol=1e-3)
    sizes = torch.tensor([40, 20, 3]), torch.tensor([40, 5, 30])
    torch.testing.assert_close(ops.chamfer_distance(x, y, *sizes)[0], chamfer_distance(x, y, *sizes)[0])
