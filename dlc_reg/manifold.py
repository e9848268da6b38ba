"""The manifolds that predictions live on: how to move along a tangent vector, and which tangent vector leads where.

A manifold has `dof`, the `shape` of one point, `identity`, `retract(omega, xi)` and its inverse `local(omega, other)`.
Group elements are updated on the left, T <- exp(xi) T, so xi is expressed in the frame that T maps into. Leading
dimensions broadcast. All is differentiable, at xi = 0 too; `local` up to, but not at, half a turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlc_reg.errors import InputError


class Manifold(Protocol):
    """What iterations, update rules and rays ask of the space of predictions."""

    @property
    def dof(self) -> int:
        """Length of a tangent vector."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one point."""
        ...

    def identity(
        self, batch_shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float64, device: Any = None
    ) -> Tensor:
        """The neutral point, (*batch_shape, *shape)."""
        ...

    def retract(self, omega: Tensor, xi: Tensor) -> Tensor:
        """The point reached from omega (..., *shape) along xi (..., dof)."""
        ...

    def local(self, omega: Tensor, other: Tensor) -> Tensor:
        """The tangent vector (..., dof) with retract(omega, xi) = other."""
        ...


@dataclass(frozen=True)
class Euclidean:
    """Vectors of length n: retract adds, local subtracts."""

    n: int

    @property
    def dof(self) -> int:
        return self.n

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    def identity(
        self, batch_shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float64, device: Any = None
    ) -> Tensor:
        return torch.zeros(*batch_shape, self.n, dtype=dtype, device=device)

    def retract(self, omega: Tensor, xi: Tensor) -> Tensor:
        _check(self, omega=omega, xi=xi)
        return omega + xi

    def local(self, omega: Tensor, other: Tensor) -> Tensor:
        _check(self, omega=omega, other=other)
        return other - omega


class _MatrixGroup:
    """Square matrices under multiplication: identity, and the shape of one."""

    dof: ClassVar[int]
    shape: ClassVar[tuple[int, ...]]

    def identity(
        self, batch_shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float64, device: Any = None
    ) -> Tensor:
        return torch.eye(self.shape[0], dtype=dtype, device=device).expand(*batch_shape, *self.shape).clone()


@dataclass(frozen=True)
class SE3(_MatrixGroup):
    """Rigid motions as (4, 4) matrices; xi = (rotation xyz [rad], translation xyz).

    Charts: "exp", the group's exponential; "euler", as Open3D updates poses: xi is the rotation Rz(xi_2) Ry(xi_1)
    Rx(xi_0) and then the translation itself (its TransformVector6dToMatrix4d). They agree to first order.
    """

    chart: Literal["exp", "euler"] = "exp"

    dof: ClassVar[int] = 6
    shape: ClassVar[tuple[int, ...]] = (4, 4)

    def __post_init__(self) -> None:
        if self.chart not in ("exp", "euler"):
            raise InputError("chart", repr(self.chart), "'exp' or 'euler'")

    def retract(self, omega: Tensor, xi: Tensor) -> Tensor:
        _check(self, omega=omega, xi=xi)
        turn, move = xi[..., :3], xi[..., 3:]
        if self.chart == "euler":
            return _affine(_euler_to_rotation(turn), move) @ omega
        coefficients = _rodrigues(turn.square().sum(-1))
        return _affine(_rotation(coefficients, turn), _apply(_integral(coefficients, turn), move)) @ omega

    def local(self, omega: Tensor, other: Tensor) -> Tensor:
        _check(self, omega=omega, other=other)
        delta = other @ invert_rigid(omega)
        rotation, move = delta[..., :3, :3], delta[..., :3, 3]
        if self.chart == "euler":
            return torch.cat([rotation_to_euler(rotation), move], dim=-1)
        turn = so3_log(rotation)
        integral = _integral(_rodrigues(turn.square().sum(-1)), turn)
        return torch.cat([turn, _solve(integral, move)], dim=-1)


@dataclass(frozen=True)
class Sim3(_MatrixGroup):
    """Similarities [[s R, t], [0, 1]] as (4, 4) matrices; xi = (rotation xyz [rad], translation xyz, log s)."""

    dof: ClassVar[int] = 7
    shape: ClassVar[tuple[int, ...]] = (4, 4)

    def retract(self, omega: Tensor, xi: Tensor) -> Tensor:
        _check(self, omega=omega, xi=xi)
        turn, move, log_scale = xi[..., :3], xi[..., 3:6], xi[..., 6]
        linear = log_scale.exp()[..., None, None] * so3_exp(turn)
        return _affine(linear, _apply(_scaled_integral(turn, log_scale), move)) @ omega

    def local(self, omega: Tensor, other: Tensor) -> Tensor:
        _check(self, omega=omega, other=other)
        delta = other @ torch.linalg.inv(omega)
        log_scale = torch.linalg.det(delta[..., :3, :3]).log() / 3
        turn = so3_log(delta[..., :3, :3] / log_scale.exp()[..., None, None])
        move = _solve(_scaled_integral(turn, log_scale), delta[..., :3, 3])
        return torch.cat([turn, move, log_scale[..., None]], dim=-1)


