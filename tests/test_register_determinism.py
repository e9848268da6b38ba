"""`register`: the same input gives the same bytes, whatever the threads, the processes and the global state."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from registering import pose, same_bytes

import dlc_reg


@pytest.mark.parametrize("num_threads", [1, 2, 3, None])
@pytest.mark.parametrize("method", ["auto", "symmetric"])
def test_same_bytes_whatever_the_number_of_threads(thin_source, thin_target, thin_result, num_threads, method):
    options = {"method": method, "init": None if method == "auto" else pose([0, 1, 0], 30)}
    expected = thin_result if method == "auto" else dlc_reg.register(thin_source, thin_target, num_threads=1, **options)
    same_bytes(dlc_reg.register(thin_source, thin_target, num_threads=num_threads, **options), expected)


def test_same_bytes_with_scaling(thin_source, thin_target):
    same_bytes(*(dlc_reg.register(thin_source, thin_target, with_scaling=True, num_threads=n) for n in (1, 3)))


def test_no_global_state_is_read_or_written(thin_source, thin_target, thin_result):
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state().clone()  # noqa: NPY002
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            same_bytes(dlc_reg.register(thin_source, thin_target), thin_result)
        with torch.enable_grad():
            same_bytes(dlc_reg.register(thin_source, thin_target), thin_result)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_torchs_own_threads_do_not_matter(thin_source, thin_target, thin_result):
    before = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            same_bytes(dlc_reg.register(thin_source, thin_target), thin_result)
    finally:
        torch.set_num_threads(before)


def test_calls_side_by_side(thin_source, thin_target, thin_result):
    with ThreadPoolExecutor(3) as pool:
        for r in pool.map(lambda _: dlc_reg.register(thin_source, thin_target), range(3)):
            same_bytes(r, thin_result)


FORKING = """
import faulthandler, multiprocessing, sys
import numpy as np
import dlc_reg

def child(queue):
    faulthandler.dump_traceback_later(40)  # where it hangs, if it hangs
    queue.put(dlc_reg.register(source, target, num_threads=2).transformation)

source, target = (np.load(path) for path in sys.argv[1:])
own = dlc_reg.register(source, target, num_threads=2).transformation  # the threads are there when it forks
context = multiprocessing.get_context("fork")
for _ in range(3):
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,), daemon=True)
    process.start()
    try:
        assert queue.get(timeout=60).tobytes() == own.tobytes()
    finally:
        process.kill()
        process.join()
print(own.tobytes().hex())
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
def test_in_a_forked_child(tmp_path, thin_source, thin_target, thin_result):
    """Of a process of its own: what else may have threads in this one, a fork need not bear."""
    paths = [str(tmp_path / name) for name in ("source.npy", "target.npy")]
    for path, points in zip(paths, (thin_source, thin_target), strict=True):
        np.save(path, points)
    command = [sys.executable, "-c", FORKING, *paths]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == thin_result.transformation.tobytes().hex()
