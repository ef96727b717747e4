"""A real Slurm of one node with pretended GPUs, started and stopped here: for machines that are thrown away, as CI's.

Slurm's daemons read /etc/slurm/slurm.conf (jobs inherit no other place), so root is needed and a machine that has a
Slurm of its own is left alone.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GPUS = 2
SETTINGS = Path("/etc/slurm")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol")

CONFIGURATION = """\
ClusterName=coalmine-test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket
SlurmctldPort=16817
SlurmdPort=16818
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MinJobAge=3600
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES DefMemPerCPU=500 MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Return why no Slurm can be started here, None if one can."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"no Slurm here (apt-get install slurm-wlm munge): {', '.join(missing)} missing"
    if os.geteuid() != 0:
        return "Slurm's daemons need root here"
    if (SETTINGS / "slurm.conf").exists():
        return f"this machine has a Slurm of its own ({SETTINGS}/slurm.conf)"
    return None


@contextmanager
def running(folder: Path) -> Iterator[Path]:
    """Run Slurm and munge in a folder until the block ends; yields where Slurm's logs are."""
    host = socket.gethostname().split(".")[0]
    for name in ("run", "spool", "state", "log"):
        (folder / name).mkdir(parents=True)
    for number in range(GPUS):  # copies of /dev/null
        os.mknod(folder / f"gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    os.chmod(folder, 0o755)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 512
    SETTINGS.mkdir(exist_ok=True)
    settings = SETTINGS / "slurm.conf", SETTINGS / "gres.conf"
    settings[0].write_text(
        CONFIGURATION.format(host=host, folder=folder, cores=os.cpu_count(), memory=memory, gpus=GPUS)
    )
    settings[1].write_text(f"NodeName={host} Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
    try:
        with _resolvable(host):
            _start_munge(folder)
            subprocess.run(["slurmctld", "-c"], check=True)
            subprocess.run(["slurmd"], check=True)
            _wait_until_idle(folder)
            yield folder / "log"
    finally:
        subprocess.run(["scontrol", "shutdown"], check=False, capture_output=True)
        for name in ("slurmd", "slurmctld", "munged"):
            _stop(folder / "run" / f"{name}.pid")
        for path in settings:
            path.unlink(missing_ok=True)


def _start_munge(folder: Path) -> None:
    run = folder / "run"
    options = {
        "key-file": folder / "munge.key",
        "socket": run / "munge.socket",
        "pid-file": run / "munged.pid",
        "log-file": folder / "log/munged.log",
        "seed-file": run / "munge.seed",
    }
    subprocess.run(["munged", "--force", *(f"--{name}={value}" for name, value in options.items())], check=True)


@contextmanager
def _resolvable(host: str) -> Iterator[None]:
    """Make the machine's own name known to itself."""
    hosts = Path("/etc/hosts")
    before = hosts.read_text()
    known = subprocess.run(["getent", "hosts", host], capture_output=True, check=False).returncode == 0
    if not known:
        hosts.write_text(f"{before.rstrip()}\n127.0.0.1 {host}\n")
    try:
        yield
    finally:
        if not known:
            hosts.write_text(before)


def _wait_until_idle(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        state = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False).stdout
        if state.strip() == "idle":
            return
        time.sleep(0.2)
    logs = "\n".join(path.read_text()[-2000:] for path in sorted((folder / "log").glob("*.log")))
    raise AssertionError(f"Slurm's node did not become idle within a minute:\n{logs}")


def _stop(pid_file: Path) -> None:
    """End a daemon and wait for it."""
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return
    deadline = time.monotonic() + 20
    try:
        os.kill(pid, 15)
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.1)
        os.kill(pid, 9)
    except ProcessLookupError:
        return


def jobs() -> dict[str, dict[str, str]]:
    """Return what Slurm knows of all jobs since its start, by number."""
    told = subprocess.run(["scontrol", "--oneliner", "show", "jobs"], capture_output=True, text=True, check=True).stdout
    fields = [dict(part.split("=", 1) for part in line.split() if "=" in part) for line in told.splitlines()]
    return {job["JobId"]: job for job in fields if "JobId" in job}
