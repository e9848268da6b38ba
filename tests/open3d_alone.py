"""RANSAC on FPFH by Open3D alone, without a line of dlc_reg: what `tools/evaluate.py --method ransac` must reproduce.

    OMP_NUM_THREADS=1 python tests/open3d_alone.py FRAGMENTS.npz [--benchmark 3dmatch] [--pairs 100] [--seed 0]

Prints a line a pair, its clouds and 16 numbers of the pose, then the shares within 15 degrees and 0.3 m, and below
0.2 m by Redwood's rule where fragments are not consecutive, over all pairs.
"""

from __future__ import annotations

import argparse

import numpy as np
import open3d as o3d
from scipy.spatial.transform import Rotation

VOXEL = 0.05


def features(points):
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points)).voxel_down_sample(VOXEL)
    cloud.estimate_normals(o3d.geometry.KDTreeSearchParamHybrid(2 * VOXEL, 30))
    near = o3d.geometry.KDTreeSearchParamHybrid(5 * VOXEL, 100)
    return cloud, o3d.pipelines.registration.compute_fpfh_feature(cloud, near)


def register(source, target):
    r = o3d.pipelines.registration
    (a, fa), (b, fb) = features(source), features(target)
    o3d.utility.random.seed(0)
    checks = [r.CorrespondenceCheckerBasedOnEdgeLength(0.9), r.CorrespondenceCheckerBasedOnDistance(1.5 * VOXEL)]
    start = r.registration_ransac_based_on_feature_matching(
        a, b, fa, fb, True, 1.5 * VOXEL, r.TransformationEstimationPointToPoint(False), 3, checks,
        r.RANSACConvergenceCriteria(100000, 0.999),
    )  # fmt: skip
    plane = r.TransformationEstimationPointToPlane()
    return r.registration_icp(a, b, 1.5 * VOXEL, start.transformation, plane).transformation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--benchmark", default="3dmatch")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data = dict(np.load(options.data))
    offsets, scale = data["offsets"], float(data["scale"])
    pairs, truths, weights = (data[f"{options.benchmark}_{what}"] for what in ("pairs", "T", "info"))
    right, redwood = [], []
    for row in np.random.default_rng(options.seed).permutation(len(pairs))[: options.pairs]:
        target, source = (data["points_q"][offsets[k] : offsets[k + 1]].astype(float) * scale for k in pairs[row])
        pose = register(source, target)
        print(*pairs[row], *(f"{x:.9g}" for x in pose.ravel()), flush=True)
        delta = np.linalg.inv(truths[row]) @ pose
        turn = Rotation.from_matrix(delta[:3, :3])
        shift = np.linalg.norm(pose[:3, 3] - truths[row][:3, 3])
        right.append(np.degrees(turn.magnitude()) < 15 and shift < 0.3)
        i, j = data["fragment"][pairs[row]]
        if j != i + 1:
            x = np.r_[delta[:3, 3], turn.as_quat(canonical=True)[:3]]
            redwood.append(np.sqrt(x @ weights[row] @ x / weights[row][0, 0]) < 0.2)
    print(f"recall {np.mean(right):.4f} of {len(right)}, Redwood {np.mean(redwood):.4f} of {len(redwood)}")


if __name__ == "__main__":
    main()
