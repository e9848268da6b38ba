"""The native module (csrc/bindings). Addresses are `data_ptr()`s of contiguous host memory, checked by the caller."""

from collections.abc import Sequence

LINEARIZE_SUMS: int

class KdTree:
    def __init__(self, points: int, n: int, num_threads: int) -> None: ...
    @property
    def size(self) -> int: ...
    def knn(
        self,
        queries: int,
        m: int,
        k: int,
        max_distance: float,
        distances: int,
        indices: int,
        num_threads: int,
    ) -> None: ...
    def radius_count(self, queries: int, m: int, radius: float, splits: int, num_threads: int) -> int: ...
    def radius_fill(
        self,
        queries: int,
        m: int,
        radius: float,
        splits: int,
        distances: int,
        indices: int,
        num_threads: int,
    ) -> None: ...

def voxel_downsample(points: int, n: int, voxel_size: float, inverse: int, means: int, num_threads: int) -> int: ...
def normals(
    tree: KdTree,
    points: int,
    n: int,
    k: int,
    max_distance: float,
    normals: int,
    covariances: int,
    num_threads: int,
) -> None: ...
def morton_order(points: int, n: int, order: int, num_threads: int = 0) -> None: ...
def simd_level() -> str: ...
def linearize(
    kind: int,
    source: int,
    source_normals: int,
    source_covariances: int,
    n: int,
    tree: KdTree,
    target: int,
    target_normals: int,
    target_covariances: int,
    transform: int,
    max_distance: float,
    kernel: int,
    kernel_parameter: float,
    search: bool,
    indices: int,
    distances: int,
    sums: int,
    num_threads: int,
    /,
) -> None: ...

class Surface:
    def __init__(self, points: int, normals: int, n: int, cell: float, reach: float, /) -> None: ...
    @property
    def size(self) -> int: ...
    def set_eye(self, eye: Sequence[float], bin_angle: float, /) -> None: ...

def fpfh(
    tree: KdTree,
    points: int,
    normals: int,
    n: int,
    radius: float,
    oriented: bool,
    features: int,
    num_threads: int,
    /,
) -> None: ...
def nearest_features(
    a: int, n: int, b: int, m: int, size: int, indices: int, squared_distances: int, num_threads: int, /
) -> None: ...
def propose_poses(
    p: int,
    q: int,
    n: int,
    tolerance: float,
    max_seeds: int,
    max_clique: int,
    poses: int,
    support: int,
    num_threads: int,
    /,
) -> int: ...
def judge_poses(
    source: Surface,
    target: Surface,
    poses: int,
    n: int,
    distance: float,
    normal_cosine: float,
    oriented: bool,
    free_margin: float,
    samples: int,
    out: int,
    num_threads: int,
    /,
) -> None: ...
def refine_poses(
    source: Surface,
    target: Surface,
    poses: int,
    n: int,
    iterations: int,
    first_distance: float,
    last_distance: float,
    normal_cosine: float,
    oriented: bool,
    samples: int,
    num_threads: int,
    /,
) -> None: ...
def soft_assignment(
    source: int,
    target: int,
    affinity: int,
    poses: int,
    sharpness: int,
    outlier: int,
    source_weight: int,
    target_weight: int,
    num_poses: int,
    batch: int,
    n: int,
    m: int,
    both_ways: bool,
    energy: int,
    poses_after: int,
    num_threads: int,
    /,
) -> None: ...
def icp_batch(
    kind: int,
    source: int,
    target: int,
    source_mask: int,
    target_mask: int,
    start: int,
    batch: int,
    n: int,
    m: int,
    max_distance: float,
    max_iterations: int,
    tolerance: float,
    neighbours: int,
    poses: int,
    fitness: int,
    rmse: int,
    iterations: int,
    converged: int,
    num_threads: int,
    /,
) -> None: ...
