"""Which motions are permitted: all, turns about the vertical with shifts, or shifts alone; and a prior on tilt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dlc_reg.errors import InputError
from dlc_reg.registration.steps import euler_motion, nearest_turn

Array = NDArray[np.float64]

DOF = ("rigid", "yaw+translation", "translation")
# An accelerometer at rest is right to 1 degree and in a hand or on a drone to a few; the search itself takes poses that
# are less than 10 degrees apart for one.
TOLERANCE = math.radians(10)
ROUNDING = 1e-5  # [rad], as check_rigid allows: a matrix printed with six digits


@dataclass(frozen=True)
class Constraint:
    """The motions that an answer may be, between axes that run alike in the clouds' own and in their local frames.

    `dof`: "rigid"; "yaw+translation", R maps the source's down to the target's; "translation", R = I. `down`: the unit
    vectors (source's, target's) of gravity; None: z for yaw, and unknown for the others, for which it is a prior:
    poses that turn the one more than `TOLERANCE` away from the other are not considered.
    """

    dof: str = "rigid"
    down: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def held(self) -> bool:
        """Whether some degrees of freedom are held."""
        return self.dof != "rigid"

    @property
    def free(self) -> bool:
        """Whether every pose is permitted."""
        return not self.held and self.down is None

    @cached_property
    def axes(self) -> tuple[Array, Array]:
        """Unit vectors (3,): the vertical in the source's frame and in the target's."""
        source, target = self.down or ((0.0, 0.0, 1.0), (0.0, 0.0, 1.0))
        return np.array(source), np.array(target)

    @cached_property
    def basis(self) -> Array | None:
        """(6, k): the left updates (rotation, translation) that are permitted, about any origin; None for all of them.

        Its columns are orthonormal, and each turns or shifts, so that it serves in any unit of rotation too.
        """
        if not self.held:
            return None
        basis = np.zeros((6, 4 if self.dof == "yaw+translation" else 3))
        basis[3:, -3:] = np.eye(3)
        if basis.shape[1] == 4:
            basis[:3, 0] = self.axes[1]
        return basis

    @cached_property
    def _level(self) -> Array:
        """(3, 3): the smallest turn of the source's vertical to the target's."""
        a, b = self.axes
        cosine = float(a @ b)
        if cosine < -1 + 1e-12:  # upside down: half a turn about any axis across
            across = np.linalg.svd(a[None])[2][1]
            half: Array = 2 * np.outer(across, across) - np.eye(3)
            return half
        v = np.cross(a, b)
        hat = np.array([[0.0, -v[2], v[1]], [v[2], 0.0, -v[0]], [-v[1], v[0], 0.0]])
        level: Array = np.eye(3) + hat + hat @ hat / (1 + cosine)
        return level

    def nearest_rotation(self, matrix: Array) -> Array:
        """The rotation (3, 3) of an update that maximises trace(R^T matrix): of yaw and of translation."""
        return np.eye(3) if self.dof == "translation" else nearest_turn(matrix, self.axes[1])

    def motion(self, xi: Array) -> Array:
        """(4, 4): the update that a permitted xi (6,) stands for; free ones are in Open3D's chart."""
        if not self.held:
            return euler_motion(xi)
        motion = np.eye(4)
        motion[:3, 3] = xi[3:]
        if self.dof == "yaw+translation":
            angle = float(xi[:3] @ self.axes[1])
            motion[:3, :3] = _turn(self.axes[1], angle)
        return motion

    def deviation(self, poses: Tensor | Array) -> Array:
        """(...,) [rad]: how far rotations, of poses (..., 4, 4), are from what is permitted; 0 where all are."""
        linear = np.asarray(poses)[..., :3, :3]
        if self.dof == "translation":
            sine = np.stack([linear[..., i, j] - linear[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0))], axis=-1)
            scale = np.cbrt(np.linalg.det(linear))
            angle: Array = np.arctan2(np.linalg.norm(sine, axis=-1), np.trace(linear, axis1=-2, axis2=-1) - scale)
            return angle
        return self.tilt(poses) if self.held or self.down is not None else np.zeros(linear.shape[:-2])

    def tilt(self, poses: Tensor | Array) -> Array:
        """(...,) [rad]: the angle between the source's vertical, turned by poses (..., 4, 4), and the target's."""
        a, b = self.axes
        turned = np.asarray(poses)[..., :3, :3] @ a
        angle: Array = np.arctan2(np.linalg.norm(np.cross(turned, b), axis=-1), turned @ b)
        return angle

    def project(self, pose: Tensor, center: Tensor | None = None, *, with_scaling: bool = False) -> Tensor:
        """The permitted pose (4, 4) nearest to a pose, with the same image of `center` (3,), by default of the origin.

        A prior lets poses within its tolerance be, and makes the others upright. `with_scaling` keeps a scale.
        """
        if self.free or (not self.held and float(self.deviation(pose)) <= TOLERANCE):
            return pose
        linear = pose[:3, :3].numpy()
        scale = float(np.cbrt(np.linalg.det(linear))) if with_scaling else 1.0
        projected = pose.clone()
        projected[:3, :3] = torch.from_numpy(scale * self._exact(linear))
        if center is not None:
            projected[:3, 3] += (pose[:3, :3] - projected[:3, :3]) @ center
        return projected

    def _exact(self, linear: Array) -> Array:
        if self.dof == "translation":
            return np.eye(3)
        return nearest_turn(linear @ self._level.T, self.axes[1]) @ self._level

    def admit(self, poses: Tensor, center: Tensor) -> Tensor:
        """Of poses (K, 4, 4) those that are not far from what is permitted, brought there; `center` as of `project`."""
        if self.free:
            return poses
        near = [self.project(pose, center) for pose in poses[torch.from_numpy(self.deviation(poses) <= TOLERANCE)]]
        return torch.stack(near) if near else poses[:0]

    def turns(self, count: int) -> Tensor:
        """Rotations (k, 3, 3) float64 that are permitted, at most `count`, spread evenly; not for what is `free`."""
        if self.dof == "translation":
            return torch.eye(3, dtype=torch.float64)[None]
        angles = 2 * math.pi * np.arange(count) / count
        return torch.from_numpy(np.stack([_turn(self.axes[1], float(a)) @ self._level for a in angles]))

    def check(self, pose: Array, argument: str) -> None:
        """Raises InputError, about `argument`, for a pose (4, 4) that breaks the constraint or the prior."""
        off = float(self.deviation(pose))
        if self.held and off > ROUNDING:
            what = "no rotation" if self.dof == "translation" else "a rotation about the vertical alone"
            given = f"a pose that turns {math.degrees(off):.3g} degrees away from that"
            raise InputError(argument, given, f"{what}, as dof={self.dof!r} says")
        if self.down is not None and float(self.tilt(pose)) > max(TOLERANCE, ROUNDING):
            given = f"a pose that turns source_gravity {math.degrees(self.tilt(pose)):.3g} degrees from target_gravity"
            raise InputError(argument, given, f"at most {math.degrees(TOLERANCE):.0f} degrees")


