"""The fused linearisation: against automatic differentiation, Open3D's own steps, and its symmetries."""

import itertools

import numpy as np
import pytest
import torch

from dlc_reg import ops
from dlc_reg.errors import InputError
from dlc_reg.ops import _reference

KINDS = list(ops.KINDS)
KERNELS = ["l2", "l1", "huber", "cauchy", "gm", "tukey"]
SCALE = 0.15  # in the middle of the residuals, so that every branch of every kernel is taken


def rotation(x: float, y: float, z: float) -> torch.Tensor:
    return torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64))


def pose(x: float, y: float, z: float, *translation: float) -> torch.Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = rotation(x, y, z)
    matrix[:3, 3] = torch.tensor(translation)
    return matrix


class Scene:
    """A source whose moved points lie near target points, with normals and covariances for both."""

    def __init__(self, n: int = 400, m: int = 600, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        self.transform = pose(0.3, -0.5, 0.8, 0.4, -0.2, 0.1)
        self.target = torch.randn(m, 3, generator=random)
        offset = 0.2 * torch.randn(n, 3, generator=random)
        moved = self.target[torch.randint(m, (n,), generator=random)] + offset
        back = torch.linalg.inv(self.transform)
        self.source = (moved.double() @ back[:3, :3].T + back[:3, 3]).float()
        self.index = ops.SearchIndex(self.target)
        self.normals = [torch.nn.functional.normalize(torch.randn(c, 3, generator=random)) for c in (n, m)]
        roots = [0.5 * torch.randn(c, 3, 3, generator=random) for c in (n, m)]
        self.covariances = [a @ a.mT + 0.05 * torch.eye(3) for a in roots]
        self.intensities = [torch.rand(n, 1, generator=random), torch.randn(m, 4, generator=random)]

    def linearize(self, kind: str, **options: object) -> ops.Linearization:
        arguments = {
            "max_distance": 0.5,
            "source_normals": self.normals[0],
            "target_normals": self.normals[1],
            "source_covariances": self.covariances[0],
            "target_covariances": self.covariances[1],
            "source_intensities": self.intensities[0],
            "target_intensities": self.intensities[1],
            "lambda_geometric": 0.7,
        }
        return ops.linearize(kind, self.source, self.index, self.transform, **{**arguments, **options})

    def pairs(self, found: ops.Linearization) -> dict[str, object]:
        """The pairs in float64, in the target's frame."""
        used = found.indices >= 0
        at = found.indices[used]
        turn, move = self.transform[:3, :3], self.transform[:3, 3]
        return {
            "p": self.source[used].double() @ turn.T + move,
            "q": self.target[at].double(),
            "source_normals": self.normals[0][used].double() @ turn.T,
            "target_normals": self.normals[1][at].double(),
            "covariances": self.covariances[1][at].double() + turn @ self.covariances[0][used].double() @ turn.T,
            "intensities": (self.intensities[0][used].double(), self.intensities[1][at].double()),
            "lambda_geometric": 0.7,
        }


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", KINDS[1:])
def test_normal_equations_equal_automatic_differentiation(kind: str, kernel: str) -> None:
    scene = Scene()
    found = scene.linearize(kind, kernel=kernel, kernel_parameter=SCALE)
    assert 200 < found.count < 400
    hessian, gradient, cost = _reference.normal_equations(
        kind, kernel=kernel, kernel_parameter=SCALE, **scene.pairs(found)
    )
    torch.testing.assert_close(found.hessian, hessian, rtol=0, atol=1e-12 * float(hessian.abs().max()))
    torch.testing.assert_close(found.gradient, gradient, rtol=0, atol=1e-12 * float(hessian.abs().max()))
    assert found.cost == pytest.approx(float(cost), rel=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_weights_are_derivatives_of_costs(kernel: str) -> None:
    r = torch.linspace(-0.4, 0.4, 82, dtype=torch.float64).requires_grad_()  # neither 0 nor +-SCALE
    _reference.robust_cost(kernel, SCALE, r).sum().backward()
    torch.testing.assert_close(r.grad, (_reference.robust_weight(kernel, SCALE, r) * r).detach())


@pytest.mark.parametrize("kernel", KERNELS)
def test_moments(kernel: str) -> None:
    scene = Scene()
    found = scene.linearize("point_to_point", kernel=kernel, kernel_parameter=SCALE)
    pairs = scene.pairs(found)
    p, q = pairs["p"], pairs["q"]
    length = (p - q).norm(dim=1)
    w = _reference.robust_weight(kernel, SCALE, length)
    moments = found.moments()
    for value, expected in [
        (moments.weight, w.sum()),
        (moments.source, w @ p),
        (moments.target, w @ q),
        (moments.cross, (w[:, None] * q).T @ p),
        (moments.source_squared, w @ p.square().sum(dim=1)),
        (moments.target_squared, w @ q.square().sum(dim=1)),
    ]:
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12 * float(w.sum()))
    assert found.cost == pytest.approx(float(_reference.robust_cost(kernel, SCALE, length).sum()), rel=1e-12)


def test_correspondences_are_the_nearest_neighbours() -> None:
    scene = Scene()
    found = scene.linearize("point_to_plane")
    moved = scene.source.double() @ scene.transform[:3, :3].T + scene.transform[:3, 3]
    distances, indices = ops.knn(moved, scene.target, max_distance=0.5)
    assert torch.equal(found.indices, indices[:, 0]) and torch.equal(found.distances, distances[:, 0])
    assert found.count == int((indices >= 0).sum())
    inside = found.distances[found.distances.isfinite()].double()
    assert found.squared_distance_sum == pytest.approx(float(inside.square().sum()), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_given_correspondences_are_used_as_they_are(kind: str) -> None:
    scene = Scene()
    searched = scene.linearize(kind)
    given = scene.linearize(kind, max_distance=None, correspondences=searched.indices)
    assert torch.equal(searched.sums, given.sums)
    assert torch.equal(given.indices, searched.indices)
    torch.testing.assert_close(given.distances, searched.distances)
    swapped = searched.indices.clone()
    swapped[swapped >= 0] = 7
    assert scene.linearize(kind, correspondences=swapped).squared_distance_sum > searched.squared_distance_sum


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_changes_no_bit(kind: str) -> None:
    scene = Scene(n=7000, m=5000)
    one = scene.linearize(kind, kernel="huber", kernel_parameter=SCALE, num_threads=1)
    for threads in (2, 3, None):
        other = scene.linearize(kind, kernel="huber", kernel_parameter=SCALE, num_threads=threads)
        assert torch.equal(one.sums, other.sums) and torch.equal(one.indices, other.indices)


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_of_searches_changes_no_bit(kind: str) -> None:
    """Along ever smaller steps, a jump, other sources, other targets and other distances."""
    scene, other = Scene(n=3000, m=2000), Scene(n=2500, m=2000, seed=1)
    memory = ops.SearchMemory()
    for step in range(24):
        if step == 20:
            scene = other
        if step == 22:
            scene.index = ops.SearchIndex(scene.target.flip(0))
        shift = 1.0 if step == 12 else 0.3 * 0.6**step
        scene.transform = pose(0.1 * shift, 0.2 * shift, -shift, shift, 0.0, -shift) @ scene.transform
        limit = 0.4 if step == 21 else 0.5
        plain = scene.linearize(kind, max_distance=limit)
        found = scene.linearize(kind, max_distance=limit, memory=memory)
        for name in ("sums", "indices", "distances"):
            assert torch.equal(getattr(found, name), getattr(plain, name)), (step, name)
        given = scene.linearize(kind, correspondences=plain.indices, memory=memory)
        assert torch.equal(given.sums, plain.sums)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_any_kind_give_the_same(kind: str) -> None:
    scene = Scene(n=50)
    expected = scene.linearize(kind)
    packed = [c.reshape(-1, 9)[:, [0, 1, 2, 4, 5, 8]] for c in scene.covariances]
    found = ops.linearize(
        kind,
        scene.source.numpy().astype(np.float64),
        scene.index,
        scene.transform.numpy(),
        max_distance=0.5,
        source_normals=scene.normals[0].numpy(),
        target_normals=scene.normals[1].double(),
        source_covariances=packed[0].numpy(),
        target_covariances=packed[1],
        source_intensities=scene.intensities[0].double(),
        target_intensities=scene.intensities[1].numpy(),
        lambda_geometric=0.7,
    )
    assert torch.equal(found.sums, expected.sums)


def test_no_source_and_no_neighbour() -> None:
    scene = Scene(n=0)
    assert scene.linearize("symmetric").count == 0
    far = Scene()
    far.transform = pose(0, 0, 0, 1000, 0, 0)
    found = far.linearize("point_to_plane")
    assert found.count == 0 and not found.sums.any() and found.distances.isinf().all()
    assert torch.equal(far.linearize("point_to_plane", correspondences=found.indices).sums, found.sums)


def test_a_covariance_without_inverse_contributes_nothing() -> None:
    scene = Scene()
    zero = [torch.zeros_like(c) for c in scene.covariances]
    for kernel in ("l2", "cauchy"):
        found = scene.linearize("generalized", source_covariances=zero[0], target_covariances=zero[1], kernel=kernel)
        assert found.count > 200 and not found.hessian.any()


def test_l1_of_a_residual_of_zero_is_finite() -> None:
    scene = Scene()
    scene.transform = torch.eye(4, dtype=torch.float64)
    scene.source, scene.normals[0] = scene.target[:300], scene.normals[1][:300]
    found = scene.linearize("point_to_plane", kernel="l1")
    assert found.count == 300 and found.sums.isfinite().all() and not found.gradient.any()


# --- Open3D ---


def open3d_cloud(o3d, scene: Scene, which: int, points: torch.Tensor, turn: torch.Tensor):  # type: ignore[no-untyped-def]
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points.numpy()))
    cloud.normals = o3d.utility.Vector3dVector((scene.normals[which].double() @ turn.T).numpy())
    covariances = turn @ scene.covariances[which].double() @ turn.T
    cloud.covariances = o3d.utility.Matrix3dVector(covariances.numpy())
    return cloud


