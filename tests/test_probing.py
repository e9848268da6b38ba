"""Evidence from about the answer: the landscape, the way back, the least held motion."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from registering import can, plane, thin
from scipy.spatial import cKDTree

import dlc_reg
from dlc_reg._register_verdict import _remarks
from dlc_reg.geometry import PointCloud, localize
from dlc_reg.registration import probing
from dlc_reg.registration.constraint import constrained
from dlc_reg.registration.freedom import free_motions, weakest_motion
from dlc_reg.registration.global_search import GlobalSearch
from dlc_reg.registration.probing import backward, landscape
from dlc_reg.registration.verification import Evidence


def ridges(rng, count, period):
    """A square with ridges along y, `period` apart, under one broad hill: a shift by a period nearly fits again."""
    x, y = rng.uniform(-1, 1, (2, count))
    return np.c_[x, y, 0.06 * np.cos(2 * math.pi * x / period) + 0.1 * np.exp(-2 * x**2 - 3 * y**2)]


def searched(source, target, voxel, **options):
    return GlobalSearch.prepare(PointCloud.from_any(source), PointCloud.from_any(target), voxel, **options)


def local(search_clouds, pose=None):
    source, target = (PointCloud.from_any(cloud) for cloud in search_clouds)
    return torch.from_numpy(localize(np.eye(4) if pose is None else pose, source, target))


def test_the_landscape_of_ridges_has_other_optima(rng):
    """Ridges five voxels apart, so that rays across them pass over the next; a hill alone has none."""
    clouds = [ridges(rng, 6000, 0.25) for _ in range(2)]
    hill = [np.c_[p[:, :2], 0.3 * np.exp(-2 * p[:, 0] ** 2 - 3 * p[:, 1] ** 2)] for p in clouds]
    rough, smooth = (landscape(searched(*pair, 0.05), local(pair)) for pair in (clouds, hill))
    assert rough > 0.1 and smooth < 0.05, (rough, smooth)


def test_the_landscape_is_that_of_the_distances(rng, monkeypatch):
    """A ray along x, beside the truncated distances by SciPy: the rise from the valley is where theirs is."""
    source, target = (ridges(rng, 6000, 0.25) for _ in range(2))
    search = searched(source, target, 0.05)
    monkeypatch.setattr(probing, "_directions", lambda _: torch.eye(6, dtype=torch.float64)[[3] * probing.RAYS])
    found = landscape(search, local((source, target)))
    tree, limit = cKDTree(target), 2 * 0.05
    scores = []
    for step in range(probing.STEPS + 1):
        distances = tree.query(source + np.array([0.05 * step, 0, 0]))[0]
        scores.append(np.clip(1 - (distances / limit) ** 2, 0, None).mean())
    again = scores - np.minimum.accumulate(scores)
    assert (again.max() > probing.RISE * scores[0]) == (found == 1.0) and found in (0.0, 1.0)


def test_rays_keep_to_the_permitted_motions(rng):
    source, target = ridges(rng, 3000, 0.25), ridges(rng, 3000, 0.25)
    free, held = searched(source, target, 0.05), searched(source, target, 0.05)
    object.__setattr__(held, "constraint", constrained("yaw+translation", None, None))
    for search, rank in ((free, 6), (held, 4)):
        rays = probing._directions(search)
        assert rays.shape == (probing.RAYS, 6) and np.linalg.matrix_rank(rays) == rank
        assert torch.allclose(rays.norm(dim=1), torch.ones(probing.RAYS, dtype=torch.float64))
        assert torch.equal(rays[: probing.RAYS // 2], -rays[probing.RAYS // 2 :])
    assert (probing._directions(held)[:, :2] == 0).all()


def test_the_way_back_agrees_where_the_pose_is_right(bunny_pair, rng):
    a, b, truth = thin(bunny_pair.source, 4000), thin(bunny_pair.target, 4000), bunny_pair.T_target_source
    search = searched(a, b, 0.005)
    assert backward(search, local((a, b), truth)) < 0.3
    wrong = truth.copy()
    wrong[:3, :3] = wrong[:3, :3] @ np.diag([-1.0, 1, -1])
    wrong[:3, 3] = b.mean(0) - wrong[:3, :3] @ a.mean(0)
    assert backward(search, local((a, b), wrong)) > 0.5


@pytest.mark.parametrize(("shape", "text"), [(plane, "slides along"), (can, "spins about the axis")])
def test_the_weakest_motion_is_the_free_one(rng, shape, text):
    cloud = PointCloud.from_any(shape(rng, 2000)).with_normals(20)
    points, normals = cloud.points.double().numpy(), cloud.normals.double().numpy()
    weakest, named = weakest_motion(points, normals)
    assert weakest < 4e-3
    if shape is can:  # one motion is free; of a plane's three the least is any
        assert [motion.text for motion in free_motions(points, normals)] == [named]
        assert named.startswith(text)
    assert weakest_motion(points[:5], normals[:5]) == (0.0, "")


def test_register_reports_it(bunny_pair):
    r = dlc_reg.register(thin(bunny_pair.source, 2000), thin(bunny_pair.target, 2000))
    evidence = r.settings["evidence"]
    assert evidence["landscape"] <= 0.1 and evidence["backward"] < 1
    assert 1 <= evidence["starts"] <= r.settings["hypotheses"] and evidence["weakest_motion"]
    assert not any("unimodal" in reason or "other way round" in reason for reason in r.verdict_reasons)


def test_what_speaks_against_a_pose_is_said():
    good = Evidence(gap=2.0, overlap=0.7, rival_overlap=0.2, matches=9.0, violations=-1.0, closeness=0.6, weakest=0.1)
    assert _remarks(good) == []
    assert _remarks(replace(good, landscape=0.25, backward=2.34)) == [
        "the objective is not unimodal along 25% of the rays about this pose",
        "registering the other way round ends 2.3 voxels away",
    ]
