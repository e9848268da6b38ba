"""Training of every head's networks: one loop, from a recipe, over one or many processes, exactly resumable.

    result = train(load_recipe("recipes/shipped.toml"), Shapes.load("shapes.npz"), "runs/shipped")

What a run learns depends on its recipe and its data alone: items and every other random number come from (seed, step),
so that a run that was interrupted goes the same way, and one that more processes share too, up to rounding and
batch statistics.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from dlc_reg._checkpoint import packed, unpacked
from dlc_reg._parallel import Processes, join
from dlc_reg._recipe import Convexify, Optimizer, Recipe, Validation, load_recipe, make_recipe, task_of
from dlc_reg._terms import Draw, term_costs
from dlc_reg._training_log import NAME, Log
from dlc_reg.errors import InputError
from dlc_reg.io import replacing

__all__ = [
    "CHECKPOINT",
    "LOG",
    "Convexify",
    "Optimizer",
    "Recipe",
    "Trained",
    "Validation",
    "build_network",
    "load_recipe",
    "make_recipe",
    "task_of",
    "train",
]

CHECKPOINT, LOG = "checkpoint.safetensors", NAME
KEPT = {"recipe", "data", "network", "losses", "optimizer", "step", "seconds", "best", "costs"}  # in a checkpoint
_MAX_SKIPPED = 20  # steps in a row whose gradient is not finite


@dataclass
class Trained:
    """The network with its best weights on validation, in eval(), and what the run says of itself."""

    network: Any
    recipe: Recipe
    figures: dict[str, float] = field(default_factory=dict)  # of the best weights, on validation, and their step
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds_per_step: float = math.nan
    parameters: int = 0


def build_network(recipe: Recipe) -> Any:
    """The recipe's network with fresh weights, which its seed determines."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        try:
            return task_of(recipe).network(recipe)
        except TypeError as error:
            raise InputError("network", str(recipe.network), f"arguments of {recipe.architecture} ({error})") from None


def train(
    recipe: Recipe,
    data: Any,
    out: str | Path,
    *,
    resume: bool = False,
    network: nn.Module | None = None,
    device: str | torch.device | None = None,
    checkpoint_every: int = 250,
    stop_at: int | None = None,
    tensorboard: bool = False,
    progress: bool = False,
) -> Trained:
    """Trains on the data's training half and keeps what is best on the held-out one.

    Args:
        data: what the recipe's task trains on, with a `checksum`: of registration `Shapes`, their splits "train" and
            "val".
        out: a folder for the checkpoint and the log; one with a checkpoint is refused unless `resume`.
        resume: go on from the checkpoint, if there is one, as if nothing had happened, to the bit.
        network: trained instead of the recipe's architecture, from the weights it has.
        device: None for this process's CUDA device, or the CPU.
        stop_at: end after this step, with a checkpoint; the schedule stays that of the whole run.
        tensorboard: log there too, if it is installed.

    Under `torchrun` the batch is shared by the processes, and only the first writes. Batch statistics are a process's
    own. convexify.aggregate = "max" takes one process: the worst ray of the whole batch is not that of its parts.
    """
    group = join(device)
    with torch.random.fork_rng():
        run = _Run(recipe, data, Path(out), network or build_network(recipe), group)
        run.open(resume)
        last = min(stop_at or recipe.optimizer.steps, recipe.optimizer.steps)
        with Log(run.out, run.step, run.task.figures, group.first, tensorboard) as log:
            for batch in run.batches(last, progress):
                row = run.take_step(batch)
                if run.step % recipe.validation.every == 0 or run.step == recipe.optimizer.steps:
                    row |= run.look()
                log.write(row)
                if run.step % checkpoint_every == 0 or run.step == last:
                    run.save()
        return run.result()