@dataclass(frozen=True)
class Homography(_MatrixGroup):
    """Plane homographies as (3, 3) matrices of determinant 1, SL(3); chart: the matrix exponential of `hat`.

    xi = (shift x, shift y, turn [rad], log scale, stretch, shear, perspective x, perspective y). `local` takes matrices
    of any scale. It is the principal logarithm: half a turn is out of its reach.
    """

    dof: ClassVar[int] = 8
    shape: ClassVar[tuple[int, ...]] = (3, 3)

    @staticmethod
    def hat(xi: Tensor) -> Tensor:
        """xi (..., 8) as a traceless matrix (..., 3, 3)."""
        x, y, turn, scale, stretch, shear, u, v = xi.unbind(-1)
        rows = [scale / 3 + stretch, shear - turn, x, shear + turn, scale / 3 - stretch, y, u, v, -2 * scale / 3]
        return torch.stack(rows, dim=-1).reshape(*xi.shape[:-1], 3, 3)

    @staticmethod
    def vee(matrix: Tensor) -> Tensor:
        """The inverse of `hat`."""
        (a, b, x), (c, d, y), (u, v, w) = (row.unbind(-1) for row in matrix.unbind(-2))
        return torch.stack([x, y, (c - b) / 2, (a + d) / 2 - w, (a - d) / 2, (b + c) / 2, u, v], dim=-1)

    def retract(self, omega: Tensor, xi: Tensor) -> Tensor:
        _check(self, omega=omega, xi=xi)
        delta: Tensor = torch.linalg.matrix_exp(self.hat(xi))
        return delta @ omega

    def local(self, omega: Tensor, other: Tensor) -> Tensor:
        _check(self, omega=omega, other=other)
        delta = other @ torch.linalg.inv(omega)
        determinant = torch.linalg.det(delta)
        root = determinant.sign() * determinant.abs() ** (1 / 3)
        return self.vee(_matrix_log(delta / root[..., None, None]))


def hat(w: Tensor) -> Tensor:
    """(..., 3) -> the skew-symmetric (..., 3, 3) with hat(w) p = w x p."""
    x, y, z = w.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return torch.stack(rows, dim=-1).reshape(*w.shape[:-1], 3, 3)


def vee(matrix: Tensor) -> Tensor:
    """The inverse of `hat`: (..., 3) from the antisymmetric part of (..., 3, 3)."""
    m = (matrix - matrix.mT) / 2
    return torch.stack([m[..., 2, 1], m[..., 0, 2], m[..., 1, 0]], dim=-1)


def so3_exp(w: Tensor) -> Tensor:
    """Rotation (..., 3, 3) by |w| [rad] about w (..., 3): Rodrigues' formula."""
    return _rotation(_rodrigues(w.square().sum(-1)), w)


def so3_log(rotation: Tensor) -> Tensor:
    """The rotation vector (..., 3), at most pi long [rad], of (..., 3, 3); accurate from 0 to pi.

    By way of the unit quaternion (w, v), read from the largest of its components (Shepperd, 1978): unlike the trace,
    it keeps all digits near 0 and near pi.
    """
    r = rotation
    trace, diagonal = r.diagonal(dim1=-2, dim2=-1).sum(-1), r.diagonal(dim1=-2, dim2=-1)
    twist = 2 * vee(r)
    corner = (1 + trace)[..., None, None]
    block = r + r.mT + torch.diag_embed((1 - trace)[..., None].expand_as(diagonal))
    outer = torch.cat(  # 4 q q^T for q = (w, v)
        [torch.cat([corner, twist[..., None, :]], dim=-1), torch.cat([twist[..., :, None], block], dim=-1)], dim=-2
    )
    largest = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    q = torch.take_along_dim(outer, largest, dim=-2)[..., 0, :]
    q = torch.where(q[..., :1] < 0, -q, q)
    q = q / q.square().sum(-1, keepdim=True).sqrt()
    w, v2 = q[..., 0], q[..., 1:].square().sum(-1)
    small = v2 < 0.01
    length = torch.where(small, 1.0, v2).sqrt()
    u = torch.where(small, v2 / torch.where(small, w, 1.0).square(), 0.0)
    series = sum((-u) ** n / (2 * n + 1) for n in range(9)) / torch.where(small, w, 1.0)  # atan(|v| / w) / |v|
    half_angle = torch.where(small, series, torch.atan2(length, w) / length)
    return 2 * half_angle[..., None] * q[..., 1:]


