"""Robust kernels by the names of Open3D's `t.pipelines.registration.robust_kernel`."""

from __future__ import annotations

import enum
from typing import Any

from dlc_reg.errors import InputError
from dlc_reg.pipelines import _estimation as _legacy
from dlc_reg.pipelines._estimation import _as_float


class RobustKernelMethod(enum.Enum):
    """The kinds of kernels. Open3D's `GeneralizedLoss` is not offered: the core has no such kernel."""

    L2Loss = 0
    L1Loss = 1
    HuberLoss = 2
    CauchyLoss = 3
    GMLoss = 4
    TukeyLoss = 5


L2Loss = RobustKernelMethod.L2Loss
L1Loss = RobustKernelMethod.L1Loss
HuberLoss = RobustKernelMethod.HuberLoss
CauchyLoss = RobustKernelMethod.CauchyLoss
GMLoss = RobustKernelMethod.GMLoss
TukeyLoss = RobustKernelMethod.TukeyLoss


class RobustKernel:
    """A kernel and its scale: `scaling_parameter`, the k of `HuberLoss` and the others, in the unit of the residual.

    `shape_parameter` is that of Open3D's generalized loss; none of the kernels offered depends on it.
    """

    def __init__(self, type: Any = RobustKernelMethod.L2Loss, scaling_parameter: Any = 1.0, shape_parameter: Any = 1.0):
        if hasattr(type, "scaling_parameter"):
            type, scaling_parameter, shape_parameter = type.type, type.scaling_parameter, type.shape_parameter
        self.type = type
        self.scaling_parameter, self.shape_parameter = scaling_parameter, shape_parameter

    @property
    def type(self) -> RobustKernelMethod:
        return self._type

    @type.setter
    def type(self, value: Any) -> None:
        name = getattr(value, "name", None)
        if name == "GeneralizedLoss":
            raise InputError("type", name, f"one of {', '.join(method.name for method in RobustKernelMethod)}")
        if not isinstance(name, str) or name not in RobustKernelMethod.__members__:
            raise TypeError(f"type: got {value!r}; expected a RobustKernelMethod")
        self._type = RobustKernelMethod[name]

    @property
    def scaling_parameter(self) -> float:
        return self._scaling_parameter

    @scaling_parameter.setter
    def scaling_parameter(self, value: Any) -> None:
        self._scaling_parameter = _as_float("scaling_parameter", value)

    @property
    def shape_parameter(self) -> float:
        return self._shape_parameter

    @shape_parameter.setter
    def shape_parameter(self, value: Any) -> None:
        self._shape_parameter = _as_float("shape_parameter", value)

    def __repr__(self) -> str:
        return (
            f"RobustKernel[scaling_parameter_={self.scaling_parameter:e}, shape_parameter_={self.shape_parameter:e}]."
        )


def as_robust_kernel(value: Any) -> RobustKernel:
    """Ours, Open3D's tensor kernel, or a legacy one."""
    if isinstance(value, RobustKernel):
        return value
    if hasattr(value, "scaling_parameter"):
        return RobustKernel(value)
    kernel = _legacy._as_kernel(value)
    return RobustKernel(RobustKernelMethod[type(kernel).__name__], getattr(kernel, "k", 1.0))


def to_legacy(kernel: RobustKernel) -> _legacy.RobustKernel:
    kind = getattr(_legacy, kernel.type.name)
    made: _legacy.RobustKernel = kind(kernel.scaling_parameter) if issubclass(kind, _legacy._ScaledKernel) else kind()
    return made
