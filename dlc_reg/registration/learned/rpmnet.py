"""RPM-Net (Yew and Lee, CVPR 2020): hybrid features, a matching with slack on both sides, and learned annealing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlc_reg.networks.local import LocalEncoder
from dlc_reg.networks.neighbours import check_counts, layers, masked_max, weights
from dlc_reg.registration.assignment import Assignment
from dlc_reg.registration.learned.dcp import products, without_padding
from dlc_reg.registration.learned.frame import architecture
from dlc_reg.registration.learned.passes import Encoded, Repeated
from dlc_reg.registration.learned.transport import Transport


@architecture("rpmnet")
class RPMNet(Repeated):
    """E of `Transport` with L_ij = beta (alpha - |F(p_i) - F(q_j)|^2 - kappa |R p_i + t - q_j|^2).

    A small network reads beta and alpha from both clouds. The paper has no kappa: there the pose is in F alone, which
    is computed anew in every iteration (`passes=5, iterations=1` of this one, two passes in training); with kappa > 0
    a pass may have many iterations.
    """

    iterations = 4

    def __init__(
        self,
        widths: Sequence[int] = (96, 96, 192),
        head: Sequence[int] = (192,),
        out: int = 96,
        neighbours: int = 64,
        radius: float = 0.3,
        position: bool = True,
        parameter_widths: Sequence[int] = (64, 64, 64, 128, 1024),
        parameter_head: Sequence[int] = (512, 256),
        rounds: int = 120,
        passes: int = 2,
    ) -> None:
        super().__init__(passes)
        check_counts(rounds=rounds)
        self.encoder = LocalEncoder(widths, head, out, neighbours, radius, position)
        self.clouds = layers([4, *parameter_widths])
        last = [parameter_widths[-1], *parameter_head]
        self.annealing = nn.Sequential(layers(last), nn.Linear(last[-1], 2))
        self.energy = Transport(rounds)
        self.log_kappa = nn.Parameter(torch.tensor(0.0))

    def match(
        self, source: Tensor, moved: Tensor, target: Tensor, source_mask: Tensor | None, target_mask: Tensor | None
    ) -> Assignment:
        f, g = (self.encoder(c, m).to(source.dtype) for c, m in ((moved, source_mask), (target, target_mask)))
        beta, alpha = self.parameters_of(moved, target, source_mask, target_mask).to(source.dtype).unbind(-1)
        apart = 2 - 2 * products(f, g)  # of features of unit length
        affinity = without_padding(beta[:, None, None] * (alpha[:, None, None] - apart), source_mask, target_mask)
        sharpness = beta * self.log_kappa.exp()
        return Assignment(
            source, target, affinity, sharpness, None, weights(source, source_mask), weights(target, target_mask)
        )

    def parameters_of(
        self, moved: Tensor, target: Tensor, source_mask: Tensor | None, target_mask: Tensor | None
    ) -> Tensor:
        """beta and alpha, positive, (B, 2), from all points, each with a flag that says of which cloud it is."""
        ones = [torch.ones_like(c[..., :1]) for c in (moved, target)]
        a, b = self.clouds(torch.cat([moved, 0 * ones[0]], -1)), self.clouds(torch.cat([target, ones[1]], -1))
        pooled = torch.maximum(masked_max(a, source_mask, 1), masked_max(b, target_mask, 1))
        return functional.softplus(self.annealing(pooled))

    def value(self, omega: Tensor, encoded: Encoded) -> Tensor:
        return self.energy.value(omega, encoded.data)

    def step(self, omega: Tensor, encoded: Encoded) -> Tensor:
        return self.energy.step(omega, encoded.data)
