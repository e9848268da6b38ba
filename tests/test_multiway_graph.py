"""The pose graph: closed forms, other optimisers, invariances, wrong links."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from graphs import MOMENTS, between, information, link, poses
from hypothesis import given, settings
from hypothesis import strategies as st
from registering import any_pose, pose
from scipy.linalg import expm
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from dlc_reg._multiway_graph import Graph, Link
from dlc_reg._multiway_settle import confirmed, groups, settle
from dlc_reg.manifold import SE3

SEEDS = st.integers(0, 2**32 - 1)


def ring(count, skips=(1,)):
    return [(n, (n + skip) % count) for skip in skips for n in range(count)]


def noisy(rng, truth, i, j, size=0.01):
    off = pose(rng.normal(size=3), np.degrees(size) * rng.normal(), size * rng.normal(size=3))
    return off @ between(truth, i, j)


def twisted(xi):
    """exp(xi) by SciPy."""
    matrix = np.zeros((4, 4))
    matrix[:3, :3] = [[0, -xi[2], xi[1]], [xi[2], 0, -xi[0]], [-xi[1], xi[0], 0]]
    matrix[:3, 3] = xi[3:]
    return expm(matrix)


def drawn_edges(rng, count, more):
    """A random spanning tree and `more` other pairs, in random directions."""
    edges = [(n, int(rng.integers(n))) for n in range(1, count)]
    rest = [pair for pair in combinations(range(count), 2) if pair not in edges and pair[::-1] not in edges]
    edges += [rest[n] for n in rng.permutation(len(rest))[:more]]
    return [edge if rng.random() < 0.5 else edge[::-1] for edge in edges]


# --- the minimum -----------------------------------------------------------------------------------------------------
@settings(max_examples=25)
@given(SEEDS, st.integers(2, 9), st.integers(0, 10))
def test_exact_links_give_exact_poses(seed, count, more):
    rng = np.random.default_rng(seed)
    truth = poses(rng, count, shift=3.0)
    links = [link(rng, truth, *edge) for edge in drawn_edges(rng, count, more)]
    found, holds, displacements = settle(count, links)
    np.testing.assert_allclose(found, truth, atol=1e-9)
    assert holds.all() and displacements.max() < 1e-9


@pytest.mark.parametrize("count", [3, 4])
def test_the_minimum_is_scipys(count):
    """Of the same sum of squares, written with SciPy's rotations alone, on links that do not agree."""
    rng = np.random.default_rng(count)
    truth = poses(rng, count)
    links = [link(rng, truth, i, j, noisy(rng, truth, i, j)) for i, j in combinations(range(count), 2)]
    graph = Graph(count, links)
    found = graph.minimise(torch.from_numpy(truth), np.ones(len(links))).numpy()

    def residuals(x):
        at = [np.eye(4)] + [twisted(xi) @ start for xi, start in zip(x.reshape(-1, 6), truth[1:], strict=True)]
        out = []
        for one in links:
            shift = np.eye(4)
            shift[:3, 3] = one.pivot
            off = np.linalg.inv(shift) @ between(at, one.source, one.target) @ np.linalg.inv(one.pose) @ shift
            turn = Rotation.from_matrix(off[:3, :3]).as_rotvec()
            w = np.cross(np.eye(3), turn)  # w p = turn x p
            integral = sum(np.linalg.matrix_power(w, n) / np.prod(np.arange(1, n + 2)) for n in range(12))
            xi = np.r_[turn, np.linalg.solve(integral, off[:3, 3])]
            out.append(np.linalg.cholesky(one.information).T @ xi)
        return np.concatenate(out)

    best = least_squares(residuals, np.zeros(6 * (count - 1)), xtol=1e-15, ftol=1e-15, gtol=1e-15)
    value = float(graph.value(torch.from_numpy(found), torch.ones(len(links), dtype=torch.float64)))
    assert value == pytest.approx(best.cost, rel=1e-9)
    theirs = np.array([twisted(xi) @ start for xi, start in zip(best.x.reshape(-1, 6), truth[1:], strict=True)])
    np.testing.assert_allclose(found[1:], theirs, atol=1e-6)