def invert_rigid(transformation: Tensor) -> Tensor:
    """The inverse of rigid (..., 4, 4) matrices: R^T, -R^T t."""
    rotation = transformation[..., :3, :3].mT
    return _affine(rotation, -_apply(rotation, transformation[..., :3, 3]))


def check_rigid(transformation: Any, argument: str, *, with_scaling: bool = False) -> NDArray[np.float64]:
    """`transformation` as a (4, 4) float64 array, or `InputError` that says what is wrong with it and the remedy.

    The rotation's rows have to be orthonormal to 1e-5, which numbers printed with six digits are. `with_scaling` lets a
    positive common scale pass.
    """
    given = transformation.detach().cpu().numpy() if isinstance(transformation, Tensor) else transformation
    try:
        matrix = np.array(given, dtype=np.float64)
    except (TypeError, ValueError) as cause:
        raise InputError(argument, type(transformation).__name__, "a 4 x 4 matrix of numbers") from cause
    if matrix.shape != (4, 4):
        raise InputError(argument, f"shape {matrix.shape}", "a 4 x 4 matrix, T_target_source")
    if not np.isfinite(matrix).all():
        raise InputError(argument, f"{(~np.isfinite(matrix)).sum()} entries that are NaN or infinite", "finite numbers")
    if not np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-9):
        transposed = np.allclose(matrix[:, 3], [0, 0, 0, 1], atol=1e-9)
        remedy = "; this one is written for row vectors: give its transpose" if transposed else ""
        raise InputError(argument, f"the last row {matrix[3].tolist()}", f"the last row [0, 0, 0, 1]{remedy}")
    linear = matrix[:3, :3]
    determinant = float(np.linalg.det(linear))
    if determinant <= 0:
        what = "a reflection" if determinant < 0 else "a projection"
        raise InputError(argument, f"{what} (determinant {determinant:.6g})", "a rotation, of determinant +1")
    scale = determinant ** (1 / 3) if with_scaling else 1.0
    error = float(np.abs(linear @ linear.T / scale**2 - np.eye(3)).max())
    if error > 1e-5:
        lengths = np.linalg.norm(linear, axis=0)
        scaled = np.ptp(lengths) < 1e-5 * lengths[0] and abs(lengths[0] - 1) > 1e-5
        remedy = (
            f"it holds a scale of {lengths[0]:.6g}: divide by it, or ask for with_scaling"
            if scaled
            else "replace it by U V^T of its singular value decomposition if it should be one"
        )
        raise InputError(argument, f"a matrix that is {error:.2g} away from a rotation", f"R R^T = I; {remedy}")
    return matrix


def _check(manifold: Manifold, **arguments: Tensor) -> None:
    for name, given in arguments.items():
        shape = (manifold.dof,) if name == "xi" else manifold.shape
        if given.shape[-len(shape) :] != shape:
            raise InputError(name, f"shape {tuple(given.shape)}", f"(..., {', '.join(map(str, shape))}) for {manifold}")


