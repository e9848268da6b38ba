"""The classical objectives of rigid registration: what each sums over the nearest neighbours, and its step.

Another one is a class here and its line in `OBJECTIVES`, which gives it a name for `register(method=...)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dlc_reg.geometry import PointCloud
from dlc_reg.registration.constraint import Constraint
from dlc_reg.registration.frame import Array, Evaluation, Objective
from dlc_reg.registration.steps import fit_similarity, point_information, solve_least


@dataclass(frozen=True)
class PointToPoint(Objective):
    """r = p' - q, weighted by its length; the step is closed-form (Umeyama, PAMI 1991, eq. 34-43)."""

    with_scaling: bool = False

    kind = "point_to_point"
    rows = 3

    def _update(self, omega: Tensor, evaluation: Evaluation) -> Tensor:
        moments, constraint = evaluation.linearization.sums.numpy(), evaluation.pair.constraint
        nearest = constraint.nearest_rotation if constraint.held else None
        update = fit_similarity(moments, with_scaling=self.with_scaling, nearest_rotation=nearest)
        return _compose(update, omega, evaluation.pair.pivot)

    def _permitted(self, omega: Tensor, constraint: Constraint) -> Tensor:
        return constraint.project(omega, with_scaling=self.with_scaling)

    def hessian(self, evaluation: Evaluation) -> Array:
        """sum G^T G at the matched target points, G = [-[q]x, I]: Open3D's information matrix (Choi et al., 2015)."""
        points = evaluation.pair.target.points.numpy()[evaluation.matched_targets()]
        return point_information(points.astype(np.float64))

    def gradient(self, evaluation: Evaluation) -> Array:
        moments = evaluation.linearization.moments()
        cross = moments.cross.numpy()
        turning = [cross[1, 2] - cross[2, 1], cross[2, 0] - cross[0, 2], cross[0, 1] - cross[1, 0]]  # sum of q x p'
        return np.concatenate([turning, (moments.source - moments.target).numpy()])


@dataclass(frozen=True)
class PointToPlane(Objective):
    """r = (p' - q) . n_target (Chen and Medioni, 1992)."""

    kind = "point_to_plane"
    needs = ("target_normals",)
    rows = 1


@dataclass(frozen=True)
class Symmetric(Objective):
    """r = (p' - q) . (n_target +- R n_source), with a half-angle step about the means (Rusinkiewicz, SIGGRAPH 2019)."""

    kind = "symmetric"
    needs = ("source_normals", "target_normals")
    rows = 1

    def _update(self, omega: Tensor, evaluation: Evaluation) -> Tensor:
        linearization = evaluation.linearization
        xi = solve_least(*evaluation.normal_equations(), evaluation.pair.constraint.basis)
        return _compose(linearization.symmetric_step(torch.from_numpy(xi)).numpy(), omega, evaluation.pair.pivot)


@dataclass(frozen=True)
class Generalized(Objective):
    """r = (C_target + R C_source R^T)^(-1/2) (p' - q), plane to plane (Segal et al., RSS 2009).

    Covariances are used as the clouds have them; a cloud that has only normals gets planes, of variance `epsilon` along
    the normal and 1 across.
    """

    epsilon: float = 1e-3

    kind = "generalized"
    needs = ("source_covariances", "target_covariances")
    rows = 1  # of the three the one along the normal has nearly all of the cost

    def complete(self, cloud: PointCloud) -> PointCloud:
        if cloud.covariances is not None or cloud.normals is None:
            return cloud
        return cloud.attach(covariances=plane_covariances(cloud.normals, self.epsilon))


@dataclass(frozen=True)
class Colored(Objective):
    """Point-to-plane and, to first order, the difference of intensities (Park, Zhou and Koltun, ICCV 2017).

    r = sqrt(l) (p' - q) . n_target and sqrt(1 - l) (I_source - I_target - g . (p' - q)), with l = `lambda_geometric` in
    [0, 1], I the mean of red, green and blue, and g its gradient along the target's surface. The kernel weighs the two
    one by one. l weighs lengths against intensities: another unit of length needs another l, as in Open3D.
    """

    lambda_geometric: float = 0.968

    kind = "colored"
    needs = ("source_colors", "target_colors", "target_normals")
    rows = 2

    def parameters(self) -> dict[str, float]:
        return {"lambda_geometric": self.lambda_geometric}


OBJECTIVES: dict[str, Objective] = {
    "point_to_point": PointToPoint(),
    "point_to_plane": PointToPlane(),
    "symmetric": Symmetric(),
    "generalized": Generalized(),
    "colored": Colored(),
}
"""By the name that `register(method=...)` knows them by."""


def plane_covariances(normals: Tensor, epsilon: float) -> Tensor:
    """I - (1 - epsilon) n n^T for unit normals (N, 3): (N, 6), xx xy xz yy yz zz."""
    x, y, z = normals.unbind(dim=1)
    products = torch.stack([x * x, x * y, x * z, y * y, y * z, z * z], dim=1)
    return torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float32) - (1.0 - epsilon) * products


def _compose(update: Array, omega: Tensor, pivot: Array) -> Tensor:
    """`update`, which acts in the target's local frame, after `omega`."""
    shifted = update.copy()
    shifted[:3, 3] += update[:3, :3] @ pivot - pivot
    return torch.from_numpy(shifted @ omega.numpy())
