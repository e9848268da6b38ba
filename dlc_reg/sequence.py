"""The recurrent head: a network over sequences, read as an iterative method for a prediction in R^n.

    model = SequenceModel(torch.nn.GRU(1, 64, batch_first=True), outputs=10)      # any cell with torch's interface
    prediction = model(sequences)                                                 # (B, T, 1) -> (B, 10)

The sequence is the data. Within it, a step of the cell updates a hidden state (`SBORNN`: by a gradient step on an
objective that is written down). Behind it stands an objective E(omega; last state) over the prediction, which is
descended at test time: with the default `Readout` that is the linear readout itself, found in one step.

Label side:   ConvexifiedLoss(lambda omega, prediction: ..., Euclidean(n), ...)(truth, model(sequences))
Energy side:  ConvexifiedLoss(model, Euclidean(n), ...)(truth, model.encode(sequences))
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlc_reg.errors import InputError
from dlc_reg.iterate import Solution, Termination, iterate
from dlc_reg.manifold import Euclidean
from dlc_reg.networks.arguments import recorded
from dlc_reg.networks.sequences import SBORNN, IndRNN, MLPEnergy, QuadraticEnergy, Readout
from dlc_reg.updates import GradientDescent

__all__ = [
    "ARCHITECTURES",
    "SBORNN",
    "IndRNN",
    "MLPEnergy",
    "QuadraticEnergy",
    "Readout",
    "RecurrentNetwork",
    "SequenceModel",
]

HEADS: dict[str, type[nn.Module]] = {"plain": Readout, "quadratic": QuadraticEnergy, "mlp": MLPEnergy}


class SequenceModel(nn.Module):
    """A recurrent cell, and a prediction (B, outputs) that descends an energy given the cell's last output.

    `cell`: x, (B, T, D) if its `batch_first` is set, else (T, B, D) -> (outputs of all steps, state), with a
    `hidden_size`: torch's RNN, LSTM and GRU, `IndRNN`, `SBORNN`.
    `head`: a name, or a module with `prepare`, `value`, `iterations` and `rate` as `MLPEnergy` has them. Of energies
    over classes omega is a label, one-hot when true, and logits are `sharpness` times it; of "plain", omega is logits.
    """

    def __init__(
        self, cell: nn.Module, outputs: int, head: Literal["plain", "quadratic", "mlp"] | nn.Module = "plain"
    ) -> None:
        super().__init__()
        width = getattr(cell, "proj_size", 0) or getattr(cell, "hidden_size", None)
        if not isinstance(width, int):
            raise InputError("cell", type(cell).__name__, "a recurrent module with `hidden_size`, like torch.nn.GRU")
        if not isinstance(outputs, int) or outputs < 1:
            raise InputError("outputs", repr(outputs), "a whole number from 1")
        if not isinstance(head, nn.Module) and head not in HEADS:
            raise InputError("head", repr(head), f"a module, or one of {', '.join(HEADS)}")
        self.cell, self.outputs = cell, outputs
        self.bidirectional = bool(getattr(cell, "bidirectional", False))
        width *= 1 + self.bidirectional
        self.head: Any = head if isinstance(head, nn.Module) else HEADS[head](width, outputs)
        self.manifold = Euclidean(outputs)

    def encode(self, x: Tensor, lengths: Tensor | None = None) -> Any:
        """What the energy needs of sequences laid out as the cell wants them; it does not depend on the prediction.

        `lengths` (B,): of ragged sequences padded at their ends.
        """
        if not x.is_floating_point() or x.ndim != 3:
            raise InputError("x", f"{x.dtype} of shape {tuple(x.shape)}", "floating-point sequences, three dimensions")
        outputs = self.cell(x)[0]
        outputs = outputs if getattr(self.cell, "batch_first", False) else outputs.transpose(0, 1)
        return self.head.prepare(self._last(outputs, lengths))

    def _last(self, outputs: Tensor, lengths: Tensor | None) -> Tensor:
        """The output (B, width) at each sequence's last step."""
        if lengths is None:
            return outputs[:, -1]
        if self.bidirectional:
            raise InputError("lengths", "given for a bidirectional cell", "None: one half of it begins in padding")
        if lengths.shape != outputs.shape[:1] or (lengths < 1).any() or (lengths > outputs.shape[1]).any():
            given = f"{lengths.tolist()}"[:80]
            raise InputError("lengths", given, f"{len(outputs)} numbers from 1 to {outputs.shape[1]}")
        return outputs[torch.arange(len(outputs), device=outputs.device), lengths.long() - 1]

    def value(self, omega: Tensor, encoded: Any) -> Tensor:
        """The energy `(*lead, B)` of predictions `(*lead, B, outputs)`."""
        energy: Tensor = self.head.value(omega, encoded)
        return energy

    @property
    def update(self) -> GradientDescent:
        return GradientDescent(self.manifold, self.head.rate)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, *, init: Tensor | None = None, iterations: int | None = None
    ) -> Tensor:
        """Predictions (B, outputs): values, or what `logits` takes. In training mode gradients flow through each step.

        `init` (B, outputs): where the descent begins, None for zeros. `iterations`: None for the head's own number.
        """
        encoded = self.encode(x, lengths)
        batch = x.shape[0 if getattr(self.cell, "batch_first", False) else 1]
        start = x.new_zeros(batch, self.outputs) if init is None else init
        return self.solve(encoded, start, iterations).omega

    def solve(self, encoded: Any, omega: Tensor, iterations: int | None = None) -> Solution:
        """Descends from `omega` (B, outputs) on sequences that have been encoded."""
        if omega.ndim != 2 or omega.shape[1] != self.outputs:
            raise InputError("init", f"shape {tuple(omega.shape)}", f"(B, {self.outputs})")
        return iterate(
            self,
            self.update,
            omega,
            encoded,
            termination=Termination(self.head.iterations if iterations is None else iterations, converged=None),
            differentiate="unroll" if self.training and torch.is_grad_enabled() else "none",
        )

    def trajectory(self, encoded: Any, omega: Tensor, iterations: int | None = None) -> Tensor:
        """Predictions after each step, (iterations, B, outputs), with their gradients."""
        reached = []
        state, _ = self.update.init(self, omega, encoded)
        for _ in range(self.head.iterations if iterations is None else iterations):
            omega, state, _ = self.update.step(self, omega, encoded, state)
            reached.append(omega)
        return torch.stack(reached)

    def logits(self, omega: Tensor) -> Tensor:
        """Of predictions over classes."""
        scaled: Tensor = self.head.sharpness * omega
        return scaled


