"""Downloads against a local HTTP server that misbehaves on request."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from coalmine.data import download
from coalmine.data.download import RemoteFile, fetch, verify
from coalmine.errors import CoalmineError

CONTENT = np.random.default_rng(0).bytes(200_000)
OTHER = bytes(len(CONTENT))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range"))
        self.server.encodings.append(self.headers.get("Accept-Encoding"))
        answers = self.server.answers
        (answers.pop(0) if answers else serve)(self)
        self.close_connection = True

    def begin(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send(self, body: bytes) -> None:
        self.wfile.write(body)
        self.server.sent += len(body)

    def log_message(self, *args: object) -> None:
        pass


Answer = Callable[[Handler], None]


class Server(ThreadingHTTPServer):
    """Serves CONTENT with ranges; ``answers`` are what it does to the next requests instead."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.answers: list[Answer] = []
        self.ranges: list[str | None] = []
        self.encodings: list[str | None] = []
        self.sent = 0

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that hangs up early is part of the tests

    @property
    def remote(self) -> RemoteFile:
        return RemoteFile("data.bin", f"http://127.0.0.1:{self.server_port}/data.bin", len(CONTENT), SHA256)


def serve(handler: Handler, cut: int | None = None) -> None:
    content, asked = handler.server.content, handler.headers.get("Range")
    start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
    if asked and start >= len(content):
        handler.begin(416, Content_Range=f"bytes */{len(content)}")
        return
    extra = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if asked else {}
    handler.begin(206 if asked else 200, Content_Length=len(content) - start, **extra)
    handler.send(content[start : len(content) if cut is None else start + cut])


def cut_after(n_bytes: int) -> Answer:
    return lambda handler: serve(handler, cut=n_bytes)


def status(code: int, **headers: object) -> Answer:
    return lambda handler: handler.begin(code, **headers)


def whole(body: bytes, **headers: object) -> Answer:
    """Answer 200 with a body whose end is the end of the connection, unless a Content-Length is given."""

    def answer(handler: Handler) -> None:
        handler.begin(200, **headers)
        handler.send(body)

    return answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "raw" / "data.bin"


def part_of(target: Path, content: bytes | None = None) -> Path:
    part = target.with_name("data.bin.part")
    if content is not None:
        part.parent.mkdir(exist_ok=True)
        part.write_bytes(content)
    return part


def quietly(remote: RemoteFile, target: Path, **options: object) -> list[str]:
    lines: list[str] = []
    fetch(remote, target, **{"backoff": 0.0, "progress": lines.append} | options)  # type: ignore[arg-type]
    return lines


def test_a_good_download_becomes_the_target_and_leaves_no_part(server: Server, target: Path) -> None:
    lines: list[str] = []
    assert fetch(server.remote, target, progress=lines.append) == SHA256
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]
    assert server.ranges == [None]
    assert server.encodings == ["identity"]
    assert len(lines) == 2
    assert lines[0].startswith("data.bin: 0.2 MB, 100%, ")
    assert lines[1] == f"data.bin: verified, SHA-256 {SHA256}"


def test_a_cut_connection_is_resumed_where_it_broke(server: Server, target: Path) -> None:
    server.answers = [cut_after(70_001), cut_after(29_999)]
    quietly(server.remote, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=70001-", "bytes=100000-"]
    assert server.sent == len(CONTENT)


def test_the_part_of_an_earlier_run_is_resumed(server: Server, target: Path) -> None:
    part_of(target, CONTENT[:150_000])
    quietly(server.remote, target, attempts=1)
    assert target.read_bytes() == CONTENT
    assert server.sent == 50_000


def test_a_complete_part_needs_no_connection(server: Server, target: Path) -> None:
    part_of(target, CONTENT)
    quietly(server.remote, target, attempts=1)
    assert target.read_bytes() == CONTENT
    assert server.ranges == []


def test_a_server_that_ignores_ranges_makes_it_start_over(server: Server, target: Path) -> None:
    part_of(target, CONTENT[:1000])
    server.answers = [whole(CONTENT, Content_Length=len(CONTENT))]
    quietly(server.remote, target, attempts=1)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]


@pytest.mark.parametrize(
    "content_range", ["bytes 999-199999/200000", "bytes 1001-199999/200000", "items 1000-2/3", None]
)
def test_a_range_that_was_not_asked_for_makes_it_start_over(
    server: Server, target: Path, content_range: str | None
) -> None:
    part_of(target, CONTENT[:1000])
    server.answers = [status(206, **({"Content_Range": content_range} if content_range else {}))]
    quietly(server.remote, target, attempts=2)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-", None]


def test_an_unwanted_partial_answer_is_refused(server: Server, target: Path) -> None:
    server.answers = [status(206, Content_Range="bytes 0-199999/200000")]
    with pytest.raises(CoalmineError, match=r"answered 206 Partial Content, expected 200 OK"):
        quietly(server.remote, target)


