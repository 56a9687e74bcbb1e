"""Run a command beside a Slurm of its own: one node, this machine, with two pretended GPUs.

    python tests/support/start_slurm.py make sweep GRID=config/grids/example.yaml PROFILE=workflow/profiles/slurm
    python tests/support/start_slurm.py --accounting sacct

It needs no systemd and no cgroups, listens on free ports, keeps all its files in a temporary folder and is gone when
the command ends. A pretended GPU is a name: Slurm hands out its number, there is nothing to compute with.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

DAEMONS = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
ACCOUNTING = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server", "mariadb-install-db": "mariadb-server"}
PATH = os.pathsep.join([os.environ["PATH"], "/usr/local/sbin", "/usr/sbin", "/sbin"])


def missing(accounting: bool = False) -> str:
    """Say which packages are not installed and how to get them; empty where all are there."""
    needed = DAEMONS | (ACCOUNTING if accounting else {})
    packages = sorted({package for program, package in needed.items() if not shutil.which(program, path=PATH)})
    if not packages:
        return ""
    return (
        f"no {', '.join(packages)} on this machine; on Debian and Ubuntu: "
        f"apt-get install --no-install-recommends {' '.join(packages)}"
    )


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


def configure(folder: Path, accounting: bool) -> None:
    """Write the configuration of all daemons."""
    controller, node, database = free_ports(3)
    host = socket.gethostname().split(".")[0]
    common = f"AuthType=auth/munge\nAuthInfo=socket={folder}/munge.socket\n"
    storage = ("Type=accounting_storage/slurmdbd", "Host=localhost", f"Port={database}", f"Pass={folder}/munge.socket")
    store = "\n".join(f"AccountingStorage{line}" for line in storage)
    (folder / "slurm.conf").write_text(
        f"""{common}ClusterName=idsel
