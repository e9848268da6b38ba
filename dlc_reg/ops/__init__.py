"""Stateless operators over points: the only door to the native core.

They take torch tensors or NumPy arrays and return the same kind on the same device. `_reference.py` holds a readable
twin of each in plain torch. Those with PyTorch3D's names (`knn_points` and so on) take tensors, by its rules.

CUDA graphs can capture `knn`, `SearchIndex.knn`, `estimate_normals` and `estimate_covariances` for up to 64 neighbours,
`knn_batch`, `neighbour_normals`, `morton_order`, `linearize`, `icp_batch` and `soft_assignment`; values are not checked
there. They cannot capture `radius_search`, `SearchIndex.radius`, `voxel_groups` and `voxel_downsample`, whose answers
are as long as the data makes them, nor what works on the host: `fpfh`, `signatures`, `intensity_gradients`,
`nearest_features`, `mutual_matches`, `propose_poses`, `judge_poses` and `refine_poses`.
"""

try:
    from dlc_reg._core import simd_level
except ImportError as error:
    raise ImportError(
        f"dlc_reg's native module cannot be imported ({error}). Install the package (`pip install .` in the checkout, "
        "which needs a C++17 compiler); a bare source tree on the path does not have it."
    ) from error

from dlc_reg.ops._assignment import soft_assignment
from dlc_reg.ops._assignment_problem import Affinity
from dlc_reg.ops._cuda import has_kernels
from dlc_reg.ops._cuda import state as cuda_state
from dlc_reg.ops._hypotheses import (
    Judgement,
    Surface,
    fpfh,
    judge_poses,
    mutual_matches,
    nearest_features,
    propose_poses,
    refine_poses,
    signatures,
)
from dlc_reg.ops._icp_batch import BatchResult, icp_batch
from dlc_reg.ops._knn_batch import knn_batch, neighbour_normals
from dlc_reg.ops._linearize import KERNELS, KINDS, Linearization, Moments, SearchMemory, linearize
from dlc_reg.ops._neighbourhoods import (
    estimate_covariances,
    estimate_normals,
    intensity_gradients,
    morton_order,
    voxel_downsample,
    voxel_groups,
)
from dlc_reg.ops._pytorch3d import KNN, ball_query, knn_gather, knn_points, sample_farthest_points
from dlc_reg.ops._pytorch3d_alignment import (
    ICPSolution,
    SimilarityTransform,
    chamfer_distance,
    corresponding_points_alignment,
    iterative_closest_point,
)
from dlc_reg.ops._search import SearchIndex, knn, radius_search

__all__ = [
    "KERNELS",
    "KINDS",
    "KNN",
    "Affinity",
    "BatchResult",
    "ICPSolution",
    "Judgement",
    "Linearization",
    "Moments",
    "SearchIndex",
    "SearchMemory",
    "SimilarityTransform",
    "Surface",
    "ball_query",
    "chamfer_distance",
    "corresponding_points_alignment",
    "cuda_state",
    "estimate_covariances",
    "estimate_normals",
    "fpfh",
    "has_kernels",
    "icp_batch",
    "intensity_gradients",
    "iterative_closest_point",
    "judge_poses",
    "knn",
    "knn_batch",
    "knn_gather",
    "knn_points",
    "linearize",
    "morton_order",
    "mutual_matches",
    "nearest_features",
    "neighbour_normals",
    "propose_poses",
    "radius_search",
    "refine_poses",
    "sample_farthest_points",
    "signatures",
    "simd_level",
    "soft_assignment",
    "voxel_downsample",
    "voxel_groups",
]