def euler_pose(xi: torch.Tensor) -> torch.Tensor:
    """Open3D's pose of six numbers: rotations about z, y, x and a translation."""
    x, y, z = xi[:3].tolist()
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = rotation(0, 0, z) @ rotation(0, y, 0) @ rotation(x, 0, 0)
    matrix[:3, 3] = xi[3:]
    return matrix


@pytest.mark.parametrize(("kind", "kernel"), [("point_to_point", "l2"), *itertools.product(KINDS[1:4], KERNELS)])
def test_one_step_equals_open3d(kind: str, kernel: str) -> None:
    o3d = pytest.importorskip("open3d", exc_type=ImportError)
    registration = o3d.pipelines.registration
    if kind == "symmetric" and not hasattr(registration, "TransformationEstimationSymmetric"):
        pytest.skip("this Open3D has no symmetric ICP")
    scene = Scene()
    found = scene.linearize(kind, kernel=kernel, kernel_parameter=SCALE)
    turn, move = scene.transform[:3, :3], scene.transform[:3, 3]
    source = open3d_cloud(o3d, scene, 0, scene.source.double() @ turn.T + move, turn)
    target = open3d_cloud(o3d, scene, 1, scene.target.double(), torch.eye(3, dtype=torch.float64))
    used = torch.nonzero(found.indices >= 0)[:, 0]
    pairs = torch.stack([used, found.indices[used]], dim=1).numpy().astype(np.int32)
    loss = {
        "l2": "L2Loss",
        "l1": "L1Loss",
        "huber": "HuberLoss",
        "cauchy": "CauchyLoss",
        "gm": "GMLoss",
        "tukey": "TukeyLoss",
    }
    robust = getattr(registration, loss[kernel])(*([] if kernel in ("l1", "l2") else [SCALE]))
    estimation = {
        "point_to_point": lambda: registration.TransformationEstimationPointToPoint(),
        "point_to_plane": lambda: registration.TransformationEstimationPointToPlane(robust),
        "symmetric": lambda: registration.TransformationEstimationSymmetric(robust),
        "generalized": lambda: registration.TransformationEstimationForGeneralizedICP(0.001, robust),
    }[kind]()
    theirs = estimation.compute_transformation(source, target, o3d.utility.Vector2iVector(pairs))
    assert np.abs(theirs - np.eye(4)).max() > 1e-3
    if kind == "point_to_point":
        moments = found.moments()
        covariance = moments.cross - torch.outer(moments.target, moments.source) / moments.weight
        u, _, vt = torch.linalg.svd(covariance)
        flip = torch.diag(torch.tensor([1.0, 1.0, float(torch.det(u @ vt).sign())], dtype=torch.float64))
        ours = torch.eye(4, dtype=torch.float64)
        ours[:3, :3] = u @ flip @ vt
        ours[:3, 3] = (moments.target - ours[:3, :3] @ moments.source) / moments.weight
    else:
        xi = torch.linalg.solve(found.hessian, -found.gradient)
        ours = found.symmetric_step(xi) if kind == "symmetric" else euler_pose(xi)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-12)


