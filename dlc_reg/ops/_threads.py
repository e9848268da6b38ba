"""Torch on one thread, where its answer must not depend on the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch's sums depend on the number of its threads; and where tensors are small, threads cost more than they do."""
    threads = torch.get_num_threads()
    if threads == 1:  # in the child of a fork too, where changing it touches a pool whose threads are gone
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
