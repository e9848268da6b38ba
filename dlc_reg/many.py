"""`register_many`: pair after pair on any executor, into a file that an interrupted run takes up again."""

from __future__ import annotations

import numbers
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain, islice
from typing import Any

from dlc_reg._many_child import DIED, end_child, end_children, register_pair_within
from dlc_reg._many_list import Entry, distinct, read_entries
from dlc_reg._many_output import COLUMNS, ENTRIES, Output, open_output
from dlc_reg._many_work import Answer, register_pair, told
from dlc_reg.api import Options
from dlc_reg.errors import InputError
from dlc_reg.geometry import check_viewpoint
from dlc_reg.registration.constraint import constrained
from dlc_reg.registration.result import RegistrationResult

VIEWPOINTS = ("source_viewpoint", "target_viewpoint")
OF_CLOUDS = (*VIEWPOINTS, "source_gravity")  # what `register` takes beside its `Options`
UNBORN = "the executor's processes die before they are given a pair; does the script lack `if __name__ == '__main__':`?"
BROKE = (
    "a process of the executor died over this pair or one beside it; give a function that makes the executor, and such "
    "pairs are tried again one by one"
)


@dataclass(frozen=True, eq=False)
class PairResult:
    """What became of one pair.

    Attributes:
        name: The pair's name.
        source, target: As they were given; of a list in a file, their paths.
        result: What `register` found, without its clouds; None where it raised or its process died.
        error: Why there is no result, or None.
        seconds: Spent on the pair where it was worked on; 0 where that is not known.
    """

    name: str
    source: Any
    target: Any
    result: RegistrationResult | None
    error: str | None
    seconds: float


def register_many(
    pairs: Any,
    *,
    executor: Executor | Callable[[], Executor] | None = None,
    output: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
    in_flight: int = 64,
    allow_outside: bool = False,
    **options: Any,
) -> Iterator[PairResult]:
    """Registers many pairs; a pair that fails, for whatever reason, costs only itself.

    Args:
        pairs: An iterable of (source, target), (source, target, init), or mappings or named tuples of source, target,
            init and name; or the path of a CSV file with such columns, whose paths are relative to its folder and whose
            init is 16 numbers. A source and a target are what `register` takes. Without a name a pair is called
            "source -> target" where both are paths, and by its number where not.
        executor: Where to work. None: here, one after the other. Any `concurrent.futures.Executor`, a Dask client's
            `get_executor()` too; each pair then has one thread, unless `num_threads` is given. A function that makes an
            executor: when a process dies, another executor takes over and the pairs in flight are tried again one by
            one, so that only the pair that kills its process is reported as failed. It is shut down in the end.
        output: A .csv file that each result is written to before it is given out, or a .parquet folder (extra
            `parquet`), a data set whose next part is written when the last is ten seconds old, and in the end. If it
            exists, the pairs in it are skipped (by name, failed ones too) and the others added; a file or folder of
            anything else is refused.
        timeout: Seconds for one pair, from when it is begun. One that takes longer is ended and has failed. For this
            each worker, of whatever executor, works through a process of its own, which starts when the worker's first
            pair comes and after one that was ended (some seconds that are no pair's). So a pair that crashes costs only
            itself too, and threads are enough for `executor`. Classes that the script itself defines are not known
            there. None: no limit, and no such processes.
        in_flight: How many pairs are submitted at once: more than the executor has workers. The iterable is not read
            further than that.
        allow_outside: Let the paths in a CSV file lead out of its folder.
        options: Of `register`, for every pair; not `init`, `progress` and `callback`.

    Returns:
        An iterator of `PairResult` in the order of completion. Nothing is registered before it is asked.

    Raises:
        InputError: Bad options or output, or a list that is wrong (an iterable's item when its turn comes); a name used
            twice, where there is an output.
        concurrent.futures.BrokenExecutor: A process died and the executor cannot be made anew. The pairs in flight were
            given out as failed, but are not in the output: another run with it does them and those after them.
    """
    _check_options(options)
    if isinstance(in_flight, bool) or not isinstance(in_flight, int) or in_flight < 1:
        raise InputError("in_flight", repr(in_flight), "a positive integer")
    number = isinstance(timeout, numbers.Real) and not isinstance(timeout, bool)
    if timeout is not None and not (number and 0 < timeout <= threading.TIMEOUT_MAX):
        raise InputError("timeout", repr(timeout), "a positive finite number of seconds, or None")
    if not (executor is None or isinstance(executor, Executor) or callable(executor)):
        given = f"a {type(executor).__name__}"
        raise InputError("executor", given, "a concurrent.futures.Executor, a function that makes one, or None")
    entries = read_entries(pairs, allow_outside=allow_outside)
    results = None if output is None else open_output(output)
    if results is not None:
        entries = (entry for entry in distinct(entries) if entry.name not in results.done)
    if executor is not None:
        options = {"num_threads": 1, **options}
    work = register_pair if timeout is None else partial(register_pair_within, float(timeout))
    workers = _Workers(_Here() if executor is None else executor, work, options)
    return _run(entries, workers, results, 1 if executor is None else in_flight)