FREE = Constraint()


def constrained(dof: str, source_gravity: ArrayLike | None, target_gravity: ArrayLike | None) -> Constraint:
    """The constraint that `register` is told of. Raises InputError where only one gravity is known."""
    given = {"source_gravity": source_gravity, "target_gravity": target_gravity}
    for name, value in given.items():
        if value is None and any(other is not None for other in given.values()):
            raise InputError(name, "None, with the other cloud's gravity given", "both directions of gravity, or none")
    if source_gravity is None or target_gravity is None:
        return Constraint(dof)
    return Constraint(
        dof, (check_gravity(source_gravity, "source_gravity"), check_gravity(target_gravity, "target_gravity"))
    )


def check_gravity(value: ArrayLike, argument: str) -> tuple[float, ...]:
    """A direction (3,) as a unit vector. Raises InputError for anything else."""
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
        if array.dtype.kind in "fiu" and array.shape == (3,) and np.isfinite(array).all():
            largest = float(np.abs(array.astype(np.float64)).max())
            if largest > 0:
                scaled = array.astype(np.float64) / largest
                return tuple((scaled / np.linalg.norm(scaled)).tolist())
    except ValueError:  # ragged
        pass
    raise InputError(argument, repr(value)[:80], "three finite numbers, not all 0: the direction of down in this cloud")


def _turn(axis: Array, angle: float) -> Array:
    """(3, 3): about a unit axis (3,)."""
    x, y, z = axis.tolist()
    hat = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    turn: Array = np.eye(3) + math.sin(angle) * hat + 2 * math.sin(angle / 2) ** 2 * (hat @ hat)
    return turn
