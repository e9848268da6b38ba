"""Shapes, small networks and a short recipe for the tests of training and evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dlc_reg.protocols import Shapes
from dlc_reg.registration.assignment import Assignment, SoftAssignment
from dlc_reg.registration.learned.frame import RegistrationNetwork
from dlc_reg.training import Recipe, make_recipe

POINTER = {"widths": (8, 16), "out": 16, "neighbours": 8, "heads": 2, "hidden": 16}
SMALL = {
    "pointnetlk": {"widths": (16, 32, 64)},
    "dcp": POINTER,
    "prnet": {**POINTER, "keypoints": 24, "temperature_widths": (8,)},
    "rpmnet": {
        "widths": (8, 16), "head": (16,), "out": 16, "neighbours": 12, "radius": 0.6,
        "parameter_widths": (8, 16), "parameter_head": (8,),
    },
    "softicp": {
        "width": 16, "out": 16, "heads": 2, "blocks": 1, "anchors": 16, "hypotheses": 0, "turns": 0,  # one start
    },
    "ranked": {"width": 8, "turns": 60, "refined": 8, "points": 32},
}  # fmt: skip


def block(rng: np.random.Generator, count: int, lengths: Any = (1.0, 0.7, 0.4), notch: Any = (0.45, 0.5, 0.6)) -> Any:
    """(count, 3) on the surface of a box with one corner cut out, centred, in the unit sphere: no symmetry."""
    size, cut = np.array(lengths), np.array(lengths) * np.array(notch)
    points = rng.random((6 * count, 3)) * size
    side, far = rng.integers(3, size=len(points)), rng.integers(2, size=len(points))
    points[np.arange(len(points)), side] = far * size[side]
    inside = (points > size - cut).all(1)  # of the corner: pushed onto its three inner faces
    points[inside, side[inside]] -= cut[side[inside]]
    points = points[rng.permutation(len(points))[:count]]
    points = points - size / 2
    return points / np.linalg.norm(size / 2)


def blocks(count: int = 12, points: int = 256, seed: int = 0) -> Shapes:
    """Notched boxes of random sizes; of six, four are for training, one for validation and one for the test."""
    rng = np.random.default_rng(seed)
    clouds = [block(rng, points, rng.uniform(0.4, 1, 3), rng.uniform(0.3, 0.7, 3)) for _ in range(count)]
    split = np.array(["train", "train", "val", "train", "test", "train"])[np.arange(count) % 6]
    category = np.array(["brick", "slab"])[np.arange(count) % 2]
    return Shapes(np.stack(clouds).astype(np.float32), None, category, np.array([f"{i}" for i in range(count)]), split)


class Tiny(RegistrationNetwork):
    """Soft assignment by a feature of each point's distance to its cloud's centre."""

    iterations = 5

    def __init__(self, width: int = 2, beta: float = 3.0) -> None:
        super().__init__()
        self.feature = nn.Linear(1, width)
        self.log_beta, self.outlier = nn.Parameter(torch.tensor(beta)), nn.Parameter(torch.tensor(-4.0))
        self.energy = SoftAssignment()

    def encode(
        self, source: Tensor, target: Tensor, source_mask: Tensor | None = None, target_mask: Tensor | None = None
    ) -> Assignment:
        a, b = (self._features(c) for c in (source, target))
        affinity = -(a[:, :, None] - b[:, None]).square().sum(-1)
        ones = source.new_ones(len(source))
        weights = [c.new_full(c.shape[:2], 1 / c.shape[1]) for c in (source, target)]
        return Assignment(source, target, affinity, self.log_beta.exp() * ones, self.outlier * ones, *weights)

    def _features(self, cloud: Tensor) -> Tensor:
        radius = (cloud - cloud.mean(1, keepdim=True)).norm(dim=-1, keepdim=True)
        return torch.sin(self.feature(radius * 3))

    def value(self, omega: Tensor, encoded: Assignment) -> Tensor:
        return self.energy.value(omega, encoded)

    def step(self, omega: Tensor, encoded: Assignment) -> Tensor:
        return self.energy.step(omega, encoded)

    def matching_loss(self, encoded: Assignment, truth: Tensor) -> Tensor:
        return self.energy.value(truth, encoded) + 1


def tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny()


TABLE = {
    "dlc": "energy",
    "data": {"protocol": "full-0-45", "points": 48},
    "optimizer": {"steps": 12, "batch": 4, "rate": 0.01, "warm_up": 3},
    "loss": {"contrastive": 1.0, "unrolled": 1.0, "matching": 0.1, "start": "truth"},
    "validation": {"every": 6, "pairs": 6},
}


def recipe(**changes: dict) -> Recipe:
    return make_recipe(
        {**TABLE, **{k: {**TABLE.get(k, {}), **v} if isinstance(v, dict) else v for k, v in changes.items()}}
    )
