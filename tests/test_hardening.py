"""What fuzzing found, kept as small files and clouds; short forms of the fuzzers; processes, interrupts, drafts."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PACKAGE

from dlc_reg import _checkpoint, ops
from dlc_reg.errors import InputError
from dlc_reg.io import read, read_columns, replacing, write

resource = pytest.importorskip("resource", reason="bounding the memory needs a POSIX system")
TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture
def room():
    """1 GiB of address space above what is in use."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc: the memory in use is not known")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def environment():
    return {**os.environ, "PYTHONPATH": PACKAGE}


# --- files ------------------------------------------------------------------------------------------------------------
def put(content, at, form, *values):
    out = bytearray(content)
    struct.pack_into(form, out, at, *values)
    return bytes(out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file of each kind that is lied about below."""
    laspy, trimesh = pytest.importorskip("laspy"), pytest.importorskip("trimesh")
    folder = tmp_path_factory.mktemp("whole")
    points = np.random.default_rng(0).normal(size=(12, 3))
    for name, form, version in (("a.las", 0, "1.2"), ("a.laz", 3, "1.2"), ("layers.laz", 7, "1.4")):
        las = laspy.LasData(laspy.LasHeader(point_format=form, version=version))
        las.x, las.y, las.z = points.T
        las.write(folder / name)
    trimesh.creation.box().export(folder / "a.glb")
    np.save(folder / "a.npy", points)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def table_of(laz):
    """Where the table of the chunks is."""
    return struct.unpack_from("<q", laz, struct.unpack_from("<I", laz, 96)[0])[0]


def layers_of(laz):
    """Where the lengths of the first chunk's layers are."""
    offset, length = struct.unpack_from("<I", laz, 96)[0], struct.unpack_from("<H", laz, 105)[0]
    return offset + 8 + length + 4


LIES = {
    "records before the points that are not there": ("a.las", lambda c: put(c, 100, "<I", 2**32 - 1), None),
    "the same, compressed": ("a.laz", lambda c: put(c, 100, "<I", 0), "no record says how"),
    "records after the points": ("layers.laz", lambda c: put(c, 243, "<I", 2**32 - 1), None),
    "points of no length": ("a.las", lambda c: put(c, 105, "<H", 0), "in 0 bytes each"),
    "a billion chunks": ("a.laz", lambda c: put(c, table_of(c) + 4, "<I", 10**9), "1000000000 chunks promised"),
    "a table outside": ("a.laz", lambda c: put(c, struct.unpack_from("<I", c, 96)[0], "<q", 2**40), "outside the file"),
    "a layer of 4 GiB": ("layers.laz", lambda c: put(c, layers_of(c), "<I", 2**32 - 1), "beyond the end"),
    "a chunk of GLB of 4 GiB": ("a.glb", lambda c: put(c, 12, "<I", 2**32 - 4), "cannot be read"),
    "a header of NPY of 1 GiB": (
        "a.npy",
        lambda c: put(c[:6] + b"\2\0" + bytes(2) + c[8:], 8, "<I", 2**30),
        "a header of",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_lengths_are_held_against_the_file(tmp_path, whole, room, lie):
    """Each of these took hours, filled the memory or ended the process."""
    name, damaged, reason = LIES[lie]
    path = tmp_path / name
    path.write_bytes(damaged(whole[name]))
    if reason is None:  # what is not needed is not looked at
        assert len(read(path).points) == 12
        return
    with pytest.raises(InputError, match=reason) as caught:
        read(path)
    assert not isinstance(caught.value.__cause__, MemoryError)


def test_packed_pcd_and_images_are_not_given_what_they_promise(tmp_path, room):
    head = "VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH 2\nHEIGHT 1\nPOINTS 2\nDATA binary_compressed\n"
    (tmp_path / "a.pcd").write_bytes(head.encode() + struct.pack("<II", 2**32 - 1, 24) + bytes(30))
    with pytest.raises(InputError, match="instead of 4294967295") as caught:
        read(tmp_path / "a.pcd")
    assert not isinstance(caught.value.__cause__, MemoryError)
    pillow = pytest.importorskip("PIL.Image")
    from dlc_reg._alignment_input import read_picture

    stream = io.BytesIO()
    pillow.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(stream, "PNG")
    content = stream.getvalue()
    (tmp_path / "a.png").write_bytes(put(content, content.index(b"IDAT") - 4, ">I", 2**31 - 1))
    try:
        read_picture(tmp_path / "a.png", None, "source")
    except InputError as error:
        assert "MemoryError" not in str(error)


@pytest.mark.parametrize("field", ["x", "normal_z", "rgb"])
def test_a_pcd_with_several_numbers_where_one_is_meant(tmp_path, field):
    names = ["x", "y", "z", "normal_x", "normal_y", "normal_z", "rgb"]
    lines = ["VERSION 0.7", "FIELDS " + " ".join(names), "SIZE" + " 4" * 7, "TYPE" + " F" * 7]
    lines += ["COUNT " + " ".join("2" if name == field else "1" for name in names), "WIDTH 2", "HEIGHT 1", "POINTS 2"]
    (tmp_path / "a.pcd").write_text("\n".join([*lines, "DATA ascii", "1 2 3 4 5 6 7 8", "1 2 3 4 5 6 7 8", ""]))
    with pytest.raises(InputError, match=f"{field} has 2 numbers for a point instead of one"):
        read(tmp_path / "a.pcd")


def test_npz_of_scripts_are_bounded_too(tmp_path, room):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 3)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("points.npy", stream.getvalue())
    with pytest.raises(InputError, match="truncated: the header promises"):
        read_columns(tmp_path / "a.npz", ("points",), "a script")
    for packing in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", packing) as archive:
            archive.writestr("points.npy", bytes(100))
        with pytest.raises(InputError, match=r"path: got .*points.npy is packed in a way that numpy.savez does not"):
            read_columns(tmp_path / "a.npz", ("points",), "a script")


def test_recipes_that_are_none(tmp_path):
    from dlc_reg.training import load_recipe

    for content in (b"\xff\xfe", b"name = 1", b"seed = " + b"9" * 5000, b"[optimizer]\nrate = " + b"9" * 400):
        (tmp_path / "a.toml").write_bytes(content)
        with pytest.raises(InputError):
            load_recipe(tmp_path / "a.toml")


@pytest.mark.parametrize("what, count", [("files", 300), ("clouds", 40)])
def test_a_short_run_of_the_fuzzers(what, count):
    command = [sys.executable, TOOLS / "fuzz.py", what, "--count", str(count), "--seed", "7", "--workers", "1"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} cases of {what}, seed 7, 0 findings" in done.stdout


# --- clouds -----------------------------------------------------------------------------------------------------------
def test_any_order_of_bytes_and_any_strides(rng):
    points = rng.normal(size=(30, 3))
    expected = ops.knn(points, points, 3)
    for given in (points.astype(">f8"), np.asfortranarray(points), points[::-1].copy()[::-1]):
        for found, wanted in zip(ops.knn(given, given, 3), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert ops.knn(points[:1][::-1], points, 1)[1] == [[0]]  # a single row with a negative stride


@pytest.mark.parametrize("scale", [1e-38, 1e-19, 1e18, 1e30])
def test_alignments_of_extreme_sizes(rng, scale):
    cloud = torch.from_numpy(rng.normal(size=(1, 9, 3)) * scale)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # small numbers are taken for points on a line, as in PyTorch3D
        found = ops.corresponding_points_alignment(cloud, cloud)
    torch.testing.assert_close(found.R, torch.eye(3).double()[None])
    if scale > 1e20:
        with pytest.raises(InputError, match="float32 cannot hold"):
            ops.corresponding_points_alignment(cloud.float(), cloud.float())
    assert (ops.ball_query(cloud, cloud, K=2, radius=1e300).idx >= 0).all()


@pytest.mark.parametrize("align", [ops.corresponding_points_alignment, ops.iterative_closest_point])
def test_points_of_no_dimension(align):
    with pytest.raises(InputError, match="X: got shape"):
        align(torch.zeros(1, 3, 0), torch.zeros(1, 3, 0))


def test_normals_that_are_no_unit_vectors(rng):
    """Cosines that are no numbers went into a bin at minus 2^31."""
    index = ops.SearchIndex(torch.from_numpy(rng.random((40, 3))))
    normals = torch.tensor([2.0, 2.0, 0.0]).repeat(40, 1)
    normals[5] = torch.tensor([3e38, -3e38, 0.0])
    for oriented in (True, False):
        for describe in (ops.signatures, ops.fpfh):
            assert describe(index, normals, 0.8, oriented=oriented).isfinite().all()


def test_a_surface_that_float32_cannot_span():
    points = torch.tensor([[3e38, 0.0, 0.0], [-3e38, 0.0, 0.0]])
    with pytest.raises(InputError, match="points: got points that reach further than float32 does"):
        ops.Surface(points, torch.eye(3)[:2], cell=1.0, reach=1.0)


# --- processes and interrupts -----------------------------------------------------------------------------------------
SIDE_BY_SIDE = """
import multiprocessing, signal, sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
import numpy as np
import torch
import dlc_reg

rng = np.random.default_rng(0)
target = np.c_[rng.uniform(-1, 1, (300, 2)), np.zeros(300)]
target[:, 2] = np.sin(3 * target[:, 0]) * np.cos(2 * target[:, 1])
source = target[:200] + [0.1, 0.2, 0.0]

def answer(_=0):
    return dlc_reg.register(source, target, num_threads=2).transformation.tobytes()

class Answers(torch.utils.data.Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, index):
        return np.frombuffer(answer(), np.float64).copy()

if __name__ == "__main__":
    faults = []
    own = answer()  # the threads are there when it forks
    for context in ("fork", "forkserver"):
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(context)) as pool:
            faults += [context for found in pool.map(answer, range(2), timeout=120) if found != own]
    loader = torch.utils.data.DataLoader(Answers(), num_workers=2, batch_size=None, multiprocessing_context="fork")
    faults += ["loader" for found in loader if found.numpy().tobytes() != own]
    with ThreadPoolExecutor(4) as pool:
        faults += ["threads" for found in pool.map(answer, range(8)) if found != own]
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    interrupted = 0
    for wait in (0.001, 0.004, 0.01, 0.02, 0.04, 0.08):
        try:
            signal.setitimer(signal.ITIMER_REAL, wait)
            answer()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupted += 1
        faults += [] if answer() == own else [f"after {wait}"]
    print(faults, interrupted > 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_pools_data_loaders_threads_and_interrupts(tmp_path):
    script = tmp_path / "side_by_side.py"
    script.write_text(SIDE_BY_SIDE)
    done = subprocess.run([sys.executable, script], env=environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[] True"


def test_a_laz_file_is_read_in_the_child_of_a_fork(tmp_path, whole):
    (tmp_path / "a.laz").write_bytes(whole["a.laz"])
    code = f"""
import os, signal
from dlc_reg.io import read
assert len(read({str(tmp_path / "a.laz")!r}).points) == 12
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(len(read({str(tmp_path / "a.laz")!r}).points))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 12
"""
    subprocess.run([sys.executable, "-c", code], env=environment(), cwd=tmp_path, check=True, timeout=200)


def test_memory_stays_flat():
    command = [sys.executable, TOOLS / "soak.py", "--calls", "200", "--every", "100"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


# --- output -----------------------------------------------------------------------------------------------------------
def test_a_kill_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "a.npy"
    write(path, np.eye(3))
    code = f"""
import os, signal
from pathlib import Path
from dlc_reg.io import replacing
with replacing(Path({str(path)!r}), overwrite=True) as draft:
    draft.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), cwd=tmp_path, timeout=200)
    assert done.returncode == -signal.SIGKILL
    np.testing.assert_array_equal(read(path).points, np.eye(3))
    write(path, 2 * np.eye(3), overwrite=True)  # what the killed one left is in nobody's way
    np.testing.assert_array_equal(read(path).points, 2 * np.eye(3))


def test_drafts_of_one_name_side_by_side_and_names_as_long_as_may_be(tmp_path):
    path = tmp_path / ("x" * 250 + ".txt")
    with replacing(path, overwrite=True) as first, replacing(path, overwrite=True) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_checkpoints_are_no_pickles():
    state = {"a": {3: torch.arange(3), "x": (1, 2.5, None)}, "b": [True, "text", torch.zeros(0)], "inf": float("inf")}
    content = _checkpoint.packed(state)
    back = _checkpoint.unpacked(content)
    assert back["a"]["x"] == (1, 2.5, None) and torch.equal(back["a"][3], torch.arange(3)) and back["inf"] > 1e308
    assert back["b"][:2] == [True, "text"] and back["b"][2].shape == (0,)
    for damaged in (b"", content[:40], content[:-3], b"\x80\x04." + content):
        with pytest.raises(ValueError, match=r"damaged|something else"):
            _checkpoint.unpacked(damaged)
