"""How good a network is in the middle of its training."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from dlc_reg.metrics import recall, rotation_error, translation_error
from dlc_reg.protocols import PairDataset, collate
from dlc_reg.registration.learned.frame import RegistrationNetwork


@torch.no_grad()
def validate(
    network: RegistrationNetwork,
    pairs: PairDataset,
    *,
    device: Any = "cpu",
    iterations: int | None = None,
    batch: int = 32,
) -> dict[str, float]:
    """Success within 5 degrees, mean isotropic errors (degrees, the points' unit) and seconds a pair, in eval()."""
    training, began = network.training, time.perf_counter()
    network.eval()
    errors = []
    for start in range(0, len(pairs), batch):
        given = collate([pairs[i] for i in range(start, min(start + batch, len(pairs)))]).to(device)
        masks = given.source_mask, given.target_mask
        omega = network(given.source, given.target, *masks, iterations=iterations).omega
        errors.append(torch.stack([rotation_error(omega, given.truth), translation_error(omega, given.truth)], -1))
    network.train(training)
    e = torch.nan_to_num(torch.cat(errors).cpu(), nan=math.pi)
    e[:, 0] = torch.rad2deg(e[:, 0])
    took = (time.perf_counter() - began) / len(pairs)
    success = recall(e[:, 0], torch.tensor(5.0)).item()
    return {"success": success, "rotation_deg": e[:, 0].mean().item(), "translation": e[:, 1].mean().item(),
            "seconds": took}  # fmt: skip


def rank(figures: dict[str, float]) -> tuple[float, float]:
    """More is better: success, and among equals the smaller mean error."""
    return figures["success"], -figures["rotation_deg"]
