"""How far an estimated pose is from the true one. Poses are T_target_source (..., 4, 4), torch or NumPy."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.manifold import invert_rigid, rotation_to_euler, so3_log, vee


def rotation_error(estimate: Any, truth: Any) -> Tensor:
    """Angle [rad] (...) of R_truth^T R_estimate, accurate near 0 and near pi, where arccos of the trace is not.

    Called the isotropic rotation error by RPM-Net (Yew and Lee, CVPR 2020) and the relative rotation error elsewhere.
    """
    delta = _pose(truth, "truth")[..., :3, :3].mT @ _pose(estimate, "estimate")[..., :3, :3]
    return torch.atan2(2 * vee(delta).norm(dim=-1), delta.diagonal(dim1=-2, dim2=-1).sum(-1) - 1)


def translation_error(estimate: Any, truth: Any) -> Tensor:
    """|t_estimate - t_truth| (...), in the points' unit.

    It is the length of the translation of T_truth^-1 T_estimate too: RPM-Net's isotropic translation error.
    """
    offset = (_pose(estimate, "estimate") - _pose(truth, "truth"))[..., :3, 3]
    return offset.square().sum(-1).sqrt()


class EulerErrors(NamedTuple):
    """Over all pairs and the three axes: root mean square and mean absolute differences, degrees and points' unit."""

    rotation_rmse_deg: float
    rotation_mae_deg: float
    translation_rmse: float
    translation_mae: float


def euler_errors(estimate: Any, truth: Any, sequence: Literal["zyx", "xyz"] = "zyx") -> EulerErrors:
    """The errors of the tables of DCP and PRNet (Wang and Solomon, ICCV and NeurIPS 2019), of poses (..., 4, 4).

    Euler angles in the sense of SciPy's as_euler(sequence), about fixed axes: "zyx", R = Rx Ry Rz, is what DCP and
    PRNet use for T_target_source; "xyz", R = Rz Ry Rx, what RPM-Net (CVPR 2020) does, whose truth is the inverse of the
    motion it draws. As in their code angles are subtracted as they are, so -179 and 179 degrees differ by 358.
    """
    if sequence not in ("zyx", "xyz"):
        raise InputError("sequence", repr(sequence), "'zyx' or 'xyz'")
    e, t = _pose(estimate, "estimate"), _pose(truth, "truth")
    if not e.numel() or not t.numel():
        raise InputError("estimate, truth", f"shapes {tuple(e.shape)}, {tuple(t.shape)}", "at least one pose")
    angles = torch.rad2deg(_euler_angles(e[..., :3, :3], sequence) - _euler_angles(t[..., :3, :3], sequence))
    moves = (e - t)[..., :3, 3]
    values = [f(x).item() for x in (angles, moves) for f in (_root_mean_square, _mean_absolute)]
    return EulerErrors(*values)


def modified_chamfer(estimate: Any, truth: Any, source: Any, target: Any, clean_target: Any) -> Tensor:
    """RPM-Net's modified Chamfer distance of one pair (Yew and Lee, CVPR 2020, section 6), squared unit of the points.

    Mean over the source (N, 3), moved by the estimate, of the squared distance to the clean target, plus the mean over
    the target (M, 3) of the squared distance to the clean source moved by the estimate. Clean is the whole shape
    without noise or crop: `clean_target` (K, 3) in the target's frame; in the source's it is truth^-1 of that.
    """
    pose, true = _pose(estimate, "estimate"), _pose(truth, "truth")
    if pose.ndim != 2 or true.ndim != 2:
        raise InputError("estimate, truth", f"shapes {tuple(pose.shape)}, {tuple(true.shape)}", "one (4, 4) each")
    s, t, clean = (torch.as_tensor(x, dtype=torch.float64, device=pose.device) for x in (source, target, clean_target))
    there, _ = ops.knn(_move(pose, s), clean)
    back, _ = ops.knn(t, _move(pose @ invert_rigid(true), clean))
    return there.double().square().mean() + back.double().square().mean()


