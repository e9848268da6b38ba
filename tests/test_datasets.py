"""Downloads of the data sets, against a local server."""

from __future__ import annotations

import errno
import hashlib
import http.server
import shutil
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "datasets"))

import _fetch  # noqa: E402

DATA = bytes(np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8))
DIGEST = hashlib.sha256(DATA).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves DATA. `cuts`: after how many bytes each of the next answers ends; `codes`: errors to answer first."""

    def __init__(self) -> None:
        self.cuts: list[int] = []
        self.codes: list[int] = []
        self.ranges = True
        self.sent = 0
        self.requests: list[tuple[str | None, str | None]] = []  # Range and User-Agent
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is part of the test."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append((wanted, self.headers.get("User-Agent")))
        if server.codes:
            self.send_error(server.codes.pop(0))
            return
        begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        if begin and begin >= len(DATA):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(DATA)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(DATA) - 1}/{len(DATA)}")
        self.send_header("Content-Length", str(len(DATA) - begin))
        self.end_headers()
        body = DATA[begin:][: server.cuts.pop(0) if server.cuts else None]
        self.wfile.write(body)
        server.sent += len(body)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(_fetch.time, "sleep", lambda _: None)
    for key in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(key, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_whole_download(server, tmp_path, capsys):
    path = _fetch.fetch(server.url, tmp_path / "new" / "data.bin", sha256=DIGEST)
    assert path.read_bytes() == DATA
    assert [p.name for p in path.parent.iterdir()] == ["data.bin"]
    assert server.requests == [(None, _fetch.USER_AGENT)]
    assert "data.bin" in capsys.readouterr().err  # the bar
    _fetch.fetch(server.url, path, sha256=DIGEST)
    assert len(server.requests) == 1  # not fetched again


def test_a_cut_download_goes_on_where_it_stopped(server, tmp_path):
    server.cuts = [1_000_000, 500_000]
    assert _fetch.fetch(server.url, tmp_path / "data.bin", sha256=DIGEST).read_bytes() == DATA
    assert [r for r, _ in server.requests] == [None, "bytes=1000000-", "bytes=1500000-"]
    assert server.sent == len(DATA)


def test_another_run_goes_on_where_the_last_one_stopped(server, tmp_path):
    server.cuts = [1_000_000]
    with pytest.raises(SystemExit, match=r"1000000 of 3000000 bytes came.*Run again to go on"):
        _fetch.fetch(server.url, tmp_path / "data.bin", sha256=DIGEST, retries=0)
    assert [p.name for p in tmp_path.iterdir()] == ["data.bin.part"]
    assert _fetch.fetch(server.url, tmp_path / "data.bin", sha256=DIGEST).read_bytes() == DATA
    assert server.sent == len(DATA)


def test_a_server_without_ranges_sends_all_of_it_again(server, tmp_path):
    server.ranges, server.cuts = False, [1_000_000]
    assert _fetch.fetch(server.url, tmp_path / "data.bin", sha256=DIGEST).read_bytes() == DATA
    assert server.sent == 1_000_000 + len(DATA)


def test_a_complete_part_is_taken_and_one_too_long_is_not(server, tmp_path):
    part = tmp_path / "data.bin.part"
    part.write_bytes(DATA)
    assert _fetch.fetch(server.url, tmp_path / "data.bin", sha256=DIGEST).read_bytes() == DATA
    assert server.sent == 0
    (tmp_path / "data.bin").unlink()
    part.write_bytes(DATA + b"more")
    assert _fetch.fetch(server.url, tmp_path / "data.bin", sha256=DIGEST).read_bytes() == DATA


def test_a_wrong_checksum_leaves_no_file(server, tmp_path):
    with pytest.raises(SystemExit, match=f"SHA-256 is {DIGEST}, expected {'0' * 64}"):
        _fetch.fetch(server.url, tmp_path / "data.bin", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "data.bin").write_text("another file")
    with pytest.raises(SystemExit, match="remove it to fetch it again"):
        _fetch.fetch(server.url, tmp_path / "data.bin", sha256=DIGEST)
    assert len(server.requests) == 1


def test_the_checksum_is_printed_where_none_is_on_record(server, tmp_path, capsys):
    _fetch.fetch(server.url, tmp_path / "data.bin")
    assert f"SHA-256 {DIGEST} (none on record" in capsys.readouterr().out


def test_servers_that_refuse_or_are_busy(server, tmp_path):
    server.codes = [404]
    with pytest.raises(SystemExit, match="the server answered 404"):
        _fetch.fetch(server.url, tmp_path / "data.bin")
    assert len(server.requests) == 1  # no use to ask again
    server.codes = [503, 503]
    _fetch.fetch(server.url, tmp_path / "data.bin", sha256=DIGEST)
    assert len(server.requests) == 4


def test_offline(server, tmp_path):
    url = server.url
    server.server_close()
    with pytest.raises(SystemExit, match=r"Are you offline.*--archive FILE"):
        _fetch.fetch(url, tmp_path / "data.bin")


def test_a_full_disk(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    with monkeypatch.context() as patch:
        patch.setattr(_fetch.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(SystemExit, match="3 MB to come, 1 MB free"):
            _fetch.fetch(server.url, tmp_path / "data.bin")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_fetch, "_copy", full)
    with pytest.raises(SystemExit, match="the disk is full"):
        _fetch.fetch(server.url, tmp_path / "data.bin")
    assert len(server.requests) == 2


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_trees_read_without_unpacking(tmp_path):
    files = {"a/x.txt": b"1", "b/x.txt": b"2", "../evil.txt": b"3", "big": bytes(100)}
    tree = _fetch.Tree(zipped(tmp_path / "t.zip", files))
    assert tree.read("../evil.txt") == b"3" and not (tmp_path.parent / "evil.txt").exists()
    assert tree.find("a/x.txt") == "a/x.txt"
    for call, message in (
        (lambda: tree.find("x.txt"), "2 files called x.txt"),
        (lambda: tree.read("big", limit=99), "larger than 99"),
        (lambda: tree.read("c"), "has no c"),
        (lambda: _fetch.Tree(tmp_path / "none"), "neither a folder nor a zip"),
    ):
        with pytest.raises(SystemExit, match=message):
            call()
    (tmp_path / "folder" / "a").mkdir(parents=True)
    (tmp_path / "folder" / "a" / "y").write_bytes(b"4")
    assert _fetch.Tree(tmp_path / "folder").read("a/y") == b"4"
