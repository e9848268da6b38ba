"""Bad input of the operators: which argument, what was given, what is expected."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from dlc_reg import ops
from dlc_reg.errors import InputError

GOOD = torch.rand(6, 3)

BAD_POINTS = {
    "a list": [[0.0, 0.0, 0.0]],
    "nothing": None,
    "text": np.array([["a", "b", "c"]]),
    "one dimension": torch.rand(3),
    "two columns": torch.rand(6, 2),
    "homogeneous": np.random.default_rng(0).random((6, 4)),
    "a batch": torch.rand(2, 6, 3),
    "integers": torch.ones(6, 3, dtype=torch.int64),
    "half precision": torch.rand(6, 3).half(),
    "complex": torch.rand(6, 3, dtype=torch.complex64),
    "NaN": torch.tensor([[0.0, float("nan"), 0.0]]),
    "infinity": np.array([[0.0, 0.0, np.inf]]),
    "both infinities": torch.tensor([[float("inf"), 0.0, float("-inf")]]),
    "too large for float32": np.array([[1e39, 0.0, 0.0]]),
}

CALLS = {
    "points": [
        lambda points: ops.knn(GOOD, points),
        lambda points: ops.radius_search(GOOD, points, 1.0),
        lambda points: ops.SearchIndex(points),
        lambda points: ops.voxel_downsample(points, 0.1),
        lambda points: ops.voxel_groups(points, 0.1),
        lambda points: ops.estimate_normals(points),
        lambda points: ops.estimate_covariances(points),
    ],
    "query": [
        lambda query: ops.knn(query, GOOD),
        lambda query: ops.radius_search(query, GOOD, 1.0),
        lambda query: ops.SearchIndex(GOOD).knn(query),
        lambda query: ops.SearchIndex(GOOD).radius(query, 1.0),
    ],
    "source": [
        lambda source: ops.linearize("point_to_point", source, ops.SearchIndex(GOOD), np.eye(4), max_distance=1.0)
    ],
}


@pytest.mark.parametrize("given", BAD_POINTS.values(), ids=BAD_POINTS.keys())
@pytest.mark.parametrize(("argument", "call"), [(name, call) for name, calls in CALLS.items() for call in calls])
def test_bad_points(argument: str, call, given: object) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError) as error:
        call(given)
    assert error.value.argument == argument


@pytest.mark.parametrize("call", CALLS["points"])
def test_no_points(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="points: got no points; expected at least one point"):
        call(torch.empty(0, 3))


@pytest.mark.parametrize("k", [0, -1, 2.5, "3", None])
def test_bad_k(k: object) -> None:
    index = ops.SearchIndex(GOOD)
    for call in (
        lambda: ops.knn(GOOD, GOOD, k),
        lambda: index.knn(GOOD, k),
        lambda: ops.estimate_normals(GOOD, k),
        lambda: ops.estimate_covariances(index, k),
    ):
        with pytest.raises(InputError, match=r"^k: got"):
            call()


@pytest.mark.parametrize("distance", [-1.0, float("nan"), "far"])
def test_bad_distances(distance: object) -> None:
    index = ops.SearchIndex(GOOD)
    for call in (
        lambda: ops.knn(GOOD, GOOD, max_distance=distance),
        lambda: index.knn(GOOD, 1, distance),
        lambda: ops.estimate_normals(GOOD, max_distance=distance),
    ):
        with pytest.raises(InputError, match="max_distance"):
            call()
    for call in (lambda: ops.radius_search(GOOD, GOOD, distance), lambda: index.radius(GOOD, distance)):
        with pytest.raises(InputError, match="radius"):
            call()


@pytest.mark.parametrize("voxel_size", [0.0, -1.0, float("nan"), float("inf"), None, 1e-12])
def test_bad_voxel_sizes(voxel_size: object) -> None:
    with pytest.raises(InputError, match="voxel_size"):
        ops.voxel_downsample(GOOD, voxel_size)


@pytest.mark.parametrize("num_threads", [0, -1, 1.5])
def test_bad_numbers_of_threads(num_threads: object) -> None:
    for call in (
        lambda: ops.knn(GOOD, GOOD, num_threads=num_threads),
        lambda: ops.SearchIndex(GOOD, num_threads=num_threads),
        lambda: ops.voxel_groups(GOOD, 1.0, num_threads=num_threads),
        lambda: ops.estimate_normals(GOOD, num_threads=num_threads),
    ):
        with pytest.raises(InputError, match="num_threads"):
            call()


def test_large_numbers_that_are_finite_are_fine() -> None:
    huge = torch.full((10, 3), 3e38)  # their sum is not finite
    assert ops.knn(huge, huge)[1].tolist() == [[0]] * 10


def test_the_error_is_of_both_worlds_and_pickles() -> None:
    with pytest.raises(ValueError) as error:
        ops.knn(GOOD, torch.rand(6, 2))
    assert isinstance(error.value, RuntimeError)  # what code written against Open3D catches
    assert str(error.value) == "points: got shape (6, 2); expected shape (N, 3)"
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_a_missing_native_module_is_named() -> None:
    code = "import sys; sys.modules['dlc_reg._core'] = None\nimport dlc_reg.ops"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert result.returncode != 0 and "native module cannot be imported" in result.stderr


def test_the_import_is_light() -> None:
    code = (
        "import sys, dlc_reg.ops; print([m for m in ('scipy', 'open3d', 'trimesh', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert result.stdout.strip() == "[]"
