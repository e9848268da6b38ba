"""The process in which a worker of `register_many` works where pairs have a time limit: one that can be ended."""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from typing import IO, Any

from dlc_reg._many_work import Answer, register_pair, told

DIED = "the process that worked on it died: it crashed, was killed, or ran out of memory"
# The way of the parent's imports comes first: by it this package is found, and the classes of what is sent.
_BEGIN = """
import pickle, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told too, and its end is this one's
sys.path[:] = pickle.load(sys.stdin.buffer)
from dlc_reg._many_child import serve
serve()
"""

_mine = threading.local()
_children: weakref.WeakSet[_Child] = weakref.WeakSet()


def register_pair_within(timeout: float, *pair: Any) -> Answer:
    """`register_pair(*pair)` in this thread's child, which is ended when the pair takes longer than `timeout` [s].

    A child that ended, for this reason or of itself, costs the pair; the next one gets another child.
    """
    try:
        request = pickle.dumps(pair)
    except Exception as error:  # whatever what is to be sent raises
        return None, told(error), 0.0
    child = getattr(_mine, "child", None)
    if child is None or not child.is_ours():
        child = _mine.child = _Child()
    began = time.perf_counter()
    try:
        return child.ask(request, timeout)
    except TimeoutError:
        why = f"took longer than the timeout of {timeout:g} s, and was ended"
    except (EOFError, OSError, pickle.UnpicklingError):
        why = DIED
    except BaseException:
        end_child()
        raise
    end_child()
    return None, why, time.perf_counter() - began


def end_child() -> None:
    """Ends this thread's child, if it has one."""
    child = getattr(_mine, "child", None)
    if child is not None:
        del _mine.child
        child.end()


def end_children() -> None:
    """Ends those of all threads of this process: what they work on is not waited for."""
    for child in list(_children):
        child.kill()


class _Child:
    def __init__(self) -> None:
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BEGIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=-1
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self._started = False
        _children.add(self)

    def is_ours(self) -> bool:
        """A fork of the process that began it has its pipes too, and must leave them alone."""
        return self._owner == os.getpid()

    def ask(self, request: bytes, timeout: float) -> Answer:
        """Raises TimeoutError, or EOFError or OSError where the child ended of itself."""
        if not self._started:
            self._to.write(pickle.dumps(sys.path))
            self._to.flush()
            _take(self._from)  # imports take seconds, which are not the pair's
            self._started = True
        late = threading.Event()
        timer = threading.Timer(timeout, self._expire, [late])
        timer.daemon = True
        timer.start()
        try:
            _put(self._to, request)
            answer: Answer | None = pickle.loads(_take(self._from))
        except (EOFError, OSError, pickle.UnpicklingError):
            answer = None
        timer.cancel()
        timer.join()  # it may be about to end the child, whose answer has just come
        if late.is_set():
            raise TimeoutError
        if answer is None:
            raise EOFError
        return answer

    def _expire(self, late: threading.Event) -> None:
        late.set()
        self._process.kill()

    def kill(self) -> None:
        if self.is_ours():
            self._process.kill()

    def end(self) -> None:
        if not self.is_ours():
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._to, self._from):
            with suppress(OSError):  # what was not sent is of no use to a process that ended
                pipe.close()

    def __del__(self) -> None:
        self.end()


def _put(stream: IO[bytes], message: bytes) -> None:
    """With its length before it, so that one that cannot be unpickled is one message all the same."""
    stream.write(len(message).to_bytes(8, "little") + message)
    stream.flush()


def _take(stream: IO[bytes]) -> bytes:
    begin = stream.read(8)
    size = int.from_bytes(begin, "little")
    message = stream.read(size) if len(begin) == 8 else b""
    if len(begin) < 8 or len(message) < size:
        raise EOFError
    return message


def serve() -> None:
    """The child's life: pairs from the standard input, answers to what was the standard output, until that ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not come between the answers
    requests: queue.Queue[Any] = queue.Queue()

    def listen() -> None:
        """On the side, so that a child whose parent was killed does not hang on alone."""
        while True:
            try:
                request = _take(sys.stdin.buffer)
            except EOFError:
                os._exit(1)
            try:
                requests.put(pickle.loads(request))
            except Exception as error:  # of a class that is not found here
                requests.put(error)

    threading.Thread(target=listen, daemon=True).start()
    answer: Any = None
    while True:
        _put(answers, pickle.dumps(answer))
        pair = requests.get()
        answer = (None, told(pair), 0.0) if isinstance(pair, Exception) else register_pair(*pair)
