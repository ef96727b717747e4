"""Fetch files over HTTP so that only a complete, verified file ever gets its final name.

Bytes go to ``<target>.part``. A cut connection is resumed from there, also by the next run; the file is renamed to
its target only after its size and hashes hold, so an interrupted or tampered download is never mistaken for data.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import requests
import urllib3.exceptions

from coalmine.errors import CoalmineError
from coalmine.redaction import without_secrets

NETWORK_CHUNK = 1 << 16
HASH_CHUNK = 1 << 20
SECONDS_BETWEEN_REPORTS = 2.0
LONGEST_RETRY_AFTER = 60.0
MOST_BYTES = 64 << 30  # of a file whose size is not known before
SLOWEST = 1000.0  # bytes a second, over SECONDS_OF_PATIENCE
SECONDS_OF_PATIENCE = 60.0

_THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}
_PLAIN_ADDRESS = re.compile(r"[A-Za-z0-9:/._~%+,@=?&#\[\]-]+")


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch and what it must turn out to be.

    Attributes:
        name: the local file name.
        url: http(s) address.
        size: bytes, or None where it is not known.
        sha256: lower-case hex digest, or None where none is published.
        md5: lower-case hex digest; checked only where no SHA-256 is known, because MD5 can be forged.
    """

    name: str
    url: str
    size: int | None
    sha256: str | None
    md5: str | None = None


def objection_to_address(url: str) -> str | None:
    """Say why a file must not be fetched from an address, or None. The address itself is not repeated.

    Addresses stand in logs, in headers of artefacts and in the published configuration.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError for what is no number
    except ValueError:
        return "is no address"
    if parts.scheme not in ("https", "http") or not parts.hostname or not _PLAIN_ADDRESS.fullmatch(url):
        return "is no address, expected https://host/folder/file"
    if "@" in parts.netloc:
        return "holds a user name or password; leave it out, or fetch the file by hand"
    if parts.query or parts.fragment:
        return "has a query, which may hold a token; leave it out, or fetch the file by hand"
    return None


class _TransientError(Exception):
    """A failure that may pass; ``wait`` is the server's own wish in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def fetch(
    remote: RemoteFile,
    target: Path,
    *,
    attempts: int = 5,
    timeout: float = 30.0,
    backoff: float = 1.0,
    progress: Callable[[str], None] = print,
) -> str:
    """Download a file, verify it, and only then give it its name.

    A target that already holds is kept as it is. Cut connections, timeouts, 5xx and 429 are tried again, each time
    after twice the wait; other refusals of the server (404, 403, ...) end at once.

    Args:
        remote: what to fetch, and its size and hashes.
        target: the final path; its folder is created.
        attempts: connections to try in all.
        timeout: seconds without a byte after which a connection counts as cut.
        backoff: seconds to wait before the second attempt.
        progress: takes one line of text at a time.

    Returns:
        The file's SHA-256, so that it can be recorded where none was published.

    Raises:
        CoalmineError: the file cannot be had, or is not the one expected; an existing target is left alone.
    """
    _check_address(remote, remote.url)
    if digest := _digest_if_right(remote, target):
        progress(f"{remote.name}: {target} is already there and right")
        return digest
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    for attempt in range(1, attempts + 1):
        try:
            resumed = _receive(remote, part, timeout, progress)
            digest = _verify_part(remote, part, resumed)
        except _TransientError as reason:
            if attempt == attempts:
                raise CoalmineError(
                    f"{remote.name}: {attempts} attempts to download {remote.url} failed, the last one because "
                    f"{reason}. Run the same command again, which resumes what has arrived, or {_by_hand(remote)}."
                ) from reason
            wait = max(backoff * 2 ** (attempt - 1), reason.wait)
            progress(f"{remote.name}: {reason}; attempt {attempt + 1} of {attempts} in {wait:.1f} s")
            time.sleep(wait)
        else:
            _publish(remote, part, target)
            progress(f"{remote.name}: verified, SHA-256 {digest}{'' if remote.sha256 else ' (none published: pin it)'}")
            return digest
    raise ValueError(f"attempts is {attempts}, expected at least 1")


def verify(remote: RemoteFile, path: Path) -> str:
    """Check that a local file is the one that ``remote`` describes, and return its SHA-256.

    Raises:
        CoalmineError: there is no such file, or its size or hash differs.
    """
    if not path.is_file():
        raise CoalmineError(f"{path}: no such file, expected {remote.name}; {_by_hand(remote)}.")
    return _verify(remote, path, what=str(path))


