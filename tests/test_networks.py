"""Encoders of point clouds: neighbourhoods, edges and angles worked by hand, and what must not change a feature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from dlc_reg.networks.dgcnn import DGCNN, edges
from dlc_reg.networks.local import LocalEncoder, point_pair_features
from dlc_reg.networks.neighbours import Neighbourhoods, gather, masked_max, neighbourhoods
from dlc_reg.networks.pointnet import PointNet
from dlc_reg.networks.transformer import Attention, CoAttention

ENCODERS = {
    "dgcnn": lambda: DGCNN((8, 12), 16, neighbours=6),
    "local": lambda: LocalEncoder((8, 12), (12,), 16, neighbours=8, radius=0.6),
    "local without position": lambda: LocalEncoder((8, 12), (12,), 16, neighbours=8, radius=0.6, position=False),
}


@pytest.fixture(autouse=True)
def _quick(one_thread_for_torch):
    torch.manual_seed(0)


def cloud(batch: int = 2, count: int = 40, seed: int = 0) -> torch.Tensor:
    """On a bumpy sphere, about two wide."""
    d = torch.randn(batch, count, 3, generator=torch.Generator().manual_seed(seed))
    d = d / d.norm(dim=-1, keepdim=True)
    return d * (1 + 0.3 * torch.sin(3 * d[..., :1]) * d[..., 1:2])


def moved(points: torch.Tensor) -> torch.Tensor:
    rotation = torch.from_numpy(Rotation.from_rotvec([0.7, -1.1, 0.4]).as_matrix()).to(points)
    return points @ rotation.T + torch.tensor([0.3, -0.2, 0.5])


def padded(points: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """With `count` more points that are anything, among the others; and the mask."""
    batch, real = points.shape[:2]
    mask = torch.ones(real + count, dtype=torch.bool)
    mask[torch.randperm(real + count, generator=torch.Generator().manual_seed(5))[:count]] = False
    more = points[:, :1].repeat(1, real + count, 1)  # a good neighbour, if it were looked at
    more[:, (~mask).nonzero()[::2, 0]] = math.nan
    more[:, mask] = points
    return more, mask.expand(batch, -1)


# --- neighbourhoods --------------------------------------------------------------------------------------------------
def test_neighbours_and_radius_are_scipys():
    points = cloud()
    found = neighbourhoods(points, None, 7, radius=0.45, itself=False)
    some, none = False, False
    for b, p in enumerate(points.numpy()):
        for i, row in enumerate(p):
            within = set(cKDTree(p).query_ball_point(row, 0.45)) - {i}
            nearest = sorted(within, key=lambda j, row=row, p=p: np.linalg.norm(p[j] - row))[:7]
            assert found.rows[b, i][found.real[b, i]].tolist() == nearest
            assert found.rows[b, i][~found.real[b, i]].tolist() == [i] * (7 - len(nearest))
            some, none = some or bool(nearest), none or len(nearest) < 7
    assert some and none


def test_a_cloud_smaller_than_its_neighbourhoods_has_all_of_it():
    found = neighbourhoods(cloud(1, 5), None, 8, normals_from=20)
    assert sorted(found.rows[0, 2, :5].tolist()) == [0, 1, 2, 3, 4] and found.rows[0, 2, 0] == 2
    assert found.real[0].sum(-1).tolist() == [5] * 5
    torch.testing.assert_close(found.normals.norm(dim=-1), torch.ones(1, 5))


def test_gather_and_masked_max_are_loops():
    values, rows = torch.randn(2, 6, 3), torch.randint(6, (2, 4, 5))
    real = torch.rand(2, 4, 5) < 0.5
    real[0, 1] = False
    taken = gather(values, rows)
    best = masked_max(taken, real, 2)
    for b in range(2):
        for i in range(4):
            inside = [values[b, rows[b, i, k]] for k in range(5) if real[b, i, k]]
            expected = torch.stack(inside).amax(0) if inside else torch.zeros(3)
            torch.testing.assert_close(best[b, i], expected)


# --- what goes into the encoders -------------------------------------------------------------------------------------
def test_dgcnn_edges_by_hand():
    """Points at 0, 1, 3 and 7 on a line; each with itself and its nearest."""
    points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [3, 0, 0], [7, 0, 0]]])
    found = edges(points, neighbourhoods(points, None, 2))
    x = [[[0, 0], [0, 1]], [[1, 0], [1, -1]], [[3, 0], [3, -2]], [[7, 0], [7, -4]]]  # of the point, and to the other
    expected = torch.zeros(1, 4, 2, 6)
    expected[0, :, :, 0], expected[0, :, :, 3] = torch.tensor(x, dtype=torch.float32).unbind(-1)
    torch.testing.assert_close(found, expected)


def test_dgcnn_is_its_formula():
    """h1 = max_k f1(x_i, x_k - x_i), h2 = max_k f2(f1(...)), out = W [h1, h2] + b, one point and edge at a time."""
    net, points = DGCNN((4, 5), 6, neighbours=3), cloud(1, 12)
    f1, f2 = net.edge
    tree = cKDTree(points[0].numpy())
    for i in (0, 7):
        x = points[0, i]
        first = [f1(torch.cat([x, points[0, k] - x])) for k in tree.query(x.numpy(), 3)[1]]
        pooled = torch.cat([torch.stack(first).amax(0), torch.stack([f2(e) for e in first]).amax(0)])
        torch.testing.assert_close(net(points)[0, i], net.merge.weight @ pooled + net.merge.bias)


def test_point_pair_features_by_hand():
    """45, 45 and 90 degrees and the root of 2; then 180, 120 and 60 degrees and 2."""
    up = torch.tensor([0.0, 0, 1])
    first = point_pair_features(torch.tensor([1.0, 0, 1]), up, torch.tensor([1.0, 0, 0]))
    torch.testing.assert_close(first, torch.tensor([math.pi / 4, math.pi / 4, math.pi / 2, 2**0.5]))
    leaning = torch.tensor([3**0.5 / 2, 0, 0.5])
    second = point_pair_features(torch.tensor([0.0, 0, -2]), up, leaning)
    torch.testing.assert_close(second, torch.tensor([math.pi, 2 * math.pi / 3, math.pi / 3, 2]))


def test_small_angles_are_exact():
    """The arc cosine of a float32 product knows nothing below 3e-4 rad."""
    angle = 1e-5
    offset = torch.tensor([math.sin(angle), 0, math.cos(angle)])
    found = point_pair_features(offset, torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 0, 1]))
    assert found[0].item() == pytest.approx(angle, rel=1e-5)


# --- symmetries ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ENCODERS)
def test_the_order_of_points_only_orders_their_features(name):
    net, points, order = ENCODERS[name](), cloud(), torch.randperm(40)
    torch.testing.assert_close(net(points[:, order]), net(points)[:, order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_says_nothing(name):
    net, points = ENCODERS[name](), cloud()
    more, mask = padded(points, 9)
    torch.testing.assert_close(net(more, mask)[mask].reshape(2, 40, -1), net(points), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_batch_is_its_clouds_one_by_one_and_ragged_clouds_too(name):
    net, a, b = ENCODERS[name](), cloud(1, 40), cloud(1, 30, seed=1)
    both = torch.cat([a, torch.cat([b, torch.full((1, 10, 3), math.nan)], 1)])
    mask = torch.arange(40) < torch.tensor([[40], [30]])
    together = net(both, mask)
    torch.testing.assert_close(together[0], net(a)[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together[1, :30], net(b)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_leaves_gradients_finite(name):
    net = ENCODERS[name]()
    more, mask = padded(cloud(), 9)
    net(more, mask)[mask].square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in net.parameters())


def test_without_position_a_rigid_motion_changes_nothing_and_with_it_it_does():
    points = cloud()
    for position, change in ((False, (0, 1e-4)), (True, (1e-2, 2))):
        net = LocalEncoder((8, 12), (12,), 16, neighbours=8, radius=0.6, position=position)
        difference = (net(moved(points)) - net(points)).abs().max().item()
        assert change[0] <= difference <= change[1]


def test_local_features_look_no_further_than_the_radius():
    net, points = LocalEncoder((8, 12), (12,), 16, neighbours=30, radius=0.5, position=False), cloud(1, 60)
    far = (points[0] - points[0, 0]).norm(dim=-1) > 1.6  # beyond the radius of a neighbour's normal, too
    changed = points.clone()
    changed[0, far] = changed[0, far] * 1.1
    before, after = net(points)[0], net(changed)[0]
    assert far.any() and (before[far] - after[far]).abs().max() > 1e-3
    torch.testing.assert_close(before[0], after[0])


# --- PointNet --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pool", ["max", "mean"])
def test_pointnet_does_not_know_order_or_padding(pool):
    net, points = PointNet((8, 12, 16), pool), cloud()
    more, mask = padded(points, 9)
    more = torch.where(mask[..., None], more, 7.0)
    torch.testing.assert_close(net(points[:, torch.randperm(40)]), net(points), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net(more, mask), net(points), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_pointnets_derivative_is_that_of_finite_differences(pool):
    """Of all points moving by exp of a twist, which SciPy turns."""
    net, points = PointNet((8, 12, 16), pool).double(), cloud().double()
    mask = torch.arange(40) < torch.tensor([[40], [25]])
    feature, jacobian = net.with_jacobian(points, mask)
    torch.testing.assert_close(feature, net(points, mask))
    step = 1e-6
    for axis in range(6):
        sides = []
        for sign in (1, -1):
            twist = np.zeros(6)
            twist[axis] = sign * step
            turned = points @ torch.from_numpy(Rotation.from_rotvec(twist[:3]).as_matrix()).T
            sides.append(net(turned + torch.from_numpy(twist[3:]), mask))
        slope = (sides[0] - sides[1]) / (2 * step)
        assert slope.abs().max() > 1e-3
        torch.testing.assert_close(jacobian[..., axis], slope, rtol=1e-6, atol=1e-8)


# --- attention -------------------------------------------------------------------------------------------------------
def test_attention_is_its_formula():
    """softmax(Q K^T / sqrt(d)) V of each head, joined and merged (Vaswani et al., equation 1)."""
    net, x, y = Attention(8, 2), torch.randn(1, 5, 8), torch.randn(1, 6, 8)
    q = net.query(net.norm(x))[0]
    k, v = net.key_value(y)[0].chunk(2, dim=-1)
    heads = [((q[:, h] @ k[:, h].T) / 2).softmax(-1) @ v[:, h] for h in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(net(x, y, None)[0], net.merge(torch.cat(heads, dim=-1)), rtol=1e-5, atol=1e-6)


def test_co_attention_looks_at_real_points_of_both_clouds_in_any_order():
    net, x, y = CoAttention(16, 4, 32), torch.randn(2, 10, 16), torch.randn(2, 12, 16)
    a, b = net(x, y, None, None)
    order = torch.randperm(12)
    c, d = net(x, y[:, order], None, None)
    torch.testing.assert_close(c, a, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(d, b[:, order], rtol=1e-5, atol=1e-5)
    other, _ = net(x, y + 1.0 * torch.randn(2, 1, 16), None, None)
    assert (other - a).abs().max() > 1e-3
    mask = torch.arange(17) < 12
    c, d = net(x, torch.cat([y, 9 + torch.randn(2, 5, 16)], 1), None, mask.expand(2, -1))
    torch.testing.assert_close(c, a, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(d[:, :12], b, rtol=1e-5, atol=1e-5)


def test_each_cloud_is_treated_as_the_other():
    net, x, y = CoAttention(16, 4, 32), torch.randn(2, 10, 16), torch.randn(2, 12, 16)
    a, b = net(x, y, None, None)
    d, c = net(y, x, None, None)
    torch.testing.assert_close((a, b), (c, d))


def test_neighbourhoods_need_no_gradient():
    points = cloud().requires_grad_()
    found = neighbourhoods(points, None, 4, normals_from=10)
    assert isinstance(found, Neighbourhoods) and not found.normals.requires_grad
    DGCNN((4,), 4, 4)(points).sum().backward()
    assert torch.isfinite(points.grad).all() and points.grad.any()