def _affine(linear: Tensor, translation: Tensor) -> Tensor:
    """(..., 3, 3) and (..., 3) -> (..., 4, 4)."""
    top = torch.cat([linear, translation[..., None]], dim=-1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = 1
    return torch.cat([top, bottom], dim=-2)


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
    solution: Tensor = torch.linalg.solve(matrix, vector[..., None])[..., 0]
    return solution


def _quadratic(a: Tensor | float, b: Tensor, c: Tensor, w: Tensor) -> Tensor:
    """a I + b W + c W^2 with W = hat(w); a, b, c (...)."""
    matrix = hat(w)
    one = torch.eye(3, dtype=w.dtype, device=w.device)
    identity = one * a if isinstance(a, float) else one * a[..., None, None]
    return identity + b[..., None, None] * matrix + c[..., None, None] * (matrix @ matrix)


def _rotation(coefficients: Tensor, w: Tensor) -> Tensor:
    return _quadratic(1.0, coefficients[..., 0], coefficients[..., 1], w)


def _integral(coefficients: Tensor, w: Tensor) -> Tensor:
    """V (..., 3, 3) = the integral of exp(s hat(w)) over s in [0, 1], which turns velocity into translation."""
    return _quadratic(1.0, coefficients[..., 1], coefficients[..., 2], w)


def _rodrigues(x: Tensor) -> Tensor:
    """(sin(t) / t, (1 - cos t) / t^2, (t - sin t) / t^3) at x = t^2: (...) -> (..., 3)."""
    small = x < 0.25
    near, t = torch.where(small, x, 0.0)[..., None], torch.where(small, 1.0, x).sqrt()
    far = [t.sin() / t, 2 * (t / 2).sin().square() / t.square(), (t - t.sin()) / t**3]
    series = torch.zeros_like(near)
    for row in torch.as_tensor(_TAYLOR, dtype=x.dtype, device=x.device):
        series = row - near * series
    return torch.where(small[..., None], series, torch.stack(far, dim=-1))


# 1 / (2n + k)!, k = 1, 2, 3, n falling to 0: with alternating signs, exact in float64 for t^2 < 0.25
_TAYLOR = [[1 / math.factorial(2 * n + k) for k in (1, 2, 3)] for n in reversed(range(8))]


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


def _scaled_integral(w: Tensor, log_scale: Tensor) -> Tensor:
    """The integral of exp(s (hat(w) + log_scale I)) over s in [0, 1].

    The closed form is 0/0 along three different limits; Gauss and Legendre's 16 points are exact in float64 as long as
    |(w, log_scale)| < 12, which no chart leaves, and smooth everywhere.
    """
    s = torch.as_tensor((_NODES + 1) / 2, dtype=w.dtype, device=w.device)
    weight = torch.as_tensor(_WEIGHTS / 2, dtype=w.dtype, device=w.device) * (log_scale[..., None] * s).exp()
    sine, cosine, _ = _rodrigues(w.square().sum(-1, keepdim=True) * s.square()).unbind(-1)
    return _quadratic(weight.sum(-1), (weight * s * sine).sum(-1), (weight * s.square() * cosine).sum(-1), w)


def _euler_to_rotation(angles: Tensor) -> Tensor:
    """Rz(angles_2) Ry(angles_1) Rx(angles_0)."""
    (sx, sy, sz), (cx, cy, cz) = angles.sin().unbind(-1), angles.cos().unbind(-1)
    rows = [
        cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx,
        sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx,
        -sy, cy * sx, cy * cx,
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(*angles.shape[:-1], 3, 3)


def rotation_to_euler(r: Tensor) -> Tensor:
    """Angles (..., 3) about the fixed axes x, y, z in turn, R = Rz Ry Rx: the inverse of `_euler_to_rotation`.

    The middle angle is in [-pi/2, pi/2]; at its ends, angles_2 = 0.
    """
    cosine2 = r[..., 0, 0].square() + r[..., 1, 0].square()
    locked = cosine2 < 1e-14
    cosine = torch.where(locked, 1.0, cosine2).sqrt()
    one = torch.ones_like(cosine)
    y = torch.atan2(-r[..., 2, 0], torch.where(locked, 0.0, cosine))
    x = torch.atan2(torch.where(locked, -r[..., 1, 2], r[..., 2, 1]), torch.where(locked, r[..., 1, 1], r[..., 2, 2]))
    z = torch.atan2(torch.where(locked, 0.0, r[..., 1, 0]), torch.where(locked, one, r[..., 0, 0]))
    return torch.stack([x, y, z], dim=-1)


def _matrix_log(matrix: Tensor) -> Tensor:
    """Principal logarithm (..., n, n) by inverse scaling and squaring (Higham, Functions of Matrices, 2008, ch. 6, 11).

    Fixed numbers of square roots and terms keep it differentiable, at the identity too. NaN where there is none.
    """
    one = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    roots = 5
    for k in range(roots):
        matrix = _matrix_sqrt(matrix, 12 if k == 0 else 6)
    x: Tensor = torch.linalg.solve(matrix + one, matrix - one)
    x2 = x @ x
    total = torch.zeros_like(x)
    for n in reversed(range(8)):
        total = one / (2 * n + 1) + x2 @ total
    return 2.0 ** (roots + 1) * x @ total


def _matrix_sqrt(matrix: Tensor, steps: int) -> Tensor:
    """Denman and Beavers' iteration, in product form (Higham 2008, eq. 6.29)."""
    one = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    product, root = matrix, matrix
    for _ in range(steps):
        inverse = torch.linalg.inv(product)
        root = root @ (one + inverse) / 2
        product = (one + (product + inverse) / 2) / 2
    return root
