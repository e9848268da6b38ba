"""Estimation methods with the spelling of Open3D's tensor module, over those of `dlc_reg.pipelines`."""

from __future__ import annotations

import sys
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from dlc_reg.errors import InputError
from dlc_reg.pipelines import _estimation as _legacy
from dlc_reg.pipelines._clouds import Cloud, as_array, read_cloud
from dlc_reg.pipelines._colored import TransformationEstimationForColoredICP as _Colored
from dlc_reg.t.pipelines._robust_kernel import RobustKernel, as_robust_kernel, to_legacy

Array = NDArray[np.float64]


def like(given: Any, array: NDArray[Any]) -> Any:
    """The array as an Open3D tensor if `given` is Open3D's, else as a torch tensor; on the CPU."""
    if type(given).__module__.split(".")[0] == "open3d":
        return sys.modules["open3d"].core.Tensor(np.array(array, order="C"))
    return torch.from_numpy(np.array(array, order="C"))


class TransformationEstimation(_legacy.TransformationEstimation):
    """Base of the estimation methods."""

    def __init__(self) -> None:
        if type(self) is TransformationEstimation:
            raise TypeError("TransformationEstimation is abstract: use one of the TransformationEstimation... classes")

    def compute_rmse(self, source: Any, target: Any, correspondences: Any) -> float:
        """Root mean square of this method's residual, the clouds as they lie; 0 without correspondences.

        `correspondences`: (N,) or (N, 1) integers, the target's index for each source point, -1 for none.
        """
        s, t = read_cloud(source, "source"), read_cloud(target, "target")
        return super().compute_rmse(s, t, _pairs(correspondences, len(s.points)))

    def compute_transformation(
        self, source: Any, target: Any, correspondences: Any, current_transform: Any = None, iteration: int = 0
    ) -> Any:
        """One update (4, 4) float64, an Open3D tensor for an Open3D source and a torch tensor otherwise.

        `current_transform` (4, 4), T_target_source, and `iteration` matter to Doppler ICP only. Identity without
        correspondences.
        """
        s, t = read_cloud(source, "source"), read_cloud(target, "target")
        update = super().compute_transformation(s, t, _pairs(correspondences, len(s.points)))
        return like(source, update)

    def __repr__(self) -> str:
        return type(self).__name__


class _Kernel(TransformationEstimation, _legacy._KernelEstimation):
    """The robust kernel as a tensor module has it; `_kernel_options` of the legacy class reads what it stands for."""

    @property  # type: ignore[override]
    def kernel(self) -> RobustKernel:
        """Robust kernel used in the optimisation."""
        return self._robust

    @kernel.setter
    def kernel(self, value: Any) -> None:
        self._robust = as_robust_kernel(value)

    def _kernel_options(self) -> dict[str, Any]:
        return kernel_options(self._robust)


def kernel_options(kernel: RobustKernel) -> dict[str, Any]:
    legacy = to_legacy(kernel)
    return {"kernel": legacy._name, "kernel_parameter": getattr(legacy, "k", 1.0)}


class TransformationEstimationPointToPoint(TransformationEstimation, _legacy.TransformationEstimationPointToPoint):
    """Closed form for corresponding points (Umeyama, PAMI 1991)."""

    def __init__(self, other: Any = None) -> None:
        _legacy.TransformationEstimationPointToPoint.__init__(self)


class TransformationEstimationPointToPlane(_Kernel, _legacy.TransformationEstimationPointToPlane):
    """Distance to the target's tangent plane (Chen and Medioni, 1992). The target needs normals.

    `compute_rmse` sums the squares of the three products (p - q)_x n_x, ... as Open3D's tensor module does, and not the
    square of their sum, which is what is minimised.
    """

    def __init__(self, kernel: Any = None) -> None:
        _legacy.TransformationEstimationPointToPlane.__init__(self, kernel)

    def _squared_residuals(self, s: Cloud, t: Cloud, i: Any, j: Any) -> Array:
        return products(s, t, i, j)


class TransformationEstimationSymmetric(_Kernel, _legacy.TransformationEstimationSymmetric):
    """Distance along the sum of both normals (Rusinkiewicz, SIGGRAPH 2019). Both clouds need normals. 0.20 only."""

    def __init__(self, kernel: Any = None) -> None:
        _legacy.TransformationEstimationSymmetric.__init__(self, kernel)


class TransformationEstimationForColoredICP(_Kernel, _Colored):
    """Distance to the tangent plane, and difference of intensities along it (Park, Zhou and Koltun, ICCV 2017).

    Both clouds need colours, the target normals too. Colour gradients are estimated; the attribute "color_gradients",
    which Open3D would take instead, is not looked at.
    """

    def __init__(self, lambda_geometric: Any = 0.968, kernel: Any = None) -> None:
        if hasattr(lambda_geometric, "lambda_geometric"):
            lambda_geometric, kernel = lambda_geometric.lambda_geometric, lambda_geometric.kernel
        _Colored.__init__(self, lambda_geometric, kernel)

    def __repr__(self) -> str:
        return f"{type(self).__name__} with lambda_geometric: {self.lambda_geometric:f}"


def products(s: Cloud, t: Cloud, i: Any, j: Any) -> Array:
    """(m,): the squares of the three products (p - q)_x n_x, ... summed."""
    squared: Array = np.square((s.points[i] - t.points[j]) * cast(Array, t.normals)[j]).sum(axis=1)
    return squared


def _pairs(correspondences: Any, count: int) -> NDArray[np.int64]:
    """Rows (source index, target index) of the tensor module's correspondences."""
    indices = as_array(correspondences)
    if indices.dtype.kind not in "iu" or indices.size != count or indices.ndim not in (1, 2):
        raise InputError(
            "correspondences",
            f"shape {indices.shape}, {indices.dtype}",
            f"integers of shape ({count},) or ({count}, 1)",
        )
    rows = np.flatnonzero(indices.reshape(-1) >= 0)
    return np.stack([rows, indices.reshape(-1)[rows]], axis=1).astype(np.int64)
