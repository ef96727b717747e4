"""GPUs of one machine, shared by jobs that know nothing of each other: each claims one before it starts.

Snakemake counts GPUs but hands out none. A job therefore locks a file that stands for a share of a GPU and makes that
GPU the only one that it sees. The system drops the lock when the process dies, however it dies. Where a cluster hands
out devices (``CUDA_VISIBLE_DEVICES``), only those are claimed.

Jobs of one user on one machine respect each other's claims, whatever checkout they run in; other users' do not.
Imports neither torch nor a driver: the choice must be made before CUDA starts.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from coalmine.errors import CoalmineError

VISIBLE = "CUDA_VISIBLE_DEVICES"
GPUS = "COALMINE_GPUS"
JOBS_PER_GPU = "COALMINE_JOBS_PER_GPU"

_LISTED = re.compile(r"^(?P<inside>\s*)(?:GPU (?P<index>\d+)|MIG .*):.*\(UUID: (?P<uuid>[\w/-]+)\)$")
_SECONDS_BETWEEN_TRIES = 0.5

_claimed: list[IO[bytes]] = []  # open for as long as the process lives


def gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the identifiers (UUIDs) of the GPUs that this process may use; none on a machine without.

    Raises:
        CoalmineError: ``CUDA_VISIBLE_DEVICES`` names a GPU that is not there.
    """
    present = _present()
    wanted = environment.get(VISIBLE)
    if wanted is None:
        return [uuid for uuids in present for uuid in uuids]
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if not present or names[:1] in ([], ["-1"], ["NoDevFiles"]):
        return []
    return [uuid for name in names for uuid in _named(name, present)]


def _present() -> list[list[str]]:
    """Return what ``nvidia-smi`` lists: by GPU its UUID, or those of its MIG instances, which then stand for it."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    listed: list[list[str]] = []
    whole: list[str] = []
    for line in done.stdout.splitlines():
        found = _LISTED.match(line)
        if found and found["index"] is not None:
            whole.append(found["uuid"])
            listed.append([])
        elif found and listed:
            listed[-1].append(found["uuid"])
    return [parts or [gpu] for gpu, parts in zip(whole, listed, strict=True)]


def _named(name: str, present: Sequence[Sequence[str]]) -> Sequence[str]:
    """Return the devices that one entry of ``CUDA_VISIBLE_DEVICES`` means: an index, or (the start of) a UUID."""
    if name.isdecimal() and int(name) < len(present):
        return present[int(name)]
    known = [uuid for uuids in present for uuid in uuids]
    matching = [uuid for uuid in known if not name.isdecimal() and uuid.startswith(name)]
    if len(matching) != 1:
        raise CoalmineError(
            f"{VISIBLE} names {name!r}, but there is no such GPU here; there are {len(known)}: {', '.join(known)}. "
            f"Unset {VISIBLE} or name one of them."
        )
    return matching


def slots(wanted: int | str, jobs_per_gpu: int, available: Sequence[str]) -> int:
    """Return how many jobs may use GPUs of this machine at once.

    Args:
        wanted: number of GPUs, or ``auto`` for all that are available.
        jobs_per_gpu: jobs that share one.
        available: what :func:`gpus` returns.

    Raises:
        CoalmineError: more GPUs are wanted than there are.
    """
    if isinstance(wanted, int) and wanted > len(available):
        raise CoalmineError(
            f"execution.gpus is {wanted}, but this process can use {_count(len(available), 'GPU')} here. Ask for no "
            "more, or leave it at auto (all there are); on a cluster, leave it out: the cluster hands them out."
        )
    return (len(available) if wanted == "auto" else int(wanted)) * jobs_per_gpu


def sharing(environment: Mapping[str, str]) -> tuple[int | str, int]:
    """Return how many GPUs may be used and how many jobs share one, as the Snakefile hands them to all jobs."""
    wanted = environment.get(GPUS, "auto")
    return wanted if wanted == "auto" else int(wanted), int(environment.get(JOBS_PER_GPU, "1"))


def claim(progress: Callable[[str], None]) -> str | None:
    """Make one free GPU the only one that this process sees; wait if none is free.

    Must be called before CUDA starts. The claim ends with the process.

    Args:
        progress: is told when there is nothing to do but wait.

    Returns:
        The GPU's identifier, or None on a machine without.
    """
    available = gpus()
    if not available:
        return None
    wanted, jobs_per_gpu = sharing(os.environ)
    usable = available[: slots(wanted, jobs_per_gpu, available) // jobs_per_gpu]
    folder = _lock_folder()
    # First one job on each GPU, then a second one.
    shares = [(uuid, share) for share in range(jobs_per_gpu) for uuid in usable]
    told = False
    while True:
        for uuid, share in shares:
            lock = _lock(folder / f"{uuid.replace('/', '_')}.{share}.lock")
            if lock:
                _claimed.append(lock)
                os.environ[VISIBLE] = uuid
                return uuid
        if not told:
            jobs = _count(len(shares), "job")
            progress(f"waiting, as {jobs} can use the GPUs of this machine, and do ({', '.join(usable)})")
            told = True
        time.sleep(_SECONDS_BETWEEN_TRIES)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _lock_folder() -> Path:
    """Return the folder of this user's locks on this machine.

    Raises:
        CoalmineError: somebody else has made it.
    """
    folder = Path(tempfile.gettempdir()) / f"coalmine-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise CoalmineError(f"{folder}, where GPUs are claimed, is not a folder of yours. Remove it, or set TMPDIR.")
    return folder


def _lock(path: Path) -> IO[bytes] | None:
    """Return the open, locked file, or None if another process holds it."""
    file = open(path, "ab")  # noqa: SIM115 (closing it would give up the claim)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
