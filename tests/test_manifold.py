"""Manifolds against independent truth: the matrix exponential, SciPy's rotations, finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.spatial.transform import Rotation
from torch.autograd import gradcheck, gradgradcheck

from dlc_reg.errors import InputError
from dlc_reg.manifold import SE3, Euclidean, Homography, Sim3, check_rigid, hat, invert_rigid, so3_exp, so3_log, vee

MANIFOLDS = [Euclidean(5), SE3(), SE3(chart="euler"), Sim3(), Homography()]
ids = [str(m) for m in MANIFOLDS]
finite = st.floats(-1, 1, allow_nan=False, width=64)


def tangent(seed: int, dof: int, size: float, batch: tuple[int, ...] = ()) -> torch.Tensor:
    return size * torch.randn(*batch, dof, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def generator_se3(xi: np.ndarray) -> np.ndarray:
    """hat of se(3) and, with a seventh entry, of sim(3), written out by hand."""
    (a, b, c), t = xi[:3], xi[3:6]
    scale = xi[6] if len(xi) == 7 else 0.0
    return np.array([[scale, -c, b, t[0]], [c, scale, -a, t[1]], [-b, a, scale, t[2]], [0, 0, 0, 0]])


def generator_sl3(xi: np.ndarray) -> np.ndarray:
    x, y, turn, scale, stretch, shear, u, v = xi
    return np.array(
        [[scale / 3 + stretch, shear - turn, x], [shear + turn, scale / 3 - stretch, y], [u, v, -2 * scale / 3]]
    )


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-5, 0.1, 0.28, 0.3, 1.0, 2.0])
@pytest.mark.parametrize(
    ("manifold", "generator"), [(SE3(), generator_se3), (Sim3(), generator_se3), (Homography(), generator_sl3)]
)
def test_exp_is_the_matrix_exponential(manifold, generator, size):
    xi = tangent(1, manifold.dof, size, (20,))
    ours = manifold.retract(manifold.identity(), xi)
    generators = torch.from_numpy(np.stack([generator(x) for x in xi.numpy()]))
    theirs = torch.linalg.matrix_exp(generators)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(ours, np.stack([expm(g) for g in generators.numpy()]), rtol=1e-11, atol=1e-13)


def test_update_is_on_the_left():
    for manifold in (SE3(), SE3(chart="euler"), Sim3(), Homography()):
        omega = manifold.retract(manifold.identity(), tangent(2, manifold.dof, 0.5))
        xi = tangent(3, manifold.dof, 0.5)
        expected = manifold.retract(manifold.identity(), xi) @ omega
        torch.testing.assert_close(manifold.retract(omega, xi), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=ids)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_local_inverts_retract(manifold, data, seed):
    xi = torch.tensor(data.draw(st.lists(finite, min_size=manifold.dof, max_size=manifold.dof)), dtype=torch.float64)
    omega = manifold.retract(manifold.identity(), tangent(seed, manifold.dof, 0.5))
    torch.testing.assert_close(manifold.local(omega, manifold.retract(omega, xi)), xi, rtol=1e-10, atol=1e-11)


@given(st.lists(finite, min_size=3, max_size=3), st.floats(0, math.pi - 1e-6))
def test_rotation_logarithm_keeps_all_digits(axis, angle):
    axis = np.array([axis[0], axis[1], axis[2] + 2])
    w = torch.from_numpy(axis / np.linalg.norm(axis) * angle)
    torch.testing.assert_close(so3_log(so3_exp(w)), w, rtol=1e-14, atol=2e-15)


def test_rotation_logarithm_against_scipy_and_at_half_a_turn():
    rotations = Rotation.random(200, random_state=0)
    ours = so3_log(torch.from_numpy(rotations.as_matrix()))
    np.testing.assert_allclose(ours, rotations.as_rotvec(), atol=1e-13)
    for axis in np.eye(3):
        half = torch.from_numpy(Rotation.from_rotvec(np.pi * axis).as_matrix())
        np.testing.assert_allclose(so3_log(half).abs(), np.pi * axis, atol=1e-15)


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=ids)
def test_shapes_broadcast_and_dtypes_stay(manifold):
    omega = manifold.identity((4, 1), dtype=torch.float32)
    reached = manifold.retract(omega, tangent(4, manifold.dof, 0.3, (3,)).float())
    assert reached.shape == (4, 3, *manifold.shape) and reached.dtype == torch.float32
    xi = manifold.local(omega, reached)
    assert xi.shape == (4, 3, manifold.dof) and xi.dtype == torch.float32
    torch.testing.assert_close(xi[2], tangent(4, manifold.dof, 0.3, (3,)).float(), rtol=1e-4, atol=1e-5)
    single = manifold.retract(manifold.identity(dtype=torch.float32), tangent(4, manifold.dof, 0.3, (3,)).float()[1])
    torch.testing.assert_close(single, reached[0, 1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-5, 0.3, 2.0])
@pytest.mark.parametrize("manifold", MANIFOLDS, ids=ids)
def test_gradients(manifold, size):
    size = min(size, 1.0) if isinstance(manifold, Homography) else size
    omega = manifold.retract(manifold.identity(), tangent(5, manifold.dof, 0.4))
    xi = (size * torch.nn.functional.normalize(tangent(6, manifold.dof, 1.0), dim=0)).requires_grad_()
    reached = manifold.retract(omega, xi.detach()).requires_grad_()
    assert gradcheck(lambda x: manifold.retract(omega, x), xi, check_forward_ad=True)
    assert gradgradcheck(lambda x: manifold.retract(omega, x), xi)
    assert gradcheck(lambda x: manifold.local(omega, manifold.retract(omega, x)), xi)
    assert gradcheck(lambda o: manifold.local(omega, o), reached)


def test_gradient_of_the_logarithm_near_half_a_turn():
    w = torch.tensor([0.6, -0.64, 0.48], dtype=torch.float64)
    w = (w * (math.pi - 1e-3)).requires_grad_()
    assert gradcheck(lambda x: so3_log(so3_exp(x)), w, eps=1e-7)


@pytest.mark.parametrize("derivative", [torch.func.jacfwd, torch.func.jacrev])
def test_the_logarithm_has_its_derivative_at_the_identity(derivative):
    found = derivative(lambda w: so3_log(so3_exp(w)))(torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(found, torch.eye(3, dtype=torch.float64))


def test_tangent_at_the_truth_is_the_derivative():
    """d/ds retract(omega, s xi) at 0 is hat(xi) omega: the charts agree to first order."""
    xi, step = tangent(7, 6, 1.0), 1e-6
    omega = SE3().retract(SE3().identity(), tangent(8, 6, 0.5))
    expected = torch.from_numpy(generator_se3(xi.numpy())) @ omega
    for chart in ("exp", "euler"):
        slope = (SE3(chart).retract(omega, step * xi) - SE3(chart).retract(omega, -step * xi)) / (2 * step)
        torch.testing.assert_close(slope, expected, rtol=1e-8, atol=1e-9)


@given(st.lists(st.floats(-3.1, 3.1), min_size=3, max_size=3))
def test_euler_chart_is_open3ds(angles):
    """Rz(c) Ry(b) Rx(a), as a product written by hand and as SciPy's extrinsic xyz."""
    a, b, c = angles
    rx = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    ry = [[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]]
    rz = [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]]
    xi = torch.tensor([a, b, c, 1.0, 2.0, 3.0], dtype=torch.float64)
    delta = SE3(chart="euler").retract(SE3().identity(), xi)
    np.testing.assert_allclose(delta[:3, :3], np.array(rz) @ ry @ rx, atol=1e-15)
    np.testing.assert_allclose(delta[:3, :3], Rotation.from_euler("xyz", angles).as_matrix(), atol=1e-15)
    assert delta[:3, 3].tolist() == [1.0, 2.0, 3.0]  # the translation is not turned
    back = SE3(chart="euler").local(SE3().identity(), delta)
    np.testing.assert_allclose(SE3(chart="euler").retract(SE3().identity(), back), delta, atol=1e-14)


