"""Every accepted kind of file gives back what went in, to the bit where the format allows it."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from dlc_reg.errors import InputError
from dlc_reg.io import MESH_SAMPLES, RawCloud, Surface, from_scene, read, sample_surface, write

FAR = np.array([4.1e5, 5.8e6, 1e7])


@pytest.fixture
def cloud(rng):
    points = rng.normal(size=(200, 3))
    normals = rng.normal(size=(200, 3))
    return points, normals / np.linalg.norm(normals, axis=1, keepdims=True), rng.integers(0, 256, (200, 3)) / 255.0


# --- write, then read ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", [".ply", ".xyz", ".txt", ".npy", ".npz"])
def test_coordinates_far_from_the_origin_come_back_exactly(tmp_path, cloud, suffix):
    points = cloud[0] + FAR
    write(tmp_path / f"a{suffix}", points)
    back = read(tmp_path / f"a{suffix}")
    assert back.points.dtype == np.float64 and back.points.flags.c_contiguous and back.kind == "points"
    np.testing.assert_array_equal(back.points, points)


@pytest.mark.parametrize("suffix", [".ply", ".pcd", ".xyz", ".txt", ".npz"])
def test_normals_and_colours_come_back(tmp_path, cloud, suffix):
    points, normals, colors = cloud
    write(tmp_path / f"a{suffix}", points, normals, colors)
    back = read(tmp_path / f"a{suffix}")
    np.testing.assert_allclose(back.points, points, rtol=0, atol=1e-6)
    np.testing.assert_allclose(back.normals, normals, rtol=0, atol=1e-7)
    np.testing.assert_allclose(back.colors, colors, rtol=0, atol=1e-12)


@pytest.mark.parametrize("suffix", [".ply", ".pcd", ".xyz", ".txt", ".npz"])
def test_colours_without_normals_are_not_taken_for_normals(tmp_path, cloud, suffix):
    write(tmp_path / f"a{suffix}", cloud[0], colors=cloud[2])
    back = read(tmp_path / f"a{suffix}")
    assert back.normals is None
    np.testing.assert_allclose(back.colors, cloud[2], rtol=0, atol=1e-12)


def test_single_precision_is_used_where_it_costs_nothing(tmp_path, cloud):
    write(tmp_path / "near.ply", cloud[0])
    write(tmp_path / "far.ply", cloud[0] + FAR)
    write(tmp_path / "exact.ply", np.float32(cloud[0] + 1000))
    near, far, exact = ((tmp_path / f"{name}.ply").stat().st_size for name in ("near", "far", "exact"))
    assert near == exact and abs((far - near) - 200 * 12) < 16


def test_pcd_refuses_to_round(tmp_path, cloud):
    """Neither PCL nor Open3D reads coordinates of 8 bytes, so .pcd holds float32 or nothing."""
    with pytest.raises(InputError, match=r"1e\+07, which .pcd would round; expected .* such as \.ply"):
        write(tmp_path / "a.pcd", cloud[0] + FAR)
    assert os.listdir(tmp_path) == []


def test_open3d_reads_what_we_write(tmp_path, cloud):
    o3d = pytest.importorskip("open3d")
    for suffix, points in ((".ply", cloud[0] + FAR), (".ply", cloud[0]), (".pcd", cloud[0])):
        write(tmp_path / f"a{suffix}", points, cloud[1], cloud[2], overwrite=True)
        theirs = o3d.io.read_point_cloud(str(tmp_path / f"a{suffix}"))
        np.testing.assert_allclose(np.asarray(theirs.points), points, rtol=0, atol=2e-7)
        np.testing.assert_allclose(np.asarray(theirs.normals), cloud[1], atol=1e-7)
        np.testing.assert_allclose(np.asarray(theirs.colors), cloud[2], atol=1e-7)


def test_non_finite_points_come_through_in_place(tmp_path, cloud):
    points = cloud[0].copy()
    points[7, 1], points[9] = np.inf, np.nan
    for suffix in (".ply", ".pcd", ".xyz", ".npy"):
        write(tmp_path / f"a{suffix}", points)
        np.testing.assert_allclose(read(tmp_path / f"a{suffix}").points, points, atol=1e-6)


# --- refusing, and leaving no trace ----------------------------------------------------------------------------------
def test_an_existing_file_is_kept_unless_asked(tmp_path, cloud):
    path = tmp_path / "a.ply"
    path.write_text("precious")
    with pytest.raises(InputError, match=r"out: .*a\.ply.* exists.*overwrite=True"):
        write(path, cloud[0], argument="out")
    assert path.read_text() == "precious"
    write(path, cloud[0], overwrite=True)
    assert len(read(path).points) == 200


def test_a_failed_write_leaves_what_was_there(tmp_path, cloud, monkeypatch):
    from dlc_reg import io as module

    def fail(stream, *_):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.ply"
    path.write_text("precious")
    monkeypatch.setitem(module._WRITERS, ".ply", fail)
    with pytest.raises(InputError, match="No space left"):
        write(path, cloud[0], overwrite=True)
    assert path.read_text() == "precious" and os.listdir(tmp_path) == ["a.ply"]


def test_a_link_stays_a_link(tmp_path, cloud):
    (tmp_path / "real.ply").write_text("old")
    (tmp_path / "link.ply").symlink_to("real.ply")
    write(tmp_path / "link.ply", cloud[0], overwrite=True)
    assert (tmp_path / "link.ply").is_symlink() and len(read(tmp_path / "real.ply").points) == 200


@pytest.mark.parametrize(
    ("name", "text"), [("a.doc", "suffix"), ("a", "suffix"), ("no/folder/a.ply", "folder"), ("", "a path")]
)
def test_places_that_cannot_be_written(tmp_path, cloud, name, text):
    with pytest.raises(InputError, match=text):
        write(tmp_path / name if name else "", cloud[0])
    assert os.listdir(tmp_path) == []


def test_rows_must_match(tmp_path, cloud):
    with pytest.raises(InputError, match="normals: got 5 rows"):
        write(tmp_path / "a.ply", cloud[0], cloud[1][:5])
    assert os.listdir(tmp_path) == []


# --- formats that others write ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("encoding", ["ascii", "binary", "binary_compressed"])
def test_pcd_of_another_library(tmp_path, cloud, encoding):
    pypcd4 = pytest.importorskip("pypcd4")
    columns = [*(cloud[0] + FAR).T, *np.float32(cloud[1]).T, np.arange(200, dtype=np.uint16)]
    theirs = pypcd4.PointCloud.from_points(
        columns, ["x", "y", "z", "normal_x", "normal_y", "normal_z", "ring"], [c.dtype for c in columns]
    )
    theirs.save(tmp_path / "a.pcd", pypcd4.Encoding(encoding))
    back = read(tmp_path / "a.pcd")
    np.testing.assert_allclose(back.points, cloud[0] + FAR, rtol=0, atol=1e-9)  # its text has ten decimals
    np.testing.assert_allclose(back.normals, cloud[1], atol=1e-7)
    assert back.viewpoint is None


PCD = """# .PCD v.7
VERSION .7
FIELDS x y z _ rgb
SIZE 4 4 4 1 4
TYPE F F F U F
{count}WIDTH 2
HEIGHT 2
VIEWPOINT {viewpoint}
POINTS 4
DATA ascii
"""
PCD_ROWS = "0 0 0 {pad} 2.3418052e-38\n1\t0 0 {pad} 0\n0 1  0 {pad} 0\n0 0 1 {pad} 0\n"


@pytest.mark.parametrize("count", ["", "COUNT 1 1 1 3 1\n"])
def test_pcd_viewpoint_padding_and_packed_colour(tmp_path, count):
    rows = PCD_ROWS.format(pad="9 9 9" if count else "9")
    (tmp_path / "a.pcd").write_text(PCD.format(count=count, viewpoint="1 2 3.5 0 1 0 0") + rows)
    back = read(tmp_path / "a.pcd")
    np.testing.assert_array_equal(back.viewpoint, [1, 2, 3.5])
    np.testing.assert_array_equal(back.points, [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    bits = np.float32(2.3418052e-38).view(np.uint32)
    np.testing.assert_allclose(back.colors[0] * 255, [bits >> 16 & 255, bits >> 8 & 255, bits & 255])
    (tmp_path / "a.pcd").write_text(PCD.format(count=count, viewpoint="0 0 0 1 0 0 0") + rows)
    assert read(tmp_path / "a.pcd").viewpoint is None


@pytest.mark.parametrize("order", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply_range_scan_with_lists_of_differing_lengths_and_no_face(tmp_path, order):
    """As the Stanford scans are: a range_grid of lists with no or one index after the vertices."""
    header = (
        f"ply\nformat {order} 1.0\nobj_info num_cols 2\nelement vertex 3\nproperty double x\nproperty float y\n"
        "property int z\nelement range_grid 4\nproperty list uchar int vertex_indices\nend_header\n"
    )
    if order == "ascii":
        body = b"0.1 0 0\n5 1 0 \n0 0 7\n0\n1 0\n1 1\n1 2\n"
    else:
        mark = "<" if "little" in order else ">"
        body = b"".join(struct.pack(f"{mark}dfi", *row) for row in ((0.1, 0, 0), (5, 1, 0), (0, 0, 7)))
        body += b"\0" + b"".join(struct.pack(f"{mark}Bi", 1, i) for i in range(3))
    (tmp_path / "a.ply").write_bytes(header.encode() + body)
    back = read(tmp_path / "a.ply")
    assert back.kind == "points"
    np.testing.assert_array_equal(back.points, [[0.1, 0, 0], [5, 1, 0], [0, 0, 7]])


@pytest.mark.parametrize("order", ["ascii", "binary_little_endian"])
@pytest.mark.parametrize("mixed", [False, True])
def test_ply_faces_after_another_element_and_polygons(tmp_path, order, mixed):
    """A unit square as two triangles, or as a triangle, a quad that is half of the square, and a useless edge."""
    faces = [(0, 1, 2), (0, 2, 3)] if not mixed else [(0, 1, 2), (0, 2, 3, 3), (0, 1)]
    header = (
        f"ply\nformat {order} 1.0\nelement vertex 5\nproperty float x\nproperty float y\nproperty float z\n"
        "element edge 1\nproperty list uchar short ends\nproperty uchar flag\n"
        f"element face {len(faces)}\nproperty uchar red\nproperty list uchar uint vertex_index\nend_header\n"
    )
    vertices = [(0, 0, 2), (1, 0, 2), (1, 1, 2), (0, 1, 2), (9, 9, 9)]  # the last is in no face
    if order == "ascii":
        lines = [*vertices, (2, 0, 1, 7), *((5, len(f), *f) for f in faces)]
        body = "".join(" ".join(map(str, line)) + "\n" for line in lines).encode()
    else:
        body = np.array(vertices, "<f4").tobytes() + struct.pack("<BhhB", 2, 0, 1, 7)
        body += b"".join(struct.pack(f"<BB{len(f)}I", 5, len(f), *f) for f in faces)
    (tmp_path / "a.ply").write_bytes(header.encode() + body)
    back = read(tmp_path / "a.ply")
    assert back.kind == "mesh" and len(back.points) == MESH_SAMPLES
    np.testing.assert_allclose(back.points[:, 2], 2)
    np.testing.assert_array_equal(back.normals, np.tile([0, 0, 1.0], (MESH_SAMPLES, 1)))
    np.testing.assert_allclose(back.points.mean(axis=0), [0.5, 0.5, 2], atol=0.01)
    assert back.points[:, :2].min() >= 0 and back.points[:, :2].max() <= 1


def test_ply_agrees_with_open3d_on_real_scans(shared_data):
    o3d = pytest.importorskip("open3d")
    for path in (shared_data / "bunny" / "bun090.ply", shared_data / "fgr" / "01" / "Depth_0000.ply"):
        theirs, ours = o3d.io.read_point_cloud(str(path)), read(path)
        np.testing.assert_allclose(ours.points, np.asarray(theirs.points), rtol=1e-12)
        assert theirs.has_normals() == (ours.normals is not None)
        if ours.normals is not None:
            np.testing.assert_allclose(ours.normals, np.asarray(theirs.normals), rtol=1e-12)


@pytest.mark.parametrize("suffix", [".stl", ".obj", ".off", ".glb", ".ply"])
def test_meshes_of_trimesh(tmp_path, suffix):
    trimesh = pytest.importorskip("trimesh")
    trimesh.creation.box((1, 2, 3)).export(tmp_path / f"a{suffix}")
    back = read(tmp_path / f"a{suffix}")
    assert back.kind == "mesh" and len(back.points) == MESH_SAMPLES
    # on the surface, evenly: a side's share of the points is its share of the area (22), and its normal points outwards
    for axis, half, share in ((0, 0.5, 6 / 22), (1, 1.0, 3 / 22), (2, 1.5, 2 / 22)):
        for sign in (-1, 1):
            on = back.normals[:, axis] == sign
            np.testing.assert_allclose(back.points[on, axis], sign * half, atol=1e-6)
            assert abs(on.mean() - share) < 0.01
    np.testing.assert_allclose(np.abs(back.normals).sum(axis=1), 1)


def test_glb_scene_is_baked_and_its_order_does_not_matter(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    scene = trimesh.Scene()
    for name, x in (("a", 10.0), ("b", -10.0)):
        transform = trimesh.transformations.rotation_matrix(np.pi / 2, [0, 0, 1])
        transform[0, 3] = x
        scene.add_geometry(trimesh.creation.box((1, 4, 2)), geom_name=name, transform=transform)
    (tmp_path / "a.glb").write_bytes(scene.export(file_type="glb"))
    points = read(tmp_path / "a.glb").points
    np.testing.assert_allclose(points.min(axis=0), [-12, -0.5, -1], atol=0.01)
    np.testing.assert_allclose(points.max(axis=0), [12, 0.5, 1], atol=0.01)

    class Graph:  # trimesh keeps nodes in sets of strings, whose order changes from process to process
        nodes_geometry = tuple(sorted(scene.graph.nodes_geometry, reverse=True))

        def __getitem__(self, node):
            return scene.graph[node]

    other = from_scene(SimpleNamespace(graph=Graph(), geometry=scene.geometry))
    np.testing.assert_array_equal(other.vertices, from_scene(scene).vertices)


def test_point_only_obj_and_off(tmp_path):
    rows = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 1, 0)]
    (tmp_path / "a.obj").write_text("# points\n" + "".join("v {} {} {}\n".format(*r) for r in rows))
    (tmp_path / "a.off").write_text("OFF\n4 0 0\n" + "".join("{} {} {}\n".format(*r) for r in rows))
    for name in ("a.obj", "a.off"):
        back = read(tmp_path / name)
        assert back.kind == "points"
        np.testing.assert_array_equal(back.points, rows)


@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_las_keeps_a_tenth_of_a_millimetre_at_utm_coordinates(tmp_path, rng, suffix):
    laspy = pytest.importorskip("laspy")
    points = rng.uniform(0, 100, (300, 3)) + np.array([4.1e5, 5.8e6, 0])
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.scales, header.offsets = [1e-4] * 3, [4.1e5, 5.8e6, 0]
    las = laspy.LasData(header)
    las.x, las.y, las.z = points.T
    las.red = las.green = las.blue = np.linspace(0, 65535, 300).astype(np.uint16)
    las.write(tmp_path / f"a{suffix}")
    back = read(tmp_path / f"a{suffix}")
    np.testing.assert_allclose(back.points, points, rtol=0, atol=0.51e-4)
    np.testing.assert_allclose(back.colors[:, 0], np.linspace(0, 1, 300), atol=1e-4)


def test_laz_without_lazrs_names_the_extra(tmp_path, monkeypatch):
    laspy = pytest.importorskip("laspy")
    las = laspy.LasData(laspy.LasHeader(point_format=0, version="1.2"))
    las.x, las.y, las.z = np.eye(3)
    las.write(tmp_path / "a.laz")
    monkeypatch.setitem(sys.modules, "lazrs", None)
    with pytest.raises(InputError, match=r'source: .*a\.laz.*lazrs is not installed.*pip install "dlc_reg\[las\]"'):
        read(tmp_path / "a.laz", argument="source")


# --- arrays ----------------------------------------------------------------------------------------------------------
def test_npz_names(tmp_path, cloud):
    np.savez(tmp_path / "one.npz", cloud[0])
    np.testing.assert_array_equal(read(tmp_path / "one.npz").points, cloud[0])
    np.savez(tmp_path / "v.npz", points=cloud[0], viewpoint=[1, 2, 3], labels=np.array(["x"], object))
    np.testing.assert_array_equal(read(tmp_path / "v.npz").viewpoint, [1, 2, 3])
    np.savez(tmp_path / "two.npz", a=cloud[0], b=cloud[0])
    with pytest.raises(InputError, match="arrays a, b; name the coordinates `points`"):
        read(tmp_path / "two.npz")


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", "<i4", ">u2", "i1"])
def test_npy_types(tmp_path, dtype):
    points = np.arange(12).reshape(4, 3).astype(dtype)
    np.save(tmp_path / "a.npy", np.asfortranarray(points))
    np.testing.assert_array_equal(read(tmp_path / "a.npy").points, points)


def test_home_is_expanded(tmp_path, cloud, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("~/a.npy", cloud[0])
    np.testing.assert_array_equal(read("~/a.npy").points, cloud[0])


# --- sampling --------------------------------------------------------------------------------------------------------
def test_sampling_is_seeded(tmp_path):
    (tmp_path / "a.off").write_text("OFF\n4 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n3 0 1 2\n3 0 2 3\n")
    first, again, other = (read(tmp_path / "a.off", seed=seed).points for seed in (3, 3, 4))
    assert (first == again).all() and not (first == other).all()


def test_sampling_is_uniform_within_a_triangle_and_skips_slivers():
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5.0]])
    surface = Surface(corners, np.array([[3, 3, 3], [0, 1, 2], [0, 0, 3]]))
    cloud = sample_surface(surface, 20_000, seed=0)
    assert isinstance(cloud, RawCloud) and (cloud.points.sum(axis=1) <= 1 + 1e-12).all() and (cloud.points >= 0).all()
    np.testing.assert_array_equal(cloud.normals, np.tile([0, 0, 1.0], (20_000, 1)))
    # x and y of a uniform point have mean 1/3, variance 1/18, covariance -1/36
    np.testing.assert_allclose(cloud.points.mean(axis=0), [1 / 3, 1 / 3, 0], atol=0.006)
    np.testing.assert_allclose(np.cov(cloud.points[:, :2].T), [[1 / 18, -1 / 36], [-1 / 36, 1 / 18]], atol=0.0015)


def test_importing_is_light():
    code = "import sys, dlc_reg.geometry; print(*({'open3d', 'trimesh', 'laspy', 'lzf', 'scipy'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert run.stdout.strip() == ""


def test_streams_are_read_once_and_closed(tmp_path, cloud, monkeypatch):
    write(tmp_path / "a.ply", cloud[0])
    opened = []
    original = io.open

    def remember(*args, **kwargs):
        opened.append(original(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(io, "open", remember)
    read(tmp_path / "a.ply")
    assert opened and all(stream.closed for stream in opened)


# --- the samples that ship -------------------------------------------------------------------------------------------
def test_the_sample_pair_is_what_its_readme_says(bunny_pair):
    from scipy.spatial import cKDTree

    source, target, T = bunny_pair
    assert len(source) == 40_097 and len(target) == 40_256
    np.testing.assert_allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3), atol=1e-6)
    distances = cKDTree(target).query(source @ T[:3, :3].T + T[:3, 3])[0]
    assert (distances < 0.001).mean() > 0.6  # what both scans saw
    assert np.median(distances[distances < 0.001]) < 0.0005


def test_the_sample_pair_is_the_original(bunny_pair, shared_data):
    for points, name in ((bunny_pair.source, "bun045.ply"), (bunny_pair.target, "bun000.ply")):
        np.testing.assert_array_equal(points, read(shared_data / "bunny" / name).points.astype(np.float32))