def _check_address(remote: RemoteFile, url: str) -> None:
    """Refuse what would be written to logs, and an unprotected connection where no hash tells what must come."""
    objection = objection_to_address(url)
    if objection:
        raise CoalmineError(f"The address of {remote.name} {objection}.")
    _check_protected(remote, url)


def _check_protected(remote: RemoteFile, url: str) -> None:
    pinned = remote.sha256 is not None or remote.md5 is not None
    at_home = {urlsplit(address).hostname for address in (remote.url, url)} <= _THIS_MACHINE
    if not (pinned or at_home or urlsplit(url).scheme == "https"):
        raise CoalmineError(
            f"{remote.name}: {without_secrets(url)} is fetched by http, and no hash tells whether it was changed on "
            "the way; take an https address, or pin the file by its SHA-256."
        )


def _verify(remote: RemoteFile, path: Path, what: str) -> str:
    _check_size(remote, path.stat().st_size, what)
    sha256, md5 = _digests(path)
    if remote.sha256 is not None:
        _check_hash(remote, "SHA-256", sha256, remote.sha256, what)
    elif remote.md5 is not None:
        _check_hash(remote, "MD5", md5, remote.md5, what)
    return sha256


def _check_size(remote: RemoteFile, size: int, what: str) -> None:
    if remote.size not in (None, size):
        raise CoalmineError(
            f"{what}: {size} bytes, expected {remote.size}. It is damaged or another version; {_by_hand(remote)}."
        )


def _check_hash(remote: RemoteFile, algorithm: str, found: str, expected: str, what: str) -> None:
    if found != expected.lower():
        raise CoalmineError(
            f"{what}: {algorithm} is {found}, expected {expected}. It is damaged or another version; "
            f"{_by_hand(remote)}."
        )


def _by_hand(remote: RemoteFile) -> str:
    return f"fetch {remote.name} by hand and set data.<role>.path: LOCAL_FILE in config.yaml"


def _digests(path: Path) -> tuple[str, str]:
    """Return the SHA-256 and the MD5 of a file in one pass."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK):
            sha256.update(chunk)
            md5.update(chunk)
    return sha256.hexdigest(), md5.hexdigest()


def _digest_if_right(remote: RemoteFile, path: Path) -> str | None:
    """Return the SHA-256 of a file that is known to be the right one, else None."""
    if remote.sha256 is None and remote.md5 is None:
        return None
    try:
        return verify(remote, path)
    except CoalmineError:
        return None


def _receive(remote: RemoteFile, part: Path, timeout: float, progress: Callable[[str], None]) -> bool:
    """Complete ``part`` over one connection; return whether it still holds bytes of an earlier one."""
    have = part.stat().st_size if part.is_file() else 0
    if remote.size is not None and have > remote.size:
        part.unlink()
        have = 0
    if have and have == remote.size:
        return True
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with requests.get(remote.url, headers=headers, stream=True, timeout=timeout) as response:
            for answer in (*response.history, response):
                _check_protected(remote, answer.url)
            start, total = _accepted(remote, response, have, part)
            if not start or start != total:
                _write_body(remote, response, part, start, total, progress)
    except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
        raise _TransientError(f"the connection failed ({without_secrets(error)})") from error
    except requests.RequestException as error:
        raise CoalmineError(
            f"{remote.name}: cannot download {remote.url}: {without_secrets(error)}; {_by_hand(remote)}."
        ) from error
    return start > 0


def _accepted(remote: RemoteFile, response: requests.Response, have: int, part: Path) -> tuple[int, int | None]:
    """Judge status and headers; return the offset that the body starts at and the size of the whole file if known."""
    status = response.status_code
    if status == HTTPStatus.OK:  # also the answer of a server that does not know Range: start over
        return 0, _whole_size(remote, _integer(response.headers.get("Content-Length")))
    if status in (HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE) and have:
        start, total = _content_range(response.headers.get("Content-Range", ""), status, have)
        if start is None or start != have:
            part.unlink()
            raise _TransientError(f"the server cannot resume at byte {have}")
        return start, _whole_size(remote, total)
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        wait = _integer(response.headers.get("Retry-After")) or 0
        raise _TransientError(f"the server answered {status} {response.reason}", min(wait, LONGEST_RETRY_AFTER))
    raise CoalmineError(
        f"{remote.name}: {remote.url} answered {status} {response.reason}, expected 200 OK; check the address, "
        f"or {_by_hand(remote)}."
    )


def _whole_size(remote: RemoteFile, announced: int | None) -> int | None:
    """Return the size that the body must reach; a server that announces another file's size is refused at once."""
    if announced is None:
        return remote.size
    _check_size(remote, announced, remote.url)
    return announced