def _check_options(options: dict[str, Any]) -> None:
    known = [field.name for field in fields(Options)]
    for name in options:
        if name not in (*known, *OF_CLOUDS):
            raise InputError(name, "an option", "one of " + ", ".join((*known, *OF_CLOUDS)))
    checked = Options(**{name: value for name, value in options.items() if name in known})
    constrained(checked.dof, options.get("source_gravity"), checked.target_gravity)
    for name in VIEWPOINTS:
        if options.get(name) is not None:
            check_viewpoint(options[name], name)


def _run(entries: Iterator[Entry], workers: _Workers, output: Output | None, in_flight: int) -> Iterator[PairResult]:
    with output or nullcontext(), workers:
        while True:
            finished, lost = workers.work(entries, in_flight)
            if not finished and not lost:
                if workers.wrong is not None:
                    raise workers.wrong
                return
            untried = set() if workers.replaceable else {entry.name for entry in lost}
            for record in chain(finished, workers.again(lost)):
                if output is not None and record.name not in untried:
                    output.add(_row(record))
                yield record
            if lost and not workers.replaceable:
                raise BrokenExecutor(f"after {len(lost)} pairs in flight were reported as failed: {BROKE}")


class _Workers:
    """An executor, and the pairs that are in flight on it."""

    def __init__(
        self, executor: Executor | Callable[[], Executor], work: Callable[..., Answer], options: dict[str, Any]
    ) -> None:
        self._executor: Executor | None = executor if isinstance(executor, Executor) else None
        self._make = None if isinstance(executor, Executor) else executor
        self.replaceable = self._make is not None
        self._work, self._options = work, options
        self._pending: dict[Future[Any], Entry] = {}
        self.wrong: InputError | None = None  # of the list: raised when what is in flight is done

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for future in self._pending:
            future.cancel()
        if kind is KeyboardInterrupt:
            end_children()
        self._discard()

    def work(self, entries: Iterable[Entry], in_flight: int) -> tuple[list[PairResult], list[Entry]]:
        """Fills up and waits; returns what is finished, and what was in flight on an executor that broke."""
        lost: list[Entry] = []
        try:
            for entry in islice(entries, 0 if self.wrong else in_flight - len(self._pending)):
                try:
                    self._pending[self._submit(entry)] = entry
                except BrokenExecutor:
                    lost.append(entry)
                    break
        except InputError as error:
            self.wrong = error
        finished: list[PairResult] = []
        self._collect(wait(self._pending, return_when=FIRST_COMPLETED).done, finished, lost)
        if lost:
            self._collect(wait(self._pending).done, finished, lost)
        return finished, lost

    def again(self, lost: list[Entry]) -> Iterator[PairResult]:
        """Each alone on an executor that works; where none can be made, they have failed."""
        if not self.replaceable:
            yield from (_failed(entry, BROKE) for entry in lost)
            return
        for entry in lost:
            self._renew()
            finished: list[PairResult] = []
            died: list[Entry] = []
            future = self._submit(entry)
            self._pending[future] = entry
            self._collect(wait([future]).done, finished, died)
            yield from finished
            yield from (_failed(entry, DIED) for entry in died)
            if died:
                self._discard()

    def _renew(self) -> None:
        """Another executor, unless this one works: no pair is to be blamed for processes that cannot even start."""
        if self._executor is not None:
            with suppress(BrokenExecutor):
                self._executor.submit(int).result()
                return
            self._discard()
        try:
            self._started().submit(int).result()
        except BrokenExecutor as error:
            raise BrokenExecutor(UNBORN) from error

    def _started(self) -> Executor:
        if self._executor is None:
            assert self._make is not None
            self._executor = self._make()
        return self._executor

    def _submit(self, entry: Entry) -> Future[Any]:
        return self._started().submit(self._work, entry.source, entry.target, entry.init, self._options)

    def _collect(self, futures: Iterable[Future[Any]], finished: list[PairResult], lost: list[Entry]) -> None:
        for future in futures:
            entry = self._pending.pop(future)
            try:
                result, error, seconds = future.result()
            except (BrokenExecutor, CancelledError):
                lost.append(entry)
            except Exception as failure:  # of the executor: what it could not send, or its own
                finished.append(_failed(entry, told(failure)))
            else:
                finished.append(PairResult(entry.name, entry.source, entry.target, result, error, seconds))

    def _discard(self) -> None:
        """Of an executor that is the caller's, nothing."""
        if isinstance(self._executor, _Here):
            self._executor.shutdown()
        if self.replaceable and self._executor is not None:
            self._executor.shutdown()
            self._executor = None


class _Here(Executor):
    """This process, at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        end_child()


def _failed(entry: Entry, why: str) -> PairResult:
    return PairResult(entry.name, entry.source, entry.target, None, why, 0.0)


def _row(record: PairResult) -> list[Any]:
    source, target = (
        os.fspath(cloud) if isinstance(cloud, (str, os.PathLike)) else type(cloud).__name__
        for cloud in (record.source, record.target)
    )
    r = record.result
    found: dict[str, Any] = {}
    if r is not None:
        found = {
            "verdict": r.verdict,
            "reasons": "; ".join(r.verdict_reasons),
            "fitness": float(r.fitness),
            "inlier_rmse": float(r.inlier_rmse),
            **dict(zip(ENTRIES, r.transformation.ravel().tolist(), strict=True)),
        }
    found |= {"name": record.name, "source": source, "target": target, "seconds": round(record.seconds, 3)}
    found["error"] = record.error
    return [found.get(column) for column in COLUMNS]