class _Run:
    """The state of a training: weights, optimizer, step, and the best so far."""

    def __init__(self, recipe: Recipe, data: Any, out: Path, network: nn.Module, group: Processes) -> None:
        if recipe.optimizer.batch % group.count:
            raise InputError("optimizer.batch", str(recipe.optimizer.batch), f"a multiple of {group.count} processes")
        if group.count > 1 and recipe.dlc != "none" and recipe.convexify.aggregate == "max":
            raise InputError(
                "convexify.aggregate", f"'max' in {group.count} processes", "'mean', 'sum', or one process"
            )
        settings = recipe.optimizer
        self.recipe, self.out, self.group, self.task, self.data = recipe, out, group, task_of(recipe), data
        self.network = network.to(group.device)
        self.losses = self.task.losses(self.network, recipe).to(group.device)
        self.parameters = [p for p in (*self.network.parameters(), *self.losses.parameters()) if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=settings.rate, weight_decay=settings.weight_decay)
        self.step, self.skipped, self.seconds = 0, 0, 0.0
        self.best: dict[str, Any] = {}
        self.costs: dict[str, dict[str, float]] = {}
        self.training, self.held_out = self.task.sets(recipe, data)

    def open(self, resume: bool) -> None:
        """Makes the folder, or takes up what is in it."""
        path = self.out / CHECKPOINT
        kept = path.read_bytes() if self.group.first and path.exists() else None
        kept = self.group.from_first(kept)  # other machines need not see the folder
        if self.group.first and kept is None and (self.out / "checkpoint.pt").exists():
            raise InputError("out", f"'{self.out}', with a checkpoint of an older version", "a new folder")
        if kept is not None and not resume:
            raise InputError("out", f"'{self.out}', which has a checkpoint", "a new folder, or resume=True")
        if self.group.first:
            self.out.mkdir(parents=True, exist_ok=True)
        if kept is None:
            self.costs = self.measure()
            return
        try:
            state = unpacked(kept)
            if set(state) != KEPT:
                raise ValueError(f"it holds {', '.join(map(str, state)) or 'nothing'}")
        except ValueError as error:
            raise InputError("out", f"'{path}': {error}", "a whole checkpoint, or a new folder") from None
        if make_recipe(json.loads(state["recipe"])) != self.recipe:
            raise InputError("recipe", "one that differs from the checkpoint's", "the recipe that the run began with")
        if state["data"] != self.data.checksum:
            raise InputError("data", "others than the checkpoint's", "the data that the run began with")
        self.network.load_state_dict(state["network"])
        self.losses.load_state_dict(state["losses"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.best, self.costs = (state[k] for k in ("step", "seconds", "best", "costs"))

    def save(self) -> None:
        """Everything that the next step depends on."""
        if not self.group.first:
            return
        state = {
            "recipe": json.dumps(self.recipe.to_dict()),
            "data": self.data.checksum,
            "network": self.network.state_dict(),
            "losses": self.losses.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "costs": self.costs,
        }
        with replacing(self.out / CHECKPOINT, overwrite=True) as path:
            path.write_bytes(packed(state))

    def batches(self, last: int, progress: bool) -> Iterator[Any]:
        """This process's share of each batch, up to step `last`."""
        from tqdm import tqdm

        total = self.recipe.optimizer.batch
        begin, end = self.group.rows(total)
        rows = [list(range(s * total + begin, s * total + end)) for s in range(self.step, last)]
        loader = DataLoader(
            self.training,
            batch_sampler=rows,
            num_workers=self.task.workers(self.recipe),
            collate_fn=self.task.collate,
        )
        shown = progress and self.group.first
        yield from tqdm(loader, initial=self.step, total=last, desc=self.recipe.name, disable=not shown)

    def take_step(self, batch: Any) -> dict[str, Any]:
        """One step of the optimizer; the row of the log."""
        began, settings = time.perf_counter(), self.recipe.optimizer
        rate = settings.rate * _schedule(settings, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(_mixed(self.recipe.seed, self.step))  # of what the network itself draws
        self.network.train()
        for p in self.parameters:  # zeros, not None: every process has the same ones
            p.grad = torch.zeros_like(p)
        total, figures = self.losses(batch.to(self.group.device), self.draw())
        total.backward()
        names = list(figures)
        values = torch.tensor([total.item(), *figures.values()], device=self.group.device)  # where processes can share
        buffers = [b for b in self.network.buffers() if b.is_floating_point()]
        self.group.average([values, *(p.grad for p in self.parameters if p.grad is not None), *buffers])
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, settings.clip or math.inf)
        self._apply(bool(torch.isfinite(norm)))
        self.step += 1
        took = time.perf_counter() - began
        self.seconds += took
        row = {"step": self.step, "loss": values[0].item(), **dict(zip(names, values[1:].tolist(), strict=True))}
        return {**row, "rate": rate, "gradient": norm.item(), "seconds": took}

    def _apply(self, finite: bool) -> None:
        """A gradient that is not finite is left out; many in a row end the run."""
        self.skipped = 0 if finite else self.skipped + 1
        if self.skipped > _MAX_SKIPPED:
            raise FloatingPointError(f"no finite gradient in {_MAX_SKIPPED} steps up to step {self.step}")
        if finite:
            self.optimizer.step()

    def draw(self) -> Draw:
        total = self.recipe.optimizer.batch
        generator = torch.Generator().manual_seed(_mixed(self.recipe.seed, self.step))
        return Draw(generator, total, *self.group.rows(total))

    def look(self) -> dict[str, float]:
        """Figures on validation, by the first process; the best weights are kept."""
        if not self.group.first:
            return {}
        figures = self.task.validate(self.network, self.held_out, self.recipe, self.group.device)
        if not self.best or self.task.rank(figures) > self.task.rank(self.best["figures"]):
            weights = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
            self.best = {"network": weights, "figures": {**figures, "step": float(self.step)}}
        return {f"validation_{name}": value for name, value in figures.items()}

    def measure(self) -> dict[str, dict[str, float]]:
        """On the first batch, with a copy of the network."""
        begin, end = self.group.rows(self.recipe.optimizer.batch)
        batch = self.task.collate([self.training[i] for i in range(begin, end)]).to(self.group.device)
        network = copy.deepcopy(self.network).train()
        return term_costs(self.task.losses(network, self.recipe).to(self.group.device), batch, self.draw())

    def result(self) -> Trained:
        count = sum(p.numel() for p in self.network.parameters())
        network = copy.deepcopy(self.network)
        if self.best:
            network.load_state_dict(self.best["network"])
        figures = dict(self.best.get("figures", {}))
        return Trained(network.eval(), self.recipe, figures, self.costs, self.seconds / max(self.step, 1), count)


def _schedule(settings: Optimizer, step: int) -> float:
    """The share of the full rate at a step."""
    if step < settings.warm_up:
        return (step + 1) / settings.warm_up
    progress = (step - settings.warm_up) / max(settings.steps - settings.warm_up, 1)
    return settings.final_rate + (1 - settings.final_rate) * (1 + math.cos(math.pi * progress)) / 2


def _mixed(seed: int, step: int) -> int:
    """One seed of two numbers, without visible relation to either."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]) >> 1