def redwood_rmse(estimate: Any, truth: Any, information: Any) -> Tensor:
    """Root mean square distance (...) of the true correspondences under the estimate, to first order.

    `information` (..., 6, 6) is that of the pair's gt.info file, translation first. With (t, q) the translation and the
    quaternion's vector part of T_truth^-1 T_estimate: sqrt((t, q)^T information (t, q) / information[0, 0]) (Choi, Zhou
    and Koltun, Robust Reconstruction of Indoor Scenes, CVPR 2015; 3DMatch's recall counts values below 0.2 m).
    """
    delta = invert_rigid(_pose(truth, "truth")) @ _pose(estimate, "estimate")
    weights = torch.as_tensor(information, dtype=torch.float64, device=delta.device)
    if weights.shape[-2:] != (6, 6):
        raise InputError("information", f"shape {tuple(weights.shape)}", "(..., 6, 6)")
    w = so3_log(delta[..., :3, :3])
    quaternion = 0.5 * torch.sinc(w.norm(dim=-1, keepdim=True) / (2 * torch.pi)) * w
    x = torch.cat([delta[..., :3, 3], quaternion], dim=-1)[..., None]
    squared: Tensor = (x.mT @ weights @ x)[..., 0, 0] / weights[..., 0, 0]
    return squared.clamp(min=0).sqrt()


def recall(errors: Any, thresholds: Any) -> Tensor:
    """Share of the pairs whose errors all lie below their thresholds.

    `errors` (N,) with `thresholds` (...): one share a threshold. `errors` (N, E), E errors a pair (say rotation and
    translation), with `thresholds` (..., E): one share a row of them. NaN counts as a miss.
    """
    e = torch.as_tensor(errors, dtype=torch.float64)
    t = torch.as_tensor(thresholds, dtype=torch.float64, device=e.device)
    if e.ndim not in (1, 2) or not len(e) or (e.ndim == 2 and t.shape[-1:] != e.shape[1:]):
        raise InputError(
            "errors", f"shape {tuple(e.shape)}, thresholds {tuple(t.shape)}", "(N,) or (N, E) with (..., E)"
        )
    below = e < t[..., None] if e.ndim == 1 else (e < t[..., None, :]).all(-1)
    return below.double().mean(-1)


def inlier_ratio(source: Any, target: Any, truth: Any, distance: float) -> float:
    """Share of putative matches, rows of `source` and `target` (M, 3), that the true pose lays nearer than `distance`.

    In the points' unit; 0 without matches. The feature-matching recall of 3DMatch (Deng, Birdal and Ilic, PPFNet, CVPR
    2018) is the share of pairs where it exceeds 0.05, with 0.1 m.
    """
    s, t = (torch.as_tensor(x, dtype=torch.float64) for x in (source, target))
    if s.ndim != 2 or s.shape[-1:] != (3,) or s.shape != t.shape:
        raise InputError("source, target", f"shapes {tuple(s.shape)}, {tuple(t.shape)}", "(M, 3) both")
    if not len(s):
        return 0.0
    return float(((_move(_pose(truth, "truth"), s) - t).norm(dim=-1) < distance).double().mean())


def mean_over_groups(values: Any, groups: Any) -> float:
    """The mean of the groups' means of `values` (N,), whose groups are named by `groups` (N,): each weighs the same.

    Where 3DMatch's papers say recall they mean this, over scenes, which differ in size; pooled is the plain mean.
    """
    v, names = np.asarray(values, dtype=np.float64), np.asarray(groups)
    if v.ndim != 1 or v.shape != names.shape or not len(v):
        raise InputError("values, groups", f"shapes {v.shape}, {names.shape}", "(N,) both, N at least 1")
    return float(np.mean([v[names == name].mean() for name in np.unique(names)]))


def _pose(pose: Any, argument: str) -> Tensor:
    matrix = torch.as_tensor(pose, dtype=torch.float64)
    if matrix.shape[-2:] != (4, 4):
        raise InputError(argument, f"shape {tuple(matrix.shape)}", "(..., 4, 4)")
    return matrix


def _move(pose: Tensor, points: Tensor) -> Tensor:
    return points @ pose[:3, :3].mT + pose[:3, 3]


def _root_mean_square(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def _mean_absolute(x: Tensor) -> Tensor:
    return x.abs().mean()


def _euler_angles(rotation: Tensor, sequence: str) -> Tensor:
    """Angles (..., 3) [rad] about the fixed axes x, y, z in turn ("xyz"), or z, y, x ("zyx").

    Where the middle one is a quarter turn the last in turn is zero, as in SciPy.
    """
    if sequence == "xyz":
        return rotation_to_euler(rotation)
    return -rotation_to_euler(rotation.flip(-1, -2))  # x and z change places, which mirrors space and turns turns round