@settings(max_examples=25)
@given(SEEDS)
def test_derivatives(seed):
    """Of links that are anywhere, half a turn off too, against differences of the value."""
    rng = np.random.default_rng(seed)
    truth = poses(rng, 3)
    links = [link(rng, truth, i, j, any_pose(rng)) for i, j in ((1, 0), (1, 2), (0, 2))]
    graph, weights = Graph(3, links), torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    omega = torch.from_numpy(truth)
    _, gradient, record = graph.linearize(omega, weights)
    assert float(record["value"]) == pytest.approx(float(graph.value(omega, weights)), rel=1e-14)

    def value(xi):
        moved = SE3().retract(omega[1:], torch.from_numpy(xi.reshape(2, 6)))
        return float(graph.value(torch.cat([omega[:1], moved]), weights))

    steps = 1e-6 * np.eye(12)
    slopes = [(value(step) - value(-step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(gradient.numpy(), slopes, atol=1e-5 * max(1.0, abs(gradient).max()))


def test_open3d_agrees():
    """Its global optimisation on the same graph, whose links disagree a little: equal to second order.

    Open3D's residual is an update on the right, in the source's frame, so that it wants the information carried there.
    """
    o3d = pytest.importorskip("open3d")
    reg = o3d.pipelines.registration
    rng = np.random.default_rng(5)
    count, size = 6, 1e-3
    truth = poses(rng, count)
    edges = list(combinations(range(count), 2))
    links, theirs = [], reg.PoseGraph()
    for node in truth:
        theirs.nodes.append(reg.PoseGraphNode(node))
    for i, j in edges:
        points = rng.normal(size=(50, 3))  # both have to weigh the links by the same point-to-point information
        crosses = np.concatenate([np.hstack([-np.cross(np.eye(3), p), np.eye(3)]) for p in points])
        made = Link(i, j, noisy(rng, truth, i, j, size), crosses.T @ crosses, np.zeros(3), MOMENTS, 0.05, True)
        links.append(made)
        turn, shift = made.pose[:3, :3], made.pose[:3, 3]
        carry = np.block([[turn, np.zeros((3, 3))], [np.cross(np.eye(3), shift) @ turn, turn]])
        theirs.edges.append(reg.PoseGraphEdge(i, j, made.pose, carry.T @ made.information @ carry, uncertain=False))
    with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
        reg.global_optimization(
            theirs,
            reg.GlobalOptimizationLevenbergMarquardt(),
            reg.GlobalOptimizationConvergenceCriteria(),
            reg.GlobalOptimizationOption(max_correspondence_distance=1.0, reference_node=0),
        )
    found, holds, _ = settle(count, links)
    assert holds.all()
    expected = np.array([np.linalg.inv(theirs.nodes[0].pose) @ node.pose for node in theirs.nodes])
    moved = np.abs(found - truth).max()
    assert np.abs(found - expected).max() < 0.05 * moved, (np.abs(found - expected).max(), moved)


@settings(max_examples=25)
@given(SEEDS, st.integers(3, 7))
def test_the_order_of_the_clouds_changes_the_frame_alone(seed, count):
    rng = np.random.default_rng(seed)
    truth = poses(rng, count)
    edges = drawn_edges(rng, count, 5)
    links = [link(rng, truth, i, j, noisy(rng, truth, i, j, 1e-3)) for i, j in edges]
    place = rng.permutation(count)  # cloud n becomes the place[n]-th
    renamed = [
        replace(one, source=int(place[one.source]), target=int(place[one.target]))
        for one in (links[n] for n in rng.permutation(len(links)))
    ]
    one, other = settle(count, links)[0], settle(count, renamed)[0][place]
    np.testing.assert_allclose(np.linalg.inv(other[0]) @ other, one, atol=1e-7)


def test_what_a_link_does_not_determine_it_has_no_say_in():
    """A link that knows nothing of x is a metre wrong in it; the others decide."""
    rng = np.random.default_rng(0)
    truth = np.tile(np.eye(4), (3, 1, 1))
    truth[1, 0, 3], truth[2, 0, 3] = 1.0, 2.0
    blind = between(truth, 2, 0)
    blind[0, 3] += 1.0
    links = [link(rng, truth, 1, 0, tolerance=5.0), link(rng, truth, 2, 1, tolerance=5.0)]
    links.append(Link(2, 0, blind, np.diag([1.0, 1, 1, 0, 1, 1]), np.zeros(3), MOMENTS, 5.0, True))
    found, holds, displacements = settle(3, links)
    np.testing.assert_allclose(found, truth, atol=1e-9)
    assert holds.all() and displacements[2] == pytest.approx(1.0)


# --- wrong links -----------------------------------------------------------------------------------------------------
@settings(max_examples=25)
@given(SEEDS, st.integers(4, 7))
def test_one_grossly_wrong_link_among_good_ones_is_rejected(seed, count):
    """Whichever it is, trusted like the others, or more."""
    rng = np.random.default_rng(seed)
    truth = poses(rng, count)
    edges = list(combinations(range(count), 2))
    bad = int(rng.integers(len(edges)))
    off = pose(rng.normal(size=3), rng.uniform(60, 180), rng.normal(size=3))
    links = [
        link(rng, truth, *edge, off @ between(truth, *edge) if n == bad else None, trust=0.9 + 0.09 * (n == bad))
        for n, edge in enumerate(edges)
    ]
    found, holds, displacements = settle(count, links)
    np.testing.assert_allclose(found, truth, atol=1e-9)
    assert not holds[bad] and holds.sum() == len(edges) - 1
    assert displacements[bad] > 0.3 and np.delete(displacements, bad).max() < 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_a_fifth_of_the_links_wrong(seed):
    rng = np.random.default_rng(seed)
    count = 10
    truth = poses(rng, count)
    edges = list(combinations(range(count), 2))
    bad = set(rng.permutation(len(edges))[:9].tolist())
    links = [
        link(rng, truth, *e, any_pose(rng) if n in bad else noisy(rng, truth, *e, 1e-3)) for n, e in enumerate(edges)
    ]
    found, holds, _ = settle(count, links)
    assert set(np.flatnonzero(~holds)) == bad
    np.testing.assert_allclose(found, truth, atol=5e-3)


@pytest.mark.parametrize("seed", range(5))
def test_a_wrong_link_where_there_are_no_triangles(seed):
    """A grid of four by four that is closed both ways, of loops of four links; the wrong one is trusted most."""
    rng = np.random.default_rng(seed)
    count = 16
    truth = poses(rng, count)
    edges = [(n, (n + 4) % 16) for n in range(16)] + [(n, n - n % 4 + (n + 1) % 4) for n in range(16)]
    bad = edges[int(rng.integers(len(edges)))]
    links = [link(rng, truth, *e, any_pose(rng) if e == bad else None, trust=0.99 if e == bad else 0.9) for e in edges]
    found, holds, _ = settle(count, links)
    np.testing.assert_allclose(found, truth, atol=1e-9)
    assert [e for e, ok in zip(edges, holds, strict=True) if not ok] == [bad]


def test_a_tenth_of_the_links_of_a_long_walk_wrong():
    """Two rounds of a circle in 60 steps: neighbours, and the second round's meetings with the first."""
    rng = np.random.default_rng(0)
    count, half = 60, 30
    angles = 4 * np.pi * np.arange(count) / count
    truth = np.array([pose([0, 0, 1], np.degrees(a), [5 * np.cos(a), 5 * np.sin(a), 0]) for a in angles])
    truth = np.linalg.inv(truth[0]) @ truth
    edges = [(n + skip, n) for skip in (1, 2) for n in range(count - skip)]
    edges += [(n + half + skip, n) for n in range(half) for skip in (-1, 0, 1) if n + half + skip < count]
    bad = set(rng.permutation(len(edges))[: len(edges) // 10].tolist())
    links = [
        link(rng, truth, *e, any_pose(rng) if n in bad else noisy(rng, truth, *e, 3e-3)) for n, e in enumerate(edges)
    ]
    found, holds, _ = settle(count, links)
    assert set(np.flatnonzero(~holds)) == bad
    assert np.linalg.norm((found - truth)[:, :3, 3], axis=1).max() < 0.1


@pytest.mark.parametrize("seed", range(5))
def test_a_contradiction_that_nothing_decides_loses_no_cloud(seed):
    """Two links lead to each of a ring's clouds: one is given up, and the others stay as they were measured."""
    rng = np.random.default_rng(seed)
    truth = poses(rng, 5)
    links = [link(rng, truth, i, j, any_pose(rng) if i == 2 else None) for i, j in ring(5)]
    found, holds, _ = settle(5, links)
    assert np.isfinite(found).all() and holds.sum() == 4
    for one, ok in zip(links, holds, strict=True):
        gap = np.abs(between(found, one.source, one.target) - one.pose).max()
        assert gap < 1e-9 if ok else gap > 0.1


def test_which_links_are_confirmed_by_the_others():
    rng = np.random.default_rng(6)
    truth = poses(rng, 4)
    circle = [link(rng, truth, *edge) for edge in ring(4)]
    assert not confirmed(4, circle[:3], circle[3])  # one chain says so, and it may be wrong itself
    assert confirmed(4, circle, link(rng, truth, 0, 2))  # two chains that have no link in common
    assert not confirmed(4, [*circle[:2], link(rng, truth, 0, 2)], circle[3])  # one link leads to the fourth cloud


def test_a_long_ring_that_drifts_is_closed():
    """The chain's end is many tolerances off before the loop is closed, and the closing link is right all the same."""
    rng = np.random.default_rng(1)
    count = 60
    angles = 2 * np.pi * np.arange(count) / count
    truth = np.array([pose([0, 0, 1], np.degrees(a), [5 * np.cos(a), 5 * np.sin(a), 0]) for a in angles])
    truth = np.linalg.inv(truth[0]) @ truth
    links = [link(rng, truth, i, j, noisy(rng, truth, i, j, 0.01)) for i, j in ring(count)]
    at = np.eye(4)
    for one in links[:-1]:
        at = at @ np.linalg.inv(one.pose)
    drift = np.linalg.norm((at @ np.linalg.inv(truth[-1]))[:3, 3])
    found, holds, displacements = settle(count, links)
    assert drift > 4 * links[0].tolerance and holds.all() and displacements.max() < 0.5 * links[0].tolerance
    middles, chained = found[:, :3, 3], drift
    assert np.linalg.norm(middles - truth[:, :3, 3], axis=1)[-1] < 0.2 * chained


def test_links_that_are_not_trusted_connect_nothing_but_may_help():
    rng = np.random.default_rng(2)
    truth = poses(rng, 5)
    links = [link(rng, truth, 1, 0), link(rng, truth, 2, 1)]
    links.append(link(rng, truth, 2, 0, trusted=False))  # agrees
    links.append(link(rng, truth, 3, 0, trusted=False))  # alone
    links.append(link(rng, truth, 4, 3))  # trusted, but connected with nothing that is
    found, holds, displacements = settle(5, links)
    np.testing.assert_allclose(found[:3], truth[:3], atol=1e-9)
    assert np.isnan(found[3:]).all() and holds.tolist() == [True, True, True, False, False]
    assert np.isnan(displacements[3:]).all()


def test_a_wrong_untrusted_link_never_displaces_a_trusted_one():
    rng = np.random.default_rng(3)
    truth = poses(rng, 3)
    links = [link(rng, truth, 1, 0), link(rng, truth, 2, 1)]
    links.append(link(rng, truth, 2, 0, pose([0, 0, 1], 5, [0.1, 0, 0]) @ between(truth, 2, 0), trusted=False))
    found, holds, _ = settle(3, links)
    np.testing.assert_allclose(found, truth, atol=1e-9)
    assert holds.tolist() == [True, True, False]


def test_groups():
    rng = np.random.default_rng(4)
    truth = poses(rng, 6)
    assert groups(6, [link(rng, truth, 4, 0), link(rng, truth, 2, 5)]) == [[0, 4], [1], [2, 5], [3]]
    found, holds, displacements = settle(3, [])
    np.testing.assert_array_equal(found[0], np.eye(4))
    assert np.isnan(found[1:]).all() and not len(holds) and not len(displacements)


def test_information_is_what_it_says():
    assert np.linalg.eigvalsh(information(np.random.default_rng(0))).min() == pytest.approx(0.3)
