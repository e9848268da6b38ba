"""Recurrent cells beside torch's own and with its interface, and energies over a prediction given a last state.

A cell takes (T, B, input_size), or (B, T, input_size) with `batch_first`, and returns the outputs of all steps and the
last state. An energy takes predictions (*lead, B, outputs) and what `prepare` made of states (B, width), once.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlc_reg.errors import InputError


class IndRNN(nn.Module):
    """h_t = relu(W x_t + u * h_{t-1} + b): units that see no other unit's past (Li et al., CVPR 2018).

    `memory`: steps over which a unit may neither vanish nor explode; |u| is held below 2^(1 / memory). Each layer's u
    begins uniform in [0, 1], as the paper has it, and the last layer's near 1. What drives the last layer, which sums
    over the whole sequence, begins uniform in +- 1 / memory: the authors' code has 0.001 for 784 steps.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, batch_first: bool = False, memory: int = 784
    ) -> None:
        super().__init__()
        _at_least_one(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers, memory=memory)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.bound = batch_first, 2 ** (1 / memory)
        sizes = [input_size, *[hidden_size] * (num_layers - 1)]
        linears = [nn.Linear(size, hidden_size) for size in sizes]
        nn.init.uniform_(linears[-1].weight, -1 / memory, 1 / memory)
        nn.init.zeros_(linears[-1].bias)
        self.inputs = nn.ModuleList(linears)
        lowest = [0.0] * (num_layers - 1) + [0.5 ** (1 / memory)]
        self.recurrent = nn.ParameterList(nn.Parameter(torch.empty(hidden_size).uniform_(low, 1)) for low in lowest)

    def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs as `x` is laid out, and the last states (num_layers, B, hidden_size)."""
        x = _time_first(x, self.input_size, self.batch_first)
        ends = []
        for layer, (linear, u) in enumerate(zip(self.inputs, self.recurrent, strict=True)):
            u = u.clamp(-self.bound, self.bound)
            driven = linear(x)
            h = x.new_zeros(x.shape[1], self.hidden_size) if hx is None else hx[layer]
            outputs = []
            for drive in driven.unbind(0):
                h = torch.relu(drive + u * h)
                outputs.append(h)
            x = torch.stack(outputs)
            ends.append(h)
        return x.transpose(0, 1) if self.batch_first else x, torch.stack(ends)


class SBORNN(nn.Module):
    """A step is a gradient step on a lower-level objective over the hidden state (Zhang et al., SBO-RNN, NeurIPS 2021):

        F(h; x) = decay/2 |h|^2 - sum log cosh(U h + W x + b)
        plain       h <- h - rate grad F(h; x)
        heavy_ball  v <- momentum v - rate grad F(h; x),                h <- h + v
        nesterov    v <- momentum v - rate grad F(h + momentum v; x),   h <- h + v

    decay, rate and momentum are learned scalars, from the values given. The paper leaves F open; this one has a
    symmetric Jacobian, and h stays within |U| / decay.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        update: Literal["plain", "heavy_ball", "nesterov"] = "plain",
        batch_first: bool = False,
        rate: float = 0.3,
        decay: float = 0.02,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        _at_least_one(input_size=input_size, hidden_size=hidden_size)
        if update not in ("plain", "heavy_ball", "nesterov"):
            raise InputError("update", repr(update), "'plain', 'heavy_ball' or 'nesterov'")
        if not (rate > 0 and decay > 0 and 0 < momentum < 1):
            raise InputError("rate, decay, momentum", f"{rate}, {decay}, {momentum}", "above 0, momentum below 1")
        self.input_size, self.hidden_size, self.update, self.batch_first = input_size, hidden_size, update, batch_first
        self.drive = nn.Linear(input_size, hidden_size)
        self.weight = nn.Parameter(torch.randn(hidden_size, hidden_size) / (2 * math.sqrt(hidden_size)))
        self.log_rate, self.log_decay = (nn.Parameter(torch.tensor(math.log(v))) for v in (rate, decay))
        self.momentum_logit = nn.Parameter(torch.tensor(math.log(momentum / (1 - momentum))))

    def value(self, h: Tensor, drive: Tensor) -> Tensor:
        """F (...) of states h (..., hidden_size), for drive = W x + b of the same shape."""
        inner = drive + h @ self.weight.T
        log_cosh = inner.abs() + functional.softplus(-2 * inner.abs()) - math.log(2)
        return 0.5 * self.log_decay.exp() * h.square().sum(-1) - log_cosh.sum(-1)

    def gradient(self, h: Tensor, drive: Tensor) -> Tensor:
        """grad F by h."""
        return self.log_decay.exp() * h - torch.tanh(drive + h @ self.weight.T) @ self.weight

    def forward(self, x: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Outputs as `x` is laid out, and the last (h, v), each (1, B, hidden_size), as an LSTM has (h, c)."""
        x = _time_first(x, self.input_size, self.batch_first)
        h, v = (s[0] for s in hx) if hx is not None else (x.new_zeros(x.shape[1], self.hidden_size) for _ in range(2))
        rate, momentum = self.log_rate.exp(), self.momentum_logit.sigmoid()
        outputs = []
        for drive in self.drive(x).unbind(0):
            if self.update == "plain":
                v = -rate * self.gradient(h, drive)
            else:
                ahead = h + momentum * v if self.update == "nesterov" else h
                v = momentum * v - rate * self.gradient(ahead, drive)
            h = h + v
            outputs.append(h)
        stacked = torch.stack(outputs)
        return stacked.transpose(0, 1) if self.batch_first else stacked, (h[None], v[None])


class Prepared(NamedTuple):
    """What a quadratic energy needs: its minimiser and its curvature, (B, outputs) each."""

    minimiser: Tensor
    curvature: Tensor


class Readout(nn.Module):
    """E(omega) = 1/2 |omega - r|^2 with r linear in the state: the plain readout, which one unit step of descent finds.

    Its chord is -lam (1 - lam) |xi|^2 / 2 whatever the weights are: no training of landscapes has anything to do here.
    """

    iterations, rate, sharpness = 1, 1.0, 1.0

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.minimiser = nn.Linear(width, outputs)

    def prepare(self, state: Tensor) -> Prepared:
        minimiser = self.minimiser(state)
        return Prepared(minimiser, torch.ones_like(minimiser))

    def value(self, omega: Tensor, prepared: Prepared) -> Tensor:
        return 0.5 * (prepared.curvature * (omega - prepared.minimiser).square()).sum(-1)


class QuadraticEnergy(Readout):
    """E(omega) = 1/2 sum_k d_k (omega_k - r_k)^2, minimiser r and curvatures d in (0.1, 2) both functions of the state.

    Star-convex about its minimiser for every weight, hence about the truth as far as the minimiser is right.
    """

    iterations, rate, sharpness = 8, 0.5, 10.0

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__(width, outputs)
        self.curvature = nn.Linear(width, outputs)

    def prepare(self, state: Tensor) -> Prepared:
        return Prepared(self.minimiser(state), 0.1 + 1.9 * self.curvature(state).sigmoid())


class MLPEnergy(nn.Module):
    """E(omega) = bowl/2 |omega|^2 + a . softplus(C softplus(A omega + B state)): free, smooth, and bounded below."""

    iterations, rate, sharpness = 8, 0.5, 10.0
    bowl: ClassVar[float] = 0.1

    def __init__(self, width: int, outputs: int, hidden: int = 64) -> None:
        super().__init__()
        _at_least_one(hidden=hidden)
        self.state, self.omega = nn.Linear(width, hidden), nn.Linear(outputs, hidden, bias=False)
        self.inner, self.outer = nn.Linear(hidden, hidden), nn.Linear(hidden, 1, bias=False)

    def prepare(self, state: Tensor) -> Tensor:
        prepared: Tensor = self.state(state)
        return prepared

    def value(self, omega: Tensor, prepared: Tensor) -> Tensor:
        hidden = functional.softplus(self.omega(omega) + prepared)
        network: Tensor = self.outer(functional.softplus(self.inner(hidden)))[..., 0]
        return network + 0.5 * self.bowl * omega.square().sum(-1)


def _time_first(x: Tensor, input_size: int, batch_first: bool) -> Tensor:
    if x.ndim != 3 or x.shape[-1] != input_size or 0 in x.shape:
        wanted = "(B, T" if batch_first else "(T, B"
        raise InputError("x", f"shape {tuple(x.shape)}", f"{wanted}, {input_size}), nothing of it zero")
    return x.transpose(0, 1) if batch_first else x


def _at_least_one(**counts: Any) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise InputError(name, repr(count), "a whole number from 1")
