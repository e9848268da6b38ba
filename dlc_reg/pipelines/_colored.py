"""Coloured ICP's estimation by the name and with the defaults of Open3D 0.20."""

from __future__ import annotations

from typing import Any, SupportsFloat, cast

import numpy as np
from numpy.typing import NDArray

from dlc_reg.errors import InputError
from dlc_reg.pipelines._clouds import Cloud, prepare_pair
from dlc_reg.pipelines._estimation import RobustKernel, _as_float, _KernelEstimation, _require
from dlc_reg.registration.objectives import Colored

Array = NDArray[np.float64]


class TransformationEstimationForColoredICP(_KernelEstimation):
    """Distance to the tangent plane, and difference of intensities along it (Park, Zhou and Koltun, ICCV 2017).

    Both clouds need colours, the target normals too. `lambda_geometric`, 0 to 1, is what geometry counts against colour
    (Open3D takes 0.968 in place of anything else without a word; here that raises `InputError`). `registration_icp`
    estimates the target's colour gradients within twice its distance, from at most 30 neighbours; `compute_rmse` and
    `compute_transformation`, which know no distance, from the 30 nearest.
    """

    def __init__(self, lambda_geometric: Any = 0.968, kernel: Any = None) -> None:
        if isinstance(lambda_geometric, TransformationEstimationForColoredICP):
            lambda_geometric, kernel = lambda_geometric.lambda_geometric, lambda_geometric.kernel
        elif isinstance(lambda_geometric, RobustKernel):  # Open3D's overload (kernel)
            lambda_geometric, kernel = 0.968, lambda_geometric
        self.lambda_geometric = lambda_geometric
        super().__init__(kernel)

    @property
    def lambda_geometric(self) -> float:
        return self._lambda_geometric

    @lambda_geometric.setter
    def lambda_geometric(self, value: SupportsFloat) -> None:
        share = _as_float("lambda_geometric", value)
        if not 0 <= share <= 1:
            raise InputError("lambda_geometric", f"{share:g}", "a number from 0 to 1")
        self._lambda_geometric = share

    def _objective(self) -> Colored:
        return Colored(lambda_geometric=self.lambda_geometric, **self._kernel_options())

    def _squared_residuals(self, s: Cloud, t: Cloud, i: Any, j: Any) -> Array:
        pair = prepare_pair(s, t, self._objective(), max_distance=np.inf)
        intensities, gradients = np.split(cast(Any, pair.target_intensities).double().numpy()[j], [1], axis=1)
        d = s.points[i] - t.points[j]
        across = (d * cast(Array, t.normals)[j]).sum(axis=1)
        shade = cast(Array, s.colors)[i].mean(axis=1) - intensities[:, 0] - (gradients * d).sum(axis=1)
        return cast(Array, self.lambda_geometric * across**2 + (1.0 - self.lambda_geometric) * shade**2)

    def _usable(self, s: Cloud, t: Cloud) -> bool:
        return bool(self._complete(s, t))

    def _complete(self, s: Cloud, t: Cloud) -> tuple[Cloud, Cloud]:
        _require("ColoredICP", "target", t, "normals")
        _require("ColoredICP", "target", t, "colors")
        _require("ColoredICP", "source", s, "colors")
        return s, t

    def __repr__(self) -> str:
        return f"{type(self).__name__}(lambda_geometric={self.lambda_geometric})"
