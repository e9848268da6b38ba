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
def intensity_gradients(
    tree: KdTree,
    intensities: int,
    normals: int,
    k: int,
    max_distance: float,
    intensities_and_gradients: int,
    num_threads: int,
) -> None: ...
def normals_of_rows(
    points: int, m: int, rows: int, batch: int, n: int, k: int, normals: int, num_threads: int
) -> None: ...
def knn_batch(
    queries: int,
    query_mask: int,
    n: int,
    points: int,
    points_mask: int,
    m: int,
    batch: int,
    k: int,
    max_distance: float,
    distances: int,
    indices: int,
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
    source_intensities: int,
    target_intensities: int,
    lambda_geometric: float,
    transform: int,
    max_distance: float,
    kernel: int,
    kernel_parameter: float,
    search: bool,
    indices: int,
    distances: int,
    memory: int,
    sums: int,
    num_threads: int,
    /,
) -> None: ...
def search_memory_bytes(n: int, /) -> int: ...

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
def signature_size(oriented: bool, /) -> int: ...
def signatures(
    tree: KdTree,
    points: int,
    normals: int,
    n: int,
    radius: float,
    oriented: bool,
    signatures: int,
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
    poses: int,
    sharpness: int,
    outlier: int,
    source_weight: int,
    target_weight: int,
    affinity: int,
    target_features: int,
    source_bias: int,
    target_bias: int,
    channels: int,
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

class IcpBatch:
    def __init__(
        self,
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
        /,
    ) -> None: ...
    def run(self, num_threads: int, /) -> None: ...

# --- CUDA (csrc/cuda): addresses of device memory; only where CUDA_BUILT ---

CUDA_BUILT: bool
CUDA_EMULATED: bool
"""The kernels run on the host, over host memory: a build for tests."""
CUDA_MAX_NEIGHBOURS: int
CUDA_MAX_RAGGED_NEIGHBOURS: int

def cuda_device_count() -> int: ...
def cuda_why_no_device() -> str: ...
def cuda_sort_bytes(n: int, /) -> int: ...
def cuda_tree_bytes(n: int, /) -> int: ...
def cuda_morton_order(
    device: int, stream: int, points: int, n: int, bits: int, order: int, memory: int, bytes: int, /
) -> None: ...
def cuda_build_tree(device: int, stream: int, points: int, n: int, out: int, memory: int, bytes: int, /) -> None: ...
def cuda_knn(
    device: int,
    stream: int,
    memory: int,
    n: int,
    queries: int,
    order: int,
    m: int,
    k: int,
    max_distance: float,
    distances: int,
    indices: int,
    /,
) -> None: ...
def cuda_knn_ragged(
    device: int,
    stream: int,
    points: int,
    point_splits: int,
    queries: int,
    query_splits: int,
    batch: int,
    longest: int,
    k: int,
    max_distance: float,
    distances: int,
    indices: int,
    /,
) -> None: ...
def cuda_radius_count(
    device: int, stream: int, memory: int, n: int, queries: int, order: int, m: int, radius: float, counts: int, /
) -> None: ...
def cuda_radius_fill(
    device: int,
    stream: int,
    memory: int,
    n: int,
    queries: int,
    order: int,
    m: int,
    radius: float,
    splits: int,
    keys: int,
    distances: int,
    indices: int,
    /,
) -> None: ...
def cuda_normals(
    device: int,
    stream: int,
    memory: int,
    points: int,
    order: int,
    n: int,
    k: int,
    max_distance: float,
    normals: int,
    covariances: int,
    /,
) -> None: ...
def cuda_normals_of_rows(
    device: int, stream: int, points: int, m: int, rows: int, batch: int, n: int, k: int, normals: int, /
) -> None: ...
def cuda_voxel_order(
    device: int,
    stream: int,
    points: int,
    n: int,
    origin: tuple[float, float, float],
    voxel_size: float,
    codes: int,
    order: int,
    memory: int,
    bytes: int,
    /,
) -> None: ...
def cuda_voxel_means(
    device: int, stream: int, points: int, n: int, order: int, starts: int, voxels: int, inverse: int, means: int, /
) -> None: ...
def cuda_linearize_partials(n: int, /) -> int: ...
def cuda_linearize(
    device: int,
    stream: int,
    kind: int,
    source: int,
    source_normals: int,
    source_covariances: int,
    n: int,
    memory: int,
    m: int,
    target: int,
    target_normals: int,
    target_covariances: int,
    source_intensities: int,
    target_intensities: int,
    lambda_geometric: float,
    host_transform: int,
    transform: int,
    max_distance: float,
    kernel: int,
    kernel_parameter: float,
    indices: int,
    distances: int,
    partials: int,
    finished: int,
    sums: int,
    /,
) -> None: ...
def cuda_icp_batch_bytes(batch: int, n: int, m: int, /) -> int: ...
def cuda_icp_batch(device: int, stream: int, batch: IcpBatch, scratch: int, /) -> None: ...

class CudaAssignment:
    def __init__(
        self,
        source: int,
        target: int,
        poses: int,
        sharpness: int,
        outlier: int,
        source_weight: int,
        target_weight: int,
        affinity: int,
        target_features: int,
        source_bias: int,
        target_bias: int,
        channels: int,
        num_poses: int,
        batch: int,
        n: int,
        m: int,
        both_ways: bool,
        strip: int,
        /,
    ) -> None: ...
    def bytes(self, moments: bool, /) -> int: ...
    def gradient_bytes(self) -> int: ...
    def parts(self) -> tuple[int, int]: ...
    def sweep(self, device: int, stream: int, moments: bool, affinity: int, first: int, scratch: int, /) -> None: ...
    def finish(
        self,
        device: int,
        stream: int,
        energy: int,
        poses_after: int,
        row_logs: int,
        column_logs: int,
        scratch: int,
        /,
    ) -> None: ...
    def gradient(
        self,
        device: int,
        stream: int,
        strip: int,
        first: int,
        weights: int,
        row_logs: int,
        column_logs: int,
        affinity: int,
        rows: int,
        columns: int,
        spread: int,
        centers: int,
        scratch: int,
        /,
    ) -> None: ...
