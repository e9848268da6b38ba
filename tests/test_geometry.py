"""The container: what it takes, what it refuses and how it says so, and that no millimetre is lost far away."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dlc_reg.errors import InputError
from dlc_reg.geometry import (
    PointCloud,
    apply_transform,
    check_pair,
    check_viewpoint,
    globalize,
    localize,
)
from dlc_reg.io import MESH_SAMPLES, RawCloud, write

UTM = np.array([4.1e5, 5.8e6, 1e7])


@pytest.fixture
def points(rng):
    return rng.normal(size=(100, 3))


def rotation(rng):
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


# --- what it takes ---------------------------------------------------------------------------------------------------
def layouts():
    yield "float64", lambda p: p
    yield "big endian", lambda p: p.astype(">f8")
    yield "Fortran", np.asfortranarray
    yield "strided", lambda p: np.repeat(p, 2, axis=0)[::2]
    yield "columns of a wider array", lambda p: np.hstack([p, p])[:, :3]
    yield "backwards", lambda p: np.ascontiguousarray(p[::-1, ::-1])[::-1, ::-1]
    yield "masked, nothing hidden", np.ma.MaskedArray
    yield "longdouble", lambda p: p.astype(np.longdouble)
    yield "nested lists", lambda p: p.tolist()
    yield "torch float64", torch.from_numpy
    yield "torch with gradient", lambda p: torch.from_numpy(p).requires_grad_()
    yield "torch transposed", lambda p: torch.from_numpy(np.ascontiguousarray(p.T)).T
    yield "raw cloud", lambda p: RawCloud(p)


@pytest.mark.parametrize(("name", "make"), list(layouts()), ids=[name for name, _ in layouts()])
def test_array_layouts(points, name, make):
    given_points = points.copy()
    given_points.setflags(write=name.startswith(("torch", "backwards")))
    cloud = PointCloud.from_any(make(given_points))
    assert cloud.points.dtype == torch.float32 and cloud.points.is_contiguous() and cloud.points.shape == (100, 3)
    assert cloud.origin.dtype == np.float64 and cloud.dropped == 0 and cloud.kept is None and len(cloud) == 100
    np.testing.assert_allclose(cloud.to_absolute(), points, rtol=0, atol=3e-7)
    np.testing.assert_array_equal(given_points, points)


@pytest.mark.parametrize("dtype", ["f2", "f4", "i1", "u2", "i4", "i8", "u8"])
def test_numpy_dtypes(dtype):
    points = np.array([[0, 0, 0], [100, 0, 0], [0, 50, 0], [0, 0, 7]], dtype)
    np.testing.assert_allclose(PointCloud.from_any(points).to_absolute(), points.astype(float), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int32, torch.uint8])
def test_torch_dtypes(dtype):
    points = torch.tensor([[0, 0, 0], [100, 0, 0], [0, 50, 0], [0, 0, 7]]).to(dtype)
    np.testing.assert_allclose(PointCloud.from_any(points).to_absolute(), points.double().numpy(), atol=1e-5)


@pytest.mark.gpu
def test_cuda_tensor(points):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    np.testing.assert_allclose(PointCloud.from_any(torch.from_numpy(points).cuda()).to_absolute(), points, atol=3e-7)


def test_a_cloud_is_returned_as_it_is(points):
    cloud = PointCloud.from_any(points)
    assert PointCloud.from_any(cloud) is cloud
    placed = PointCloud.from_any(cloud, viewpoint=[1, 2, 3])
    assert placed.points is cloud.points and placed.viewpoint.tolist() == [1, 2, 3] and cloud.viewpoint is None


def test_path(samples, bunny_pair):
    cloud = PointCloud.from_any(str(samples["source"]), name="source")
    np.testing.assert_allclose(cloud.to_absolute(), bunny_pair.source, rtol=0, atol=1e-8)
    with pytest.raises(InputError, match=r"target: got 'no\.ply', which does not exist"):
        PointCloud.from_any("no.ply", name="target")


def test_viewpoint_of_a_file_and_of_the_caller(tmp_path):
    (tmp_path / "a.pcd").write_text(
        "VERSION .7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH 3\nHEIGHT 1\nVIEWPOINT 1 2 3 1 0 0 0\nDATA ascii\n"
        "0 0 0\n1 0 0\n0 1 0\n"
    )
    assert PointCloud.from_any(tmp_path / "a.pcd").viewpoint.tolist() == [1, 2, 3]
    assert PointCloud.from_any(tmp_path / "a.pcd", viewpoint=(0, 0, 9)).viewpoint.tolist() == [0, 0, 9]


def test_open3d(points, rng):
    o3d = pytest.importorskip("open3d")
    normals = points / np.linalg.norm(points, axis=1, keepdims=True)
    colors = rng.uniform(size=(100, 3))
    legacy = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points + UTM))
    legacy.normals, legacy.colors = o3d.utility.Vector3dVector(2 * normals), o3d.utility.Vector3dVector(colors)
    legacy.covariances = o3d.utility.Matrix3dVector(np.einsum("ni,nj->nij", points, points))
    cloud = PointCloud.from_any(legacy)
    np.testing.assert_allclose(cloud.to_absolute(), points + UTM, rtol=0, atol=5e-7)
    np.testing.assert_allclose(cloud.normals, normals, atol=1e-6)
    np.testing.assert_allclose(cloud.colors, colors, atol=1e-6)
    x, y, z = points.T
    np.testing.assert_allclose(cloud.covariances, np.stack([x * x, x * y, x * z, y * y, y * z, z * z], 1), rtol=1e-5)

    tensor = o3d.t.geometry.PointCloud(o3d.core.Tensor(points))
    tensor.point["colors"] = o3d.core.Tensor(np.full((100, 3), 51, np.uint8))
    tensor.point["normals"] = o3d.core.Tensor(np.float32(normals))
    cloud = PointCloud.from_any(tensor)
    np.testing.assert_allclose(cloud.to_absolute(), points, rtol=0, atol=5e-7)
    np.testing.assert_allclose(cloud.colors, 0.2, atol=1e-6)
    np.testing.assert_allclose(cloud.normals, normals, atol=1e-6)

    for empty in (o3d.geometry.PointCloud(), o3d.t.geometry.PointCloud()):
        with pytest.raises(InputError, match="source: got an empty cloud"):
            PointCloud.from_any(empty)
    for other in (o3d.geometry.LineSet(), o3d.t.geometry.LineSet(), o3d.geometry.Octree()):
        with pytest.raises(InputError, match=r"source: got an Open3D (LineSet|Octree); expected a path, "):
            PointCloud.from_any(other)


def test_open3d_and_trimesh_meshes_are_sampled_alike():
    trimesh = pytest.importorskip("trimesh")
    mesh = trimesh.creation.icosphere(subdivisions=3)
    clouds = [PointCloud.from_any(mesh, seed=1), PointCloud.from_any(trimesh.Scene(mesh), seed=1)]
    try:
        import open3d as o3d
    except ImportError:
        pass
    else:
        vertices, faces = o3d.utility.Vector3dVector(mesh.vertices), o3d.utility.Vector3iVector(mesh.faces)
        legacy = o3d.geometry.TriangleMesh(vertices, faces)
        clouds += [PointCloud.from_any(m, seed=1) for m in (legacy, o3d.t.geometry.TriangleMesh.from_legacy(legacy))]
    for cloud in clouds:
        assert len(cloud) == MESH_SAMPLES
        assert abs(torch.linalg.vector_norm(cloud.points + torch.from_numpy(cloud.origin), dim=1) - 1).max() < 0.02
        assert (cloud.normals * cloud.points).sum(1).min() > 0.95
        torch.testing.assert_close(cloud.points, clouds[0].points, rtol=0, atol=2e-6)
    assert not torch.equal(PointCloud.from_any(mesh, seed=2).points, clouds[0].points)


def test_trimesh_cloud_and_what_is_no_surface(points):
    trimesh = pytest.importorskip("trimesh")
    np.testing.assert_allclose(PointCloud.from_any(trimesh.PointCloud(points)).to_absolute(), points, atol=3e-7)
    with pytest.raises(InputError, match="target: got a mesh that cannot be sampled: the triangles have no area"):
        flat = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [2, 0, 0.0]], [[0, 1, 2]], process=False)
        PointCloud.from_any(flat, name="target")
    with pytest.raises(InputError, match="a scene without content"):
        PointCloud.from_any(trimesh.Scene())


# --- what it refuses -------------------------------------------------------------------------------------------------
LINE = np.linspace(0, 1, 50)[:, None]
REFUSED = {
    "None": (None, "an object of type NoneType; expected a path, an (N, 3) array"),
    "number": (3, "an object of type int"),
    "dict": ({"points": []}, "an object of type dict"),
    "empty": (np.empty((0, 3)), "an empty cloud; expected at least 3 points"),
    "empty tensor": (torch.empty(0, 3), "an empty cloud"),
    "empty list": ([], "shape (0,)"),
    "one": (np.ones((1, 3)), "1 points; expected at least 3"),
    "two": (np.eye(3)[:2], "2 points; expected at least 3"),
    "flat": (np.arange(9.0), "shape (9,); expected an array of shape (N, 3), one point a row"),
    "transposed": (
        np.ones((3, 50)),
        "shape (3, 50); expected an array of shape (N, 3), one point a row: transpose it (source.T)",
    ),
    "two columns": (np.ones((50, 2)), "shape (50, 2); expected an array of shape (N, 3)"),
    "four columns": (np.ones((50, 4)), "pass the coordinates alone (source[:, :3])"),
    "six columns": (np.ones((50, 6)), "pass the coordinates alone (source[:, :3])"),
    "batch": (np.ones((2, 50, 3)), "shape (2, 50, 3)"),
    "complex": (np.ones((5, 3), complex), "dtype complex128; expected real numbers"),
    "complex tensor": (torch.ones(5, 3, dtype=torch.complex64), "torch.complex64"),
    "bool": (np.ones((5, 3), bool), "dtype bool"),
    "bool tensor": (torch.ones(5, 3, dtype=torch.bool), "torch.bool"),
    "sparse tensor": (torch.eye(3).to_sparse(), "sparse"),
    "meta tensor": (torch.empty(5, 3, device="meta"), "on meta"),
    "object": (np.array([["a", 1, None]] * 5, object), "dtype object"),
    "text": (np.array([["1", "2", "3"]] * 5), "dtype <U1"),
    "ragged": ([[1, 2, 3], [4, 5]], "a list that is no array"),
    "equal": (np.full((10, 3), 7.25), "10 points that are all equal"),
    "equal, far": (np.full((10, 3), 1 / 3 + 1e7), "10 points that are all equal"),
    "line": (LINE * [1, 2, 3] + 5, "50 points on one line"),
    "line in float32": (np.float32(LINE * [0.3, 0.2, 0.7]), "50 points on one line"),
    "line far away": (LINE * [1, 2, 3] + UTM, "50 points on one line"),
    "three on a line": (np.array([[0, 0, 0], [1, 1, 1], [2, 2, 2.0]]), "on one line"),
    "far too large": (np.eye(3) * 1e16, "coordinates up to 1e+16; expected at most 1e+15"),
    "near the limit of float64": (np.eye(3) * 1e308, "coordinates up to 1e+308"),
    "far too small": (np.eye(3) * 1e-20, "a cloud 1.73e-20 wide; expected at least 1e-15: use a smaller unit"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_name_argument_value_and_remedy(what):
    obj, message = REFUSED[what]
    with pytest.raises(InputError) as caught:
        PointCloud.from_any(obj, name="source")
    assert caught.value.argument == "source" and message in str(caught.value)
    assert caught.value.expected


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e6, 1e12])
@pytest.mark.parametrize("shape", ["plane", "thin", "three points"])
def test_thin_clouds_of_any_size_are_taken(rng, scale, shape):
    points = rng.normal(size=(60, 3)) * {"plane": [1, 1, 0], "thin": [1, 1e-4, 1e-4]}.get(shape, [1, 1, 1])
    if shape == "three points":
        points = points[:3]
    cloud = PointCloud.from_any(points * scale)
    np.testing.assert_allclose(cloud.to_absolute(), points * scale, rtol=0, atol=4e-7 * scale)
    assert cloud.extent == pytest.approx(np.linalg.norm(np.ptp(points * scale, axis=0)), rel=1e-5)


def test_non_finite_points(points):
    normals = np.arange(300.0).reshape(100, 3) + 1
    colors = np.linspace(0, 1, 300).reshape(100, 3)
    points[5, 0], points[8], points[99, 2] = np.nan, np.inf, -np.inf
    raw = RawCloud(points, normals, colors)
    with pytest.raises(InputError, match=r"target: got 3 of 100 points with NaN .* row 5; .*remove_non_finite=True"):
        PointCloud.from_any(raw, name="target")
    cloud = PointCloud.from_any(raw, name="target", remove_non_finite=True)
    keep = np.delete(np.arange(100), [5, 8, 99])
    assert cloud.dropped == 3 and cloud.kept.tolist() == keep.tolist()
    np.testing.assert_allclose(cloud.to_absolute(), points[keep], atol=3e-7)
    np.testing.assert_allclose(cloud.normals, normals[keep] / np.linalg.norm(normals[keep], axis=1)[:, None], atol=1e-7)
    np.testing.assert_allclose(cloud.colors, colors[keep], atol=1e-7)
    masked = np.ma.MaskedArray(points[keep], mask=np.arange(97)[:, None] == [3, 3, 3])
    assert PointCloud.from_any(masked, remove_non_finite=True).dropped == 1


def test_too_few_finite_points():
    points = np.full((50, 3), np.nan)
    points[:2] = np.eye(3)[:2]
    with pytest.raises(InputError, match="got 2 points after dropping 48 non-finite ones; expected at least 3"):
        PointCloud.from_any(points, remove_non_finite=True)
    with pytest.raises(InputError, match="got 0 points after dropping 50"):
        PointCloud.from_any(points * np.nan, remove_non_finite=True)


def test_useless_normals_are_as_good_as_none(points):
    for bad in (0.0, np.nan):
        normals = np.ones((100, 3))
        normals[17] = bad
        assert PointCloud.from_any(RawCloud(points, normals)).normals is None
    with pytest.raises(InputError, match="source: got 99 normals for 100 points"):
        PointCloud.from_any(RawCloud(points, np.ones((99, 3))))


@pytest.mark.parametrize("bad", [[1, 2], [1, 2, np.nan], "here", [[1, 2, 3]], 5, [1, 2, [3]], [1j, 2, 3], [True] * 3])
def test_viewpoints(points, bad):
    with pytest.raises(InputError, match=r"source_viewpoint: .*three finite numbers"):
        PointCloud.from_any(points, viewpoint=bad)
    for good in ((1, 2, 3), np.float32([1, 2, 3]), torch.tensor([1, 2, 3])):
        assert check_viewpoint(good, "v").tolist() == [1, 2, 3] and check_viewpoint(good, "v").dtype == np.float64


def test_pairs_in_different_units(points):
    metres = PointCloud.from_any(points, name="source")
    millimetres = PointCloud.from_any(points * 1000, name="target")
    with pytest.raises(InputError, match=r"source \d.* and target \d.* 1000 times apart; .*mm and m"):
        check_pair(metres, millimetres)
    with pytest.raises(InputError, match="1000 times apart"):
        check_pair(millimetres, metres)
    check_pair(metres, PointCloud.from_any(points * 90))
    stray = np.vstack([points, [[1e4, 0, 0]]])  # one wild point is not a unit
    check_pair(metres, PointCloud.from_any(stray))


# --- accuracy --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("distance", [0, 1e6, 1e7])
@pytest.mark.parametrize("suffix", [".ply", ".xyz", ".npy"])
def test_sub_millimetre_far_from_the_origin(tmp_path, rng, distance, suffix):
    """A 100 m scan in metres: to the file and back, into the local frame, moved there, and out again."""
    points = rng.uniform(-50, 50, (500, 3)) + distance * np.array([0.6, -0.8, 1])
    write(tmp_path / f"a{suffix}", points)
    source = PointCloud.from_any(tmp_path / f"a{suffix}")
    T = np.eye(4)
    T[:3, :3] = rotation(rng)
    T[:3, 3] = rng.normal(size=3) * 1000
    moved = apply_transform(T, points)
    target = PointCloud.from_any(moved)
    np.testing.assert_allclose(source.to_absolute(), points, rtol=0, atol=1e-5)
    local = apply_transform(localize(T, source, target), source.points)
    np.testing.assert_allclose(local, target.points, rtol=0, atol=2e-5)
    np.testing.assert_allclose(local + target.origin, moved, rtol=0, atol=2e-5)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 1e7]), st.sampled_from([1.0, 2.5]))
def test_localize_and_globalize_are_inverse(seed, distance, scale):
    rng = np.random.default_rng(seed)
    source = PointCloud.from_any(rng.normal(size=(10, 3)) + distance * rng.normal(size=3))
    target = PointCloud.from_any(rng.normal(size=(10, 3)) + distance * rng.normal(size=3))
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = scale * rotation(rng), rng.normal(size=3)
    local = localize(T, source, target)
    np.testing.assert_allclose(globalize(local, source, target), T, rtol=0, atol=1e-15 * max(distance, 10) * 8)
    p = source.points.double().numpy()
    direct = apply_transform(T, p + source.origin) - target.origin
    np.testing.assert_allclose(apply_transform(local, p), direct, rtol=0, atol=1e-15 * max(distance, 10) * 20)


@given(hnp.arrays(np.float32, (12, 3), elements=st.floats(-100, 100, width=32)), st.permutations(range(12)))
def test_order_of_points_does_not_matter(points, order):
    try:
        cloud = PointCloud.from_any(points)
    except InputError:
        with pytest.raises(InputError):
            PointCloud.from_any(points[order])
        return
    shuffled = PointCloud.from_any(points[order])
    np.testing.assert_allclose(shuffled.to_absolute(), points[order], rtol=0, atol=2e-5)
    assert shuffled.extent == pytest.approx(cloud.extent, rel=1e-6)
    assert shuffled.spacing == pytest.approx(cloud.spacing, rel=1e-4, abs=2e-5)
