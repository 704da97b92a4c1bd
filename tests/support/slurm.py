"""A local Slurm cluster of two nodes: munged, slurmctld and slurmd, all in one folder."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.servers import free_ports
from tests.support.waiting import PATIENCE, select_nothing

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")

CONFIGURATION = """\
ClusterName=aflow
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
GresTypes=gpu
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
AccountingStorageType=accounting_storage/none
MaxArraySize=2001
MaxJobCount=20000
MinJobAge=60
MessageTimeout=3
KillWait=3
SlurmdTimeout=10
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=8 RealMemory=8000 Gres=gpu:1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=8 RealMemory=8000 Gres=gpu:1
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=60 State=UP PriorityTier=10
PartitionName=shut Nodes=ALL MaxTime=60 State=INACTIVE
"""


def reason_for_none() -> str | None:
    """Return why Slurm cannot be started on this machine; None if it can."""
    path = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"
    missing = [each for each in DAEMONS if shutil.which(each, path=path) is None]
    if missing:
        return f"{', '.join(missing)} of Slurm are not installed"
    if os.getuid() != 0:
        return "the daemons of Slurm start jobs of others, so they are run by root alone"
    return None


class Slurm:
    """The daemons. `environment` has the variables with which Slurm's commands find them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all daemons, and wait until both nodes are idle."""
        for each in ("state", "spool-n1", "spool-n2"):
            (self.folder / each).mkdir()
        os.chmod(self.folder, 0o755)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        ports = dict(zip(("controller", "first", "second"), free_ports(3), strict=True))
        host = socket.gethostname().partition(".")[0]
        text = CONFIGURATION.format(host=host, user="root", folder=self.folder, **ports)
        (self.folder / "slurm.conf").write_text(text)
        # Existing devices in place of GPUs: Slurm only counts them and assigns them to jobs.
        devices = zip(("n1", "n2"), ("/dev/null", "/dev/zero"), strict=True)
        gres = "".join(f"NodeName={node} Name=gpu File={file}\n" for node, file in devices)
        (self.folder / "gres.conf").write_text(gres)
        socket_file = self.folder / "munge.socket"
        self._spawn(
            "munged", "--foreground", "--force", "--socket", str(socket_file),
            "--key-file", str(key), "--pid-file", str(self.folder / "munge.pid"),
            "--seed-file", str(self.folder / "munge.seed"),
            "--log-file", str(self.folder / "munge.log"),
        )  # fmt: skip
        self._until(socket_file.exists, "munged")
        self.start_controller()
        for node in ("n1", "n2"):
            self.start_node(node)
        self._until(self._is_idle, "its nodes")

    def _is_idle(self) -> bool:
        return self.query("sinfo", "-h", "-N", "-p", "main", "-o", "%t") == "idle\nidle"

    def start_controller(self) -> None:
        """Start slurmctld with its saved state."""
        self._spawn("slurmctld", "-D")

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self._spawn("slurmd", "-D", "-N", node, name=node)

    def kill(self, name: str) -> None:
        """Kill the controller (`slurmctld`), or the daemon of a node (`n1`)."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def end_controller(self) -> None:
        """Stop slurmctld gracefully: it saves its state."""
        process = self._processes.pop("slurmctld")
        process.terminate()
        process.wait()

    def query(self, *command: str) -> str:
        """Run a command of Slurm, and return its output."""
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **self.environment}
        )
        return (done.stdout + done.stderr).strip()

    def stop(self) -> None:
        """Stop all jobs and daemons."""
        if "slurmctld" in self._processes:
            self.query("scancel", "--user=root")
            give_up_at = time.monotonic() + 10
            while self.query("squeue", "-h") and time.monotonic() < give_up_at:
                select_nothing(0.1)
        for process in reversed(self._processes.values()):
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _spawn(self, program: str, *arguments: str, name: str | None = None) -> None:
        path = shutil.which(program, path=os.environ["PATH"] + os.pathsep + "/usr/sbin")
        assert path is not None, program
        with (self.folder / f"{name or program}.out").open("ab") as out:
            self._processes[name or program] = subprocess.Popen(
                [path, *arguments], stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                env={**os.environ, **self.environment}, cwd=self.folder, start_new_session=True,
            )  # fmt: skip

    def _until(self, happened: Callable[[], bool], what: str) -> None:
        give_up_at = time.monotonic() + PATIENCE
        while not happened():
            ended = [name for name, each in self._processes.items() if each.poll() is not None]
            if ended or time.monotonic() > give_up_at:
                said = "".join(file.read_text()[-2000:] for file in self.folder.glob("*.log"))
                raise AssertionError(f"{what} did not start ({ended} ended): {said}")
            select_nothing(0.1)


@pytest.fixture(scope="session")
def slurm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm cluster of two nodes. Tests are skipped with the reason if it cannot run here."""
    missing = reason_for_none()
    if missing is not None:
        pytest.skip(missing)
    for is_last in (False, False, True):
        made = Slurm(tmp_path_factory.mktemp("slurm"))
        try:
            made.start()
            break
        except AssertionError as error:
            made.stop()
            # Another program may have taken one of the free ports, or this is a sandbox in which
            # the daemons cannot run.
            if is_last:
                pytest.skip(f"Slurm cannot run here: {error}")
    yield made
    made.stop()


@pytest.fixture
def slurm(slurm_server: Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """The Slurm cluster, with its variables in the environment; jobs are cancelled afterwards."""
    for name, value in slurm_server.environment.items():
        monkeypatch.setenv(name, value)
    yield slurm_server
    slurm_server.query("scancel", "--user=root")