def test_a_part_that_is_too_long_is_dropped(server: Server, target: Path) -> None:
    part_of(target, CONTENT + b"x")
    quietly(server.remote, target, attempts=1)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None]


def test_a_whole_part_of_a_file_of_unknown_size_ends_with_416(server: Server, target: Path) -> None:
    part_of(target, CONTENT)
    quietly(dataclasses.replace(server.remote, size=None), target, attempts=1)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ["bytes=200000-"]
    assert server.sent == 0


def test_a_part_beyond_a_file_of_unknown_size_is_dropped_at_416(server: Server, target: Path) -> None:
    part_of(target, CONTENT + b"x")
    lines = quietly(dataclasses.replace(server.remote, size=None), target, attempts=2)
    assert "the server cannot resume at byte 200001" in lines[0]
    assert target.read_bytes() == CONTENT
    assert server.ranges == ["bytes=200001-", None]


def test_a_resumed_file_that_is_wrong_is_fetched_once_more_from_the_start(server: Server, target: Path) -> None:
    part_of(target, OTHER[:1000])
    quietly(server.remote, target, attempts=2)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-", None]


def test_server_errors_are_retried_with_doubled_waits(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    server.answers = [status(500), status(503), status(429, Retry_After=7), status(502, Retry_After=9999)]
    lines = quietly(server.remote, target, backoff=0.5)
    assert target.read_bytes() == CONTENT
    assert waits == [0.5, 1.0, 7.0, 60.0]
    assert "answered 500 Internal Server Error; attempt 2 of 5 in 0.5 s" in lines[0]


@pytest.mark.parametrize("code", [404, 403])
def test_a_refusal_ends_at_once(server: Server, target: Path, code: int) -> None:
    server.answers = [status(code)]
    with pytest.raises(
        CoalmineError, match=rf"data.bin: http://\S+ answered {code} .*set data.<role>.path: LOCAL_FILE"
    ):
        quietly(server.remote, target)
    assert len(server.ranges) == 1


def test_the_last_failure_is_told_and_the_part_kept(server: Server, target: Path) -> None:
    server.answers = [cut_after(10), cut_after(10), cut_after(10)]
    with pytest.raises(CoalmineError, match=r"2 attempts to download \S+ failed, the last one because the connection"):
        quietly(server.remote, target, attempts=2)
    assert part_of(target).read_bytes() == CONTENT[:20]
    assert not target.exists()


def test_an_unreachable_server_is_retried(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as closed:
        remote = closed.remote
    lines: list[str] = []
    with pytest.raises(CoalmineError, match="3 attempts to download"):
        fetch(remote, target, attempts=3, backoff=0.0, progress=lines.append)
    assert len(lines) == 2


def test_a_silent_server_is_given_up_after_the_timeout(server: Server, target: Path) -> None:
    release = threading.Event()

    def stay_silent(handler: Handler) -> None:
        release.wait(20)

    server.answers = [stay_silent]
    quietly(server.remote, target, attempts=2, timeout=0.2)
    release.set()
    assert target.read_bytes() == CONTENT


def test_a_bad_address_is_not_retried(target: Path) -> None:
    lines: list[str] = []
    with pytest.raises(CoalmineError, match=r"data.bin is no address, expected https"):
        fetch(RemoteFile("data.bin", "nonsense", None, None), target, progress=lines.append)
    assert lines == []


def test_a_wrong_hash_keeps_the_old_file_and_names_both_hashes_and_the_remedy(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"old")
    server.content = OTHER
    found = hashlib.sha256(OTHER).hexdigest()
    with pytest.raises(CoalmineError) as failure:
        quietly(server.remote, target)
    assert f"SHA-256 is {found}, expected {SHA256}" in str(failure.value)
    assert "fetch data.bin by hand and set data.<role>.path: LOCAL_FILE in config.yaml" in str(failure.value)
    assert target.read_bytes() == b"old"
    assert list(target.parent.iterdir()) == [target]
    assert len(server.ranges) == 1


def test_another_size_is_refused_before_its_body_is_read(server: Server, target: Path) -> None:
    server.answers = [status(200, Content_Length=199_999)]
    with pytest.raises(CoalmineError, match="199999 bytes, expected 200000"):
        quietly(server.remote, target)
    assert len(server.ranges) == 1
    assert not part_of(target).exists()


def test_a_resumed_file_that_has_another_size_by_now_is_refused(server: Server, target: Path) -> None:
    part_of(target, CONTENT[:1000])
    server.content = CONTENT + b"x"
    with pytest.raises(CoalmineError, match="200001 bytes, expected 200000"):
        quietly(server.remote, target)


def test_more_bytes_than_expected_are_not_written_endlessly(server: Server, target: Path) -> None:
    server.answers = [whole(CONTENT * 20)]
    with pytest.raises(CoalmineError, match="sends more than the 200000 bytes expected"):
        quietly(server.remote, target)
    assert part_of(target).stat().st_size <= len(CONTENT) + download.NETWORK_CHUNK


def test_an_early_end_without_announced_length_is_resumed(server: Server, target: Path) -> None:
    server.answers = [whole(CONTENT[:5000])]
    lines = quietly(server.remote, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=5000-"]
    assert "the connection was cut after 5000 of 200000 bytes" in lines[0]


def test_a_labelled_content_encoding_is_not_undone(server: Server, target: Path) -> None:
    server.answers = [whole(CONTENT, Content_Length=len(CONTENT), Content_Encoding="x-gzip")]
    quietly(server.remote, target, attempts=1)
    assert target.read_bytes() == CONTENT


def test_an_empty_file_can_be_fetched(server: Server, target: Path) -> None:
    server.content = b""
    empty = dataclasses.replace(server.remote, size=0, sha256=hashlib.sha256(b"").hexdigest())
    quietly(empty, target, attempts=1)
    assert target.read_bytes() == b""


def test_a_target_that_is_right_is_not_fetched_again(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(CONTENT)
    lines = quietly(server.remote, target)
    assert server.ranges == []
    assert lines == [f"data.bin: {target} is already there and right"]


def test_a_target_without_known_hash_is_fetched_again(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(OTHER)
    lines = quietly(dataclasses.replace(server.remote, sha256=None), target)
    assert target.read_bytes() == CONTENT
    assert lines[-1] == f"data.bin: verified, SHA-256 {SHA256} (none published: pin it)"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_leaves_no_target_and_says_so(server: Server, target: Path) -> None:
    target.parent.mkdir()
    part_of(target).symlink_to("/dev/full")
    with pytest.raises(
        CoalmineError, match=r"data.bin.part: cannot write data.bin \(No space left on device; it takes 0.2"
    ):
        quietly(server.remote, target)
    assert not target.exists()
    assert len(server.ranges) == 1


def test_nothing_is_renamed_before_it_is_on_the_disk(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download.os, "fsync", fail)
    with pytest.raises(CoalmineError, match="No space left on device"):
        quietly(server.remote, target)
    assert not target.exists()


@pytest.mark.parametrize(("total", "share"), [(10_000_000, " 28% of 10.0 MB"), (None, "so far")])
def test_progress_is_told_every_two_seconds_with_share_and_rate(
    monkeypatch: pytest.MonkeyPatch, total: int | None, share: str
) -> None:
    now = 100.0
    monkeypatch.setattr(download.time, "monotonic", lambda: now)
    lines: list[str] = []
    progress = download._Progress("data.bin", 2_000_000, total, lines.append)
    for _ in range(7):  # after 0.5, 1.0, ... 3.5 s
        now += 0.5
        progress.add(200_000)
    assert lines == [f"data.bin: 2.8 MB, {share}, 0.4 MB/s"]
    now += 0.5
    progress.add(6_600_000)
    progress.finish()
    assert lines[1].startswith("data.bin: 10.0 MB, ")
    assert lines[2] == "data.bin: 10.0 MB, 100%, 2.0 MB/s"


def test_attempts_below_one_are_a_mistake_of_the_caller(target: Path) -> None:
    with pytest.raises(ValueError, match="attempts is 0"):
        fetch(RemoteFile("data.bin", "http://127.0.0.1/", None, None), target, attempts=0)


def test_md5_counts_only_where_no_sha256_is_known(tmp_path: Path) -> None:
    path = tmp_path / "local.bin"
    path.write_bytes(CONTENT)
    known = RemoteFile("data.bin", "http://127.0.0.1/", len(CONTENT), SHA256, md5="0" * 32)
    assert verify(known, path) == SHA256
    assert verify(dataclasses.replace(known, sha256=None, md5=MD5), path) == SHA256
    with pytest.raises(CoalmineError, match=f"MD5 is {MD5}, expected 0000"):
        verify(dataclasses.replace(known, sha256=None), path)


def test_a_local_file_is_verified_like_a_download(tmp_path: Path) -> None:
    remote = RemoteFile("data.bin", "http://127.0.0.1/", len(CONTENT), SHA256.upper())
    path = tmp_path / "local.bin"
    with pytest.raises(CoalmineError, match=r"local.bin: no such file, expected data.bin"):
        verify(remote, path)
    path.write_bytes(CONTENT)
    assert verify(remote, path) == SHA256
    path.write_bytes(CONTENT[1:])
    with pytest.raises(CoalmineError, match=r"local.bin: 199999 bytes, expected 200000"):
        verify(remote, path)
    path.write_bytes(OTHER)
    with pytest.raises(CoalmineError, match=f"local.bin: SHA-256 is .*, expected {SHA256.upper()}"):
        verify(remote, path)
