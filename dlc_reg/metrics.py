"""How far an estimated pose is from the true one. Poses are T_target_source (..., 4, 4), torch or NumPy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlc_reg.errors import InputError
from dlc_reg.manifold import invert_rigid, so3_log, vee


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


def _pose(pose: Any, argument: str) -> Tensor:
    matrix = torch.as_tensor(pose, dtype=torch.float64)
    if matrix.shape[-2:] != (4, 4):
        raise InputError(argument, f"shape {tuple(matrix.shape)}", "(..., 4, 4)")
    return matrix
