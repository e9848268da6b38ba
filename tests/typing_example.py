"""Use from outside, for type checkers and to run: `mypy --strict` and `pyright` hold every assertion of a type here.

`packaging/check.sh` copies this file away from the repository and gives it an installed wheel.
"""

import sys

import numpy as np
import numpy.typing as npt
import torch

import dlc_reg
from dlc_reg import ops
from dlc_reg.manifold import SE3
from dlc_reg.pipelines import registration as reg

if sys.version_info >= (3, 11):
    from typing import assert_type
else:
    from typing_extensions import assert_type

source, target = dlc_reg.sample_pair()
result = dlc_reg.register(source, target)
assert_type(result, dlc_reg.RegistrationResult)
assert_type(result.verdict, dlc_reg.Verdict | None)
assert_type(result.verdict_reasons, list[str])
assert_type(result.transformation, npt.NDArray[np.float64])
assert result.verdict == "aligned", result

learned = dlc_reg.register(source, target, method="learned")
assert_type(learned.fitness, float)
model: torch.nn.Module = dlc_reg.load_model("softicp")
turn = learned.transformation[:3, :3].T @ result.transformation[:3, :3]
assert np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))) < 5, learned

try:
    dlc_reg.register(source, target, method="no such method")
except dlc_reg.InputError as error:
    assert_type(error.argument, str)
    assert error.argument == "method"
else:
    raise AssertionError("a method that does not exist was taken")

cloud = dlc_reg.PointCloud.from_any(target)
assert_type(cloud, dlc_reg.PointCloud)
distances, indices = ops.knn(cloud.points, cloud.points, 1)
assert_type(SE3().retract(torch.eye(4), torch.zeros(6)), torch.Tensor)

icp = reg.registration_icp(
    dlc_reg.PointCloud.from_any(source),
    cloud.with_normals(),
    0.02,
    result.transformation,
    reg.TransformationEstimationPointToPlane(),
)
print(f"fitness {icp.fitness:.3f}, inlier RMSE {icp.inlier_rmse:.2g}, {result.verdict}")