def test_the_symmetric_step_is_a_left_update_to_first_order() -> None:
    scene = Scene()
    found = scene.linearize("symmetric")
    assert torch.allclose(found.symmetric_step(torch.zeros(6, dtype=torch.float64)), torch.eye(4, dtype=torch.float64))
    xi = torch.tensor([0.3, -0.2, 0.5, 0.1, 0.4, -0.3], dtype=torch.float64)

    def difference(size: float) -> float:
        left = pose(*(size * xi[:3]).tolist(), 0, 0, 0)
        left[:3, 3] = size * xi[3:]
        # p -> R p + t about the origin, and the step about the means: both first-order equal on the means themselves.
        return float((found.symmetric_step(size * xi) - left).abs().max())

    assert difference(1e-3) < 1e-5 and difference(1e-4) < difference(1e-3) / 50


# --- errors ---


@pytest.mark.parametrize(
    ("kind", "options", "argument"),
    [
        ("point_to_line", {}, "kind"),
        ("point_to_plane", {"kernel": "L2Loss"}, "kernel"),
        ("point_to_plane", {"kernel": "huber", "kernel_parameter": 0.0}, "kernel_parameter"),
        ("point_to_plane", {"max_distance": -1.0}, "max_distance"),
        ("point_to_plane", {"max_distance": float("nan")}, "max_distance"),
        ("point_to_plane", {"target_normals": None}, "target_normals"),
        ("point_to_plane", {"target_normals": torch.zeros(3, 3)}, "target_normals"),
        ("point_to_plane", {"target_normals": torch.full((600, 3), float("nan"))}, "target_normals"),
        ("symmetric", {"source_normals": None}, "source_normals"),
        ("symmetric", {"source_normals": torch.full((400, 3), float("inf"))}, "source_normals"),
        ("generalized", {"source_covariances": None}, "source_covariances"),
        ("generalized", {"target_covariances": torch.zeros(600, 9)}, "target_covariances"),
        ("generalized", {"target_covariances": torch.full((600, 6), float("nan"))}, "target_covariances"),
        ("point_to_point", {"correspondences": torch.zeros(400)}, "correspondences"),
        ("point_to_point", {"correspondences": torch.zeros(3, dtype=torch.int64)}, "correspondences"),
        ("point_to_point", {"correspondences": torch.full((400,), 600)}, "correspondences"),
        ("point_to_point", {"correspondences": torch.full((400,), -2)}, "correspondences"),
        ("point_to_point", {"num_threads": 0}, "num_threads"),
    ],
)
def test_bad_arguments(kind: str, options: dict[str, object], argument: str) -> None:
    with pytest.raises(InputError) as error:
        Scene().linearize(kind, **options)
    assert error.value.argument == argument


@pytest.mark.parametrize(
    "transform",
    [torch.eye(3), torch.eye(4, dtype=torch.int64), torch.full((4, 4), float("nan")), 2 * torch.eye(4), "identity"],
)
def test_bad_transforms(transform: object) -> None:
    scene = Scene()
    scene.transform = transform  # type: ignore[assignment]
    with pytest.raises(InputError, match="transform"):
        scene.linearize("point_to_point")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_source_that_is_not_finite(bad: float) -> None:
    scene = Scene()
    scene.source[123, 1] = bad
    with pytest.raises(InputError, match=r"source: got 1 rows with NaN or infinity .*row 123"):
        scene.linearize("point_to_plane")


def test_only_what_the_kind_has() -> None:
    scene = Scene()
    with pytest.raises(InputError, match="moments"):
        _ = scene.linearize("point_to_point").hessian
    with pytest.raises(InputError, match="point_to_point"):
        scene.linearize("symmetric").moments()
    with pytest.raises(InputError, match="symmetric"):
        scene.linearize("generalized").symmetric_step(torch.zeros(6))