@pytest.mark.parametrize("sign", [1, -1])
def test_euler_chart_at_gimbal_lock(sign):
    chart = SE3(chart="euler")
    xi = torch.tensor([0.3, sign * math.pi / 2, -0.5, 0, 0, 0], dtype=torch.float64)
    locked = chart.retract(chart.identity(), xi)
    back = chart.local(chart.identity(), locked)
    torch.testing.assert_close(chart.retract(chart.identity(), back), locked, rtol=0, atol=1e-8)
    assert back[2] == 0


def test_homography_ignores_the_matrix_scale():
    h = Homography()
    omega = h.retract(h.identity(), tangent(9, 8, 0.2))
    other = h.retract(h.identity(), tangent(10, 8, 0.2))
    for scale in (7.0, -0.1):
        torch.testing.assert_close(h.local(omega, scale * other), h.local(omega, other), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(h.vee(h.hat(tangent(11, 8, 1.0))), tangent(11, 8, 1.0))
    assert torch.linalg.det(omega).item() == pytest.approx(1, abs=1e-13)


def test_homography_logarithm_of_a_far_one():
    """Nearly half a turn, with a threefold scale: square roots take their time there."""
    h = Homography()
    xi = torch.tensor([0.5, -0.3, 3.0, 1.0, 0.1, -0.1, 0.05, 0.02], dtype=torch.float64)
    torch.testing.assert_close(h.local(h.identity(), h.retract(h.identity(), xi)), xi, rtol=0, atol=1e-11)


def test_sim3_scales_points():
    xi = torch.tensor([0, 0, math.pi / 2, 0, 0, 0, math.log(3)], dtype=torch.float64)
    moved = Sim3().retract(Sim3().identity(), xi) @ torch.tensor([1.0, 0, 0, 1], dtype=torch.float64)
    torch.testing.assert_close(moved, torch.tensor([0, 3.0, 0, 1], dtype=torch.float64))


def test_small_helpers():
    w, p = tangent(12, 3, 1.0), tangent(13, 3, 1.0)
    torch.testing.assert_close(hat(w) @ p, torch.linalg.cross(w, p))
    assert torch.equal(vee(hat(w)), w)
    T = SE3().retract(SE3().identity(), tangent(14, 6, 1.0, (5,)))
    torch.testing.assert_close(invert_rigid(T), torch.linalg.inv(T), rtol=1e-12, atol=1e-13)


def test_wrong_shapes_are_named():
    with pytest.raises(InputError, match=r"xi: got shape \(7,\); expected \(\.\.\., 6\)"):
        SE3().retract(SE3().identity(), torch.zeros(7))
    with pytest.raises(InputError, match=r"omega: got shape \(3, 3\); expected \(\.\.\., 4, 4\)"):
        Sim3().local(torch.eye(3), torch.eye(4))
    with pytest.raises(InputError, match="chart"):
        SE3(chart="quaternion")  # type: ignore[arg-type]


def rigid(scale: float = 1.0) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = scale * Rotation.from_euler("xyz", [0.1, 0.2, 0.3]).as_matrix()
    T[:3, 3] = [1, 2, 3]
    return T


def test_check_rigid_lets_rigid_motions_pass():
    T = rigid()
    assert np.array_equal(check_rigid(T.tolist(), "init"), T)
    assert np.array_equal(check_rigid(torch.from_numpy(T), "init"), T)
    assert check_rigid(np.round(T, 6), "init") is not T
    assert np.array_equal(check_rigid(rigid(2.0), "init", with_scaling=True), rigid(2.0))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.eye(3), r"shape \(3, 3\)"),
        ("nonsense", "4 x 4 matrix of numbers"),
        (rigid() * np.nan, "NaN or infinite"),
        (rigid().T, "row vectors: give its transpose"),
        (np.diag([1.0, 1, 1, 2]), "last row"),
        (np.diag([1.0, 1, -1, 1]), "reflection"),
        (np.diag([1.0, 1, 0, 1]), "projection"),
        (rigid(1.001), "scale of 1.001"),
        (np.diag([1.0, 1.1, 1, 1]), "singular value decomposition"),
    ],
)
def test_check_rigid_says_what_is_wrong(bad, message):
    with pytest.raises(InputError, match=message) as caught:
        check_rigid(bad, "init")
    assert caught.value.argument == "init"
