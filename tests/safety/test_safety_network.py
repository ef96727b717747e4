"""A hostile server can make a download fail, and nothing else; what is secret is told to nobody."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hostile import bounded
from hypothesis import given
from hypothesis import strategies as st

from coalmine.data import download
from coalmine.data.download import RemoteFile, fetch, objection_to_address
from coalmine.data.sources import camelyon17, cifar10, cinic10, mnist
from coalmine.diffusion import inception, latent
from coalmine.diffusion.latent_settings import LatentFit
from coalmine.errors import CoalmineError
from coalmine.redaction import without_secrets

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SECRET = "s3cr3tT0ken"

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    """Gives the next answer to each request, the last one for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("", 0), Handler)
        self.answers: list[Answer] = []
        self.headers: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.headers.append(dict(self.headers))
        answers = self.server.answers
        with contextlib.suppress(OSError):  # the client has had enough
            (answers.pop(0) if len(answers) > 1 else answers[0])(self)
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


def answer(status: int, body: bytes = b"", pause: float = 0, times: int = 1, **headers: object) -> Answer:
    """An answer whose body is sent so many times, with a pause before each."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), str(value))
        handler.end_headers()
        for _ in range(times):
            time.sleep(pause)
            handler.wfile.write(body)

    return send


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def got(server: Server, target: Path, **remote: Any) -> tuple[str, list[str]]:
    """Fetch; return the message of the refusal, or an empty one, and the lines that were printed."""
    lines: list[str] = []
    known = {"size": len(CONTENT), "sha256": SHA256, **remote}
    file = RemoteFile("data.bin", known.pop("url", server.url), **known)
    try:
        fetch(file, target, attempts=2, timeout=1.0, backoff=0.0, progress=lines.append)
    except CoalmineError as error:
        assert not target.exists()
        return str(error), lines
    return "", lines


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "data.bin"


def test_more_bytes_than_announced_are_not_taken(server: Server, target: Path) -> None:
    server.answers = [answer(200, CONTENT, times=50, Connection="close")]
    message, _ = got(server, target)
    assert f"sends more than the {len(CONTENT)} bytes expected" in message
    assert target.with_name("data.bin.part").stat().st_size <= len(CONTENT)


def test_a_file_of_unknown_size_does_not_fill_the_disk(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MOST_BYTES", 3 * len(CONTENT))
    server.answers = [answer(200, CONTENT, times=500, Connection="close")]
    message, _ = got(server, target, size=None, sha256=None)
    assert f"sends more than the {3 * len(CONTENT)} bytes expected" in message
    assert target.with_name("data.bin.part").stat().st_size <= 3 * len(CONTENT)


@pytest.mark.parametrize("length", [0, 1, len(CONTENT) - 1, len(CONTENT) + 1, 10**15, "-1", "abc", "9" * 30])
def test_a_wrong_announcement_is_refused(server: Server, target: Path, length: object) -> None:
    server.answers = [answer(200, CONTENT, Content_Length=length)]
    message, _ = got(server, target)
    assert not message or "data.bin" in message
    assert not target.exists() or target.read_bytes() == CONTENT


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "br", "zstd"])
def test_what_a_server_says_of_compression_unpacks_nothing(server: Server, target: Path, encoding: str) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    server.answers = [answer(200, bomb, Content_Encoding=encoding, Content_Length=len(bomb))]
    message, _ = got(server, target, size=None, sha256=hashlib.sha256(bomb).hexdigest())
    assert message == ""
    assert target.read_bytes() == bomb
    assert server.headers[0]["Accept-Encoding"] == "identity"


def test_a_server_that_sends_a_byte_now_and_then_is_given_up(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "SECONDS_OF_PATIENCE", 0.3)
    server.answers = [answer(200, b"x", pause=0.05, times=10_000, Content_Length=len(CONTENT))]
    began = time.monotonic()
    message, lines = got(server, target)
    assert re.search(r"the server sends \d+ bytes a second only", message)
    assert len(lines) == 1
    assert time.monotonic() - began < 10


def test_a_slow_but_steady_server_is_not_given_up(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "SECONDS_OF_PATIENCE", 0.1)
    part = len(CONTENT) // 8
    parts = [CONTENT[start : start + part] for start in range(0, len(CONTENT), part)]

    def steadily(handler: BaseHTTPRequestHandler) -> None:
        answer(200, Content_Length=len(CONTENT))(handler)
        for one in parts:
            time.sleep(0.05)
            handler.wfile.write(one)

    server.answers = [steadily]
    assert got(server, target)[0] == ""
    assert target.read_bytes() == CONTENT


LIES = [
    {"status": 206, "Content_Range": "bytes 0-1/2"},
    {"status": 206, "Content_Range": f"bytes 100-{10**20}/{10**20}"},
    {"status": 206, "Content_Range": "bytes 100-99/-1"},
    {"status": 206, "Content_Range": "bytes */*"},
    {"status": 206, "Content_Range": ""},
    {"status": 206},
    {"status": 416, "Content_Range": "bytes */100"},
    {"status": 416, "Content_Range": "bytes */5"},
    {"status": 416, "Content_Range": "bytes */x"},
    {"status": 416},
    {"status": 204},
    {"status": 304},
    {"status": 303},
]


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("known", [True, False])
def test_lies_about_a_part_never_make_a_wrong_file(
    server: Server, target: Path, lie: dict[str, Any], known: bool
) -> None:
    target.with_name("data.bin.part").write_bytes(CONTENT[:100])
    headers = {name: value for name, value in lie.items() if name != "status"}
    server.answers = [answer(lie["status"], CONTENT[50:], Connection="close", **headers)]
    message, _ = got(server, target, size=len(CONTENT) if known else None)
    assert "data.bin" in message


@given(data=st.data())
@bounded(25)
def test_any_answer_gives_the_right_file_or_a_message(tmp_path: Path, data: st.DataObject) -> None:
    target = tmp_path / "data.bin"
    for path in tmp_path.iterdir():
        path.unlink()
    status = data.draw(st.sampled_from([200, 200, 206, 301, 304, 400, 404, 416, 500]))
    body = data.draw(st.sampled_from([CONTENT, CONTENT[:50], b"", CONTENT + b"x", bytes(len(CONTENT))]))
    text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
    names = st.sampled_from(["Content_Length", "Content_Range", "Location", "Retry_After", "Transfer_Encoding"])
    headers = data.draw(st.dictionaries(names, text | st.just("chunked") | st.just("0"), max_size=2))
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        server.answers = [answer(status, body, **headers)]
        message, _ = got(server, target)
        server.shutdown()
    assert message or target.read_bytes() == CONTENT


def test_plain_http_is_refused_where_no_hash_tells_what_must_come(target: Path) -> None:
    with pytest.raises(CoalmineError, match=r"data\.bin: http://example\.com/x is fetched by http"):
        fetch(RemoteFile("data.bin", "http://example.com/x", None, None), target)


def test_a_redirect_to_plain_http_is_refused_where_no_hash_tells_what_must_come(server: Server, target: Path) -> None:
    elsewhere = f"http://127.0.0.2:{server.server_address[1]}/x?sig={SECRET}"  # for all the program knows
    server.answers = [answer(302, Location=elsewhere), answer(200, CONTENT, Content_Length=len(CONTENT))]
    message, _ = got(server, target, sha256=None, size=None)
    assert "/x?… is fetched by http" in message
    server.answers = [answer(302, Location=elsewhere), answer(200, CONTENT, Content_Length=len(CONTENT))]
    assert got(server, target)[0] == ""


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://host/x", "//", "http://", "/data.bin", "gopher://x"])
def test_redirects_lead_to_no_file_and_in_no_circle(server: Server, target: Path, location: str) -> None:
    server.answers = [answer(302, Location=location)]
    message, _ = got(server, target)
    assert "data.bin" in message


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{SECRET}@host/x",
        f"https://{SECRET}@host/x",
        f"https://host/x?token={SECRET}",
        f"https://host/x#{SECRET}",
        f"file:///{SECRET}",
        f"https://host/{SECRET} x",
        f"https://host/{SECRET}\nx",
        SECRET,
        "",
    ],
)
def test_an_address_that_may_be_secret_is_refused_and_not_repeated(target: Path, url: str) -> None:
    assert objection_to_address(url)
    lines: list[str] = []
    with pytest.raises(CoalmineError, match=r"data\.bin") as told:
        fetch(RemoteFile("data.bin", url, len(CONTENT), SHA256), target, progress=lines.append)
    assert SECRET not in str(told.value) + "".join(lines)


def test_a_signed_address_that_a_server_redirects_to_is_not_printed(server: Server, target: Path) -> None:
    server.answers = [answer(302, Location=f"http://user:{SECRET}@127.0.0.1:1/x?X-Amz-Signature={SECRET}&a=b")]
    message, lines = got(server, target)
    assert "the connection failed" in message
    assert SECRET not in message + "".join(lines)


def test_secrets_of_the_environment_are_not_printed(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("http_proxy", f"http://user:{SECRET}@127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    server.answers = [answer(200, CONTENT)]
    message, lines = got(server, target, url="http://example.invalid/data.bin")
    assert "failed" in message
    assert SECRET not in message + "".join(lines)
    assert server.headers == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"url: /x?X-Amz-Signature={SECRET}&b=2 (Caused", "url: /x?… (Caused"),
        (f"http://user:{SECRET}@host:80/x", "http://…@host:80/x"),
        ("https://host/x: refused", "https://host/x: refused"),
    ],
)
def test_messages_lose_passwords_and_queries_of_addresses_only(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def _remote_files() -> list[RemoteFile]:
    every = [inception.REMOTE]
    for module in (camelyon17, cifar10, cinic10):
        every += module.files(module.Settings())
    for variant in ("digits", "fashion"):
        every += mnist.files(mnist.Settings(variant=variant))  # type: ignore[arg-type]
    return every


def test_every_file_that_is_fetched_has_a_plain_address_and_is_pinned_or_protected() -> None:
    for remote in _remote_files():
        assert objection_to_address(remote.url) is None
        pinned = remote.sha256 is not None or remote.md5 is not None
        assert pinned or remote.url.startswith("https://")
    assert [remote.name for remote in _remote_files() if not (remote.sha256 or remote.md5)] == [
        "camelyon17_v1.0.tar.gz"
    ]


REVISION = "0" * 40


@pytest.mark.parametrize(
    "given",
    [
        {"hub": "owner/name"},
        {"hub": "owner/name", "revision": "main"},
        {"hub": "owner/name", "revision": REVISION[:39]},
        {"hub": "owner/name", "revision": REVISION + "\n"},
        {"hub": "name", "revision": REVISION},
        {"hub": "https://host/owner/name", "revision": REVISION},
        {"hub": "a/b/c", "revision": REVISION},
        {"hub": f"user:{SECRET}@host/x", "revision": REVISION},
    ],
)
def test_a_model_of_the_hub_is_named_with_its_commit(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"hub|revision"):
        LatentFit(steps=1, **given)  # type: ignore[arg-type]


def test_only_texts_and_weights_that_run_no_code_are_fetched_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[dict[str, Any]] = []

    def refuse(name: str, **options: Any) -> str:
        asked.append({"name": name, **options})
        raise OSError(f"401 for https://user:{SECRET}@hub/api?token={SECRET}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CoalmineError, match="cannot be fetched") as told:
        latent.snapshot(LatentFit(steps=1, hub="owner/name", revision=REVISION))
    assert SECRET not in str(told.value)
    assert [one["revision"] for one in asked] == [REVISION, REVISION]
    for one in asked:
        assert {Path(pattern).suffix for pattern in one["allow_patterns"]} == {".json", ".safetensors", ".txt"}
        assert not {"trust_remote_code", "token", "use_auth_token"} & one.keys()