SlurmctldHost={host}(localhost)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={getpass.getuser()}
SlurmdUser={getpass.getuser()}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
# No cgroups: they belong to whoever runs the machine.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=5
MinJobAge=3600
# The node may claim more than the machine has.
SlurmdParameters=config_overrides
GresTypes=gpu
{store if accounting else "AccountingStorageType=accounting_storage/none"}
NodeName={host} NodeAddr=localhost CPUs=4 RealMemory=64000 Gres=gpu:2
PartitionName=gpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
    )
    # Slurm takes a GPU's number from the name of its file, which has to be a device.
    gpus = [folder / f"gpu{number}" for number in range(2)]
    for gpu, device in zip(gpus, ("/dev/null", "/dev/zero"), strict=True):
        gpu.symlink_to(device)
    (folder / "gres.conf").write_text("".join(f"NodeName={host} Name=gpu File={gpu}\n" for gpu in gpus))
    (folder / "cgroup.conf").write_text(f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={folder}/cgroup\n")
    slurmdbd = folder / "slurmdbd.conf"
    slurmdbd.touch(0o600)
    slurmdbd.write_text(
        f"""{common}DbdHost=localhost
DbdPort={database}
SlurmUser={getpass.getuser()}
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={getpass.getuser()}
StorageLoc=slurm
PidFile={folder}/slurmdbd.pid
"""
    )
    (folder / "munge.key").touch(0o600)
    (folder / "munge.key").write_bytes(os.urandom(128))


def wrap_srun(folder: Path) -> str:
    """Make an `srun` that finds the configuration also where a job has dropped SLURM_CONF; returns the PATH to it."""
    wrapper = folder / "bin/srun"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun", path=PATH)} "$@"\n')
    wrapper.chmod(0o755)
    return f"{wrapper.parent}{os.pathsep}{PATH}"


class Cluster:
    """The daemons, started in the order in which they need each other and stopped in the other one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": wrap_srun(folder), "SLURM_CONF": str(folder / "slurm.conf")}
        self.environment["MYSQL_UNIX_PORT"] = str(folder / "mariadb.socket")
        self.daemons: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str, ready: Callable[[], bool], seconds: float = 60) -> None:
        """Start a daemon in the foreground and wait until it answers."""
        log = self.folder / f"{command[0]}.log"
        with log.open("wb") as out:
            daemon = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        self.daemons.append(daemon)
        deadline = time.monotonic() + seconds
        while not ready():
            if daemon.poll() is not None or time.monotonic() > deadline:
                state = "does not answer" if daemon.poll() is None else f"ended with status {daemon.returncode}"
                raise RuntimeError(f"{command[0]} {state}:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.2)

    def says(self, *command: str) -> str:
        """Return what a command prints, or nothing if it fails."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        return done.stdout.strip() if done.returncode == 0 else ""

    def stop(self) -> None:
        """Cancel all jobs and stop all daemons."""
        if len(self.daemons) > 1:
            self.says("scancel", "--full", "--quiet", f"--user={getpass.getuser()}")
            deadline = time.monotonic() + 20
            while self.says("squeue", "--noheader") and time.monotonic() < deadline:
                time.sleep(0.2)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()


@contextlib.contextmanager
def slurm(accounting: bool = False) -> Iterator[Mapping[str, str]]:
    """Run Slurm while the block runs.

    Parameters
    ----------
    accounting : bool
        Whether to keep an accounting database, which `sacct` reads.

    Yields
    ------
    Mapping
        The environment in which `sbatch` and its like speak to it.

    Raises
    ------
    FileNotFoundError
        If packages are missing.
    RuntimeError
        If a daemon does not start; tells its log.
    """
    lacking = missing(accounting)
    if lacking:
        raise FileNotFoundError(lacking)
    folder = Path(tempfile.mkdtemp(prefix="idsel-slurm-"))
    # munged wants its socket where every user can reach it.
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    configure(folder, accounting)
    cluster = Cluster(folder)
    try:
        munge = {name: str(folder / f"munge.{name}") for name in ("socket", "key", "pid", "log", "seed")}
        options = {"key": "key-file", "pid": "pid-file", "log": "log-file", "seed": "seed-file"}
        arguments = [f"--{options.get(name, name)}={path}" for name, path in munge.items()]
        cluster.start("munged", "--foreground", *arguments, ready=Path(munge["socket"]).exists)
        if accounting:
            start_accounting(cluster)
        cluster.start("slurmctld", "-D", ready=lambda: "UP" in cluster.says("scontrol", "ping"))
        state = ("sinfo", "--noheader", "--format=%T")
        cluster.start("slurmd", "-D", ready=lambda: cluster.says(*state) == "idle")
        yield cluster.environment
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def start_accounting(cluster: Cluster) -> None:
    data, socket_path = cluster.folder / "mariadb", cluster.environment["MYSQL_UNIX_PORT"]
    made = subprocess.run(
        ["mariadb-install-db", "--no-defaults", f"--datadir={data}", f"--user={getpass.getuser()}"],
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise RuntimeError(f"mariadb-install-db failed:\n{(made.stdout + made.stderr)[-3000:]}")
    cluster.start(
        "mariadbd",
        "--no-defaults",
        f"--datadir={data}",
        f"--user={getpass.getuser()}",
        f"--socket={socket_path}",
        "--skip-networking",
        "--innodb-buffer-pool-size=64M",
        "--innodb-use-native-aio=0",
        ready=Path(socket_path).exists,
    )
    cluster.start("slurmdbd", "-D", ready=lambda: bool(cluster.says("sacctmgr", "--noheader", "list", "user")))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounting", action="store_true", help="with an accounting database")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run")
    given = parser.parse_args(arguments)
    if not given.command:
        parser.error("name a command to run, such as sinfo")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with slurm(given.accounting) as environment:
            return subprocess.run(given.command, env=environment, check=False).returncode
    except (FileNotFoundError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
