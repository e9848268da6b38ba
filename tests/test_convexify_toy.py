"""A one-dimensional network whose landscape has a bad minimum: gone after training with the loss, and not without."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from dlc_reg.convexify import ConvexifiedLoss, basin_radius, landscape
from dlc_reg.iterate import Termination, iterate
from dlc_reg.manifold import Euclidean
from dlc_reg.updates import GradientDescent

LINE = Euclidean(1)


class Energy(nn.Module):
    """The energy (*lead, B) of omega (*lead, B, 1) given x (B, 1); the truth is sin x."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))

    def value(self, omega, x):
        lead = omega.shape[: omega.ndim - x.ndim]
        return self.layers(torch.cat([omega, x.expand(*lead, *x.shape)], dim=-1))[..., 0].square()


def train(network: nn.Module, loss_of: Callable, steps: int, seed: int) -> None:
    """`loss_of(x, offsets uniform in [-1, 1], generator)`."""
    optimizer, draws = torch.optim.Adam(network.parameters()), torch.Generator().manual_seed(seed)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(steps):
        x, offset = 2 * torch.rand(2, 64, 1, generator=draws) - 1
        optimizer.zero_grad()
        loss_of(x, offset, draws).backward()
        optimizer.step()
        schedule.step()


def two_wells(network: Energy) -> Callable:
    """Fits a second well, two beyond the truth."""

    def loss(x, offset, draws):
        d = 3 * offset
        wells = (2 * d.square() * ((d - 2).square() + 0.05)).clamp(max=3)[:, 0]
        return (network.value(x.sin() + d, x) - wells).square().mean()

    return loss


def near_the_truth(network: Energy) -> Callable:
    """The task: a bowl within 0.4 of the truth. It sees nothing of what is beyond."""

    def loss(x, offset, draws):
        d = 0.4 * offset
        return (network.value(x.sin() + d, x) - d[:, 0].square()).square().mean()

    return loss


def judge(network: Energy, x: torch.Tensor) -> dict[str, float]:
    """Minima within 3 of the truth, share of descents from 2.2 beyond it that end there, and the basin's radius."""
    sides = torch.tensor([[1.0], [-1.0]])
    seen = landscape(network, LINE, x.sin(), x, directions=sides, extent=3.0, steps=121).values
    line = torch.cat([seen[1].flip(0), seen[0, 1:]])
    minima = (line[1:-1] < line[:-2]) & (line[1:-1] < line[2:])
    ended = iterate(network, GradientDescent(LINE, 0.02), x.sin() + 2.2, x, termination=Termination(500, None)).omega
    options = {"radius": 3.0, "shortest": 0.25, "directions": 20, "generator": torch.Generator().manual_seed(0)}
    return {
        "minima": minima.sum(0).float().mean().item(),
        "reached": ((ended - x.sin()).abs() < 0.3).float().mean().item(),
        "basin": basin_radius(network, LINE, x.sin(), x, **options).item(),
    }


@pytest.fixture(scope="module")
def bad() -> Energy:
    network = Energy()
    train(network, two_wells(network), 500, seed=1)
    return network


X = torch.linspace(-0.9, 0.9, 9)[:, None]


def test_the_bad_minimum_is_there(bad):
    found = judge(bad, X)
    assert found["minima"] >= 2 and found["basin"] < 1.5


def test_the_task_alone_leaves_it(bad):
    network = copy.deepcopy(bad)
    train(network, near_the_truth(network), 300, seed=2)
    found = judge(network, X)
    assert found["minima"] > 1.5 and found["reached"] < 0.2 and found["basin"] < 1.5


def test_with_the_loss_it_is_gone(bad):
    network = copy.deepcopy(bad)
    task, loss = near_the_truth(network), ConvexifiedLoss(network, LINE, radius=3.0, mu=0.5, task_weight=0.0)
    train(network, lambda x, d, draws: task(x, d, draws) + loss(x.sin(), x, generator=draws).total, 300, seed=2)
    found = judge(network, X)
    assert found["minima"] == 1 and found["reached"] == 1 and found["basin"] > 2.5