@recorded
class RecurrentNetwork(SequenceModel):
    """The same of a cell by its name, over sequences (B, T, inputs), as recipes and files of weights have it.

    `update` is that of "sbo" alone; `memory` that of "indrnn" alone, in steps.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: int = 64,
        cell: Literal["rnn", "lstm", "gru", "indrnn", "sbo"] = "gru",
        head: Literal["plain", "quadratic", "mlp"] = "plain",
        layers: int = 1,
        update: Literal["plain", "heavy_ball", "nesterov"] = "plain",
        memory: int = 784,
    ) -> None:
        super().__init__(_cell(cell, inputs, hidden, layers, update, memory), outputs, head)


def _cell(
    name: str, inputs: int, hidden: int, layers: int, update: Literal["plain", "heavy_ball", "nesterov"], memory: int
) -> nn.Module:
    if name == "indrnn":
        return IndRNN(inputs, hidden, layers, batch_first=True, memory=memory)
    if name == "sbo":
        if layers != 1:
            raise InputError("layers", str(layers), "1 for an SBO-RNN")
        return SBORNN(inputs, hidden, update, batch_first=True)
    kinds: dict[str, type[nn.Module]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
    if name not in kinds:
        raise InputError("cell", repr(name), "rnn, lstm, gru, indrnn or sbo")
    return kinds[name](inputs, hidden, layers, batch_first=True)


ARCHITECTURES: dict[str, type[nn.Module]] = {"recurrent": RecurrentNetwork}
"""By the name that recipes and weights use."""