def _content_range(header: str, status: int, have: int) -> tuple[int | None, int | None]:
    """Read Content-Range (RFC 9110, 14.4): where the body starts, and the size of the whole file.

    A 416 answer to a part that is already whole counts as a body that starts, and ends, at its end.
    """
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        total = _integer(header.removeprefix("bytes */"))
        return (have if total == have else None), total
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", header)
    return (int(match[1]), _integer(match[2])) if match else (None, None)


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _write_body(
    remote: RemoteFile,
    response: requests.Response,
    part: Path,
    start: int,
    total: int | None,
    progress: Callable[[str], None],
) -> None:
    """Append the body to ``part`` (or replace it, from offset 0); a body that ends early is to be tried again."""
    report = _Progress(remote.name, start, total, progress)
    with _writing(remote, part), part.open("ab" if start else "wb") as file:
        # The raw stream: requests would unpack what a server labels "Content-Encoding: x-gzip", as many do for .tar.gz.
        most = MOST_BYTES if remote.size is None else remote.size
        # As it arrives: a chunk that is waited for until it is full would hide how slowly it fills.
        while chunk := response.raw.read1(NETWORK_CHUNK, decode_content=False):
            if report.received + len(chunk) > most:
                raise CoalmineError(
                    f"{remote.name}: {remote.url} sends more than the {most} bytes expected; {_by_hand(remote)}."
                )
            file.write(chunk)
            report.add(len(chunk))
    if total is not None and report.received < total:
        raise _TransientError(f"the connection was cut after {report.received} of {total} bytes")
    report.finish()


class _Progress:
    """Counts bytes and says so, at most once every ``SECONDS_BETWEEN_REPORTS`` and at the end."""

    def __init__(self, name: str, start: int, total: int | None, say: Callable[[str], None]) -> None:
        self.name, self.start, self.total, self.say = name, start, total, say
        self.received = self.noted = start
        self.began = self.reported = self.checked = time.monotonic()

    def add(self, n_bytes: int) -> None:
        self.received += n_bytes
        now = time.monotonic()
        self._check_rate(now)
        if now - self.reported >= SECONDS_BETWEEN_REPORTS:
            self.reported = now
            share = f"{self.received / self.total:4.0%} of {self.total / 1e6:.1f} MB" if self.total else "so far"
            self.say(f"{self.name}: {self.received / 1e6:.1f} MB, {share}, {self._rate():.1f} MB/s")

    def _check_rate(self, now: float) -> None:
        """Give up a server that sends a byte now and then, which no timeout of the connection notices."""
        seconds = now - self.checked
        if seconds < SECONDS_OF_PATIENCE:
            return
        rate = (self.received - self.noted) / seconds
        if rate < SLOWEST:
            raise _TransientError(f"the server sends {rate:.0f} bytes a second only")
        self.noted, self.checked = self.received, now

    def finish(self) -> None:
        self.say(f"{self.name}: {self.received / 1e6:.1f} MB, 100%, {self._rate():.1f} MB/s")

    def _rate(self) -> float:
        return (self.received - self.start) / 1e6 / max(time.monotonic() - self.began, 1e-6)


def _verify_part(remote: RemoteFile, part: Path, resumed: bool) -> str:
    """Verify a complete part; a wrong one is removed, and if it was pieced together, it is worth a fresh start."""
    try:
        return _verify(remote, part, what=f"the download of {remote.url}")
    except CoalmineError as error:
        part.unlink()
        if resumed:
            raise _TransientError(f"the resumed file is wrong ({error})") from error
        raise


def _publish(remote: RemoteFile, part: Path, target: Path) -> None:
    with _writing(remote, part):
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)


@contextlib.contextmanager
def _writing(remote: RemoteFile, part: Path) -> Iterator[None]:
    """Name what a full disk or a read-only folder stops; what has been written stays for resuming."""
    try:
        yield
    except OSError as error:
        size = "its size is not known" if remote.size is None else f"it takes {remote.size / 1e6:.1f} MB"
        raise CoalmineError(
            f"{part}: cannot write {remote.name} ({error.strerror}; {size}). Free space or choose another folder and "
            f"run the same command again, or {_by_hand(remote)}."
        ) from error
