"""A real Slurm on this machine, for tests and benchmarks: slurmctld and two nodes, started in a second.

Needs Debian's slurm-wlm and munge, which are installed if they are missing, and root.
"""

import contextlib
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge")
NEEDED = ("slurmctld", "slurmd", "sbatch", "squeue", "scancel", "munged")
PATIENCE = 120  # seconds

CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PropagateResourceLimits=NONE
ReturnToService=2
MaxArraySize={most_in_array}
MinJobAge=600
KillWait=3
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=low Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime={grace} PreemptMode=REQUEUE
PartitionName=lost Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=1 GraceTime={grace} PreemptMode=CANCEL
PartitionName=high Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=10
"""


def why_not() -> str:
    """Why there can be no cluster here; nothing if there can. Installs what is missing."""
    if os.geteuid() != 0:
        return "a real Slurm needs root"
    if all(map(shutil.which, NEEDED)):
        return ""
    if shutil.which("apt-get") is None:
        return f"a real Slurm needs the packages {', '.join(PACKAGES)}, and there is no apt-get"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *words], env=environment, capture_output=True, text=True)
    return (
        ""
        if all(map(shutil.which, NEEDED))
        else f"a real Slurm cannot be installed: {done.stderr.strip()[-300:]}"
    )


CLIENT = """
import json, pickle, sys
from journey.artifacts.store import Store
from journey.artifacts.workspace import Workspace
from journey.launch.jobs import JobsFailedError
from journey.launch.slurm import Slurm
from journey.tracking import JSONLines
root, settings, specs = pickle.load(sys.stdin.buffer)
usual = dict(cpus=1, memory_gib=0.1, minutes=10, poll_seconds=0.1, gather_seconds=0.2, pack_seconds=0.1, checkpoint_seconds=0.3)
space = Workspace(Store(root), Slurm(**{**usual, **settings}), JSONLines(), "test")
try:
    for spec in space.compute.make(specs, space):
        print("made", spec.label, flush=True)
except JobsFailedError as error:
    print("failed", error, flush=True)
"""
"""A client in a process of its own: what it is to make comes by standard input, what it made goes to standard output."""


@dataclass
class Cluster:
    """A cluster that runs. environment: variables by which Slurm's commands find it."""

    root: Path
    environment: dict[str, str]
    daemons: dict[str, subprocess.Popen] = field(default_factory=dict)  # by name

    def ask(self, *words: str) -> str:
        """What a command of Slurm says."""
        return subprocess.run(
            words, env=self.environment, capture_output=True, text=True, check=True
        ).stdout

    def queue(self) -> list[tuple[str, str]]:
        """The job and state of all array tasks that are queued or run."""
        return [
            tuple(line.split("|"))
            for line in self.ask("squeue", "-h", "-r", "-o", "%i|%T").splitlines()
        ]

    def start(self, daemon: str, *words: str) -> None:
        """Start a daemon of Slurm in the foreground, as a child of this process."""
        log = open(self.root / f"{daemon}.out", "ab")  # noqa: SIM115 - the daemon's
        self.daemons[daemon] = subprocess.Popen(words, env=self.environment, stdout=log, stderr=log)
        log.close()

    def start_node(self, name: str) -> None:
        """Start the daemon of a node."""
        self.start(name, "slurmd", "-D", "-N", name)

    def lose(self, node: str) -> None:
        """A node is gone, with everything on it."""
        self.kill(node)
        kill_all(processes_on(node, self))
        self.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")

    def find(self, node: str) -> None:
        """It is there again."""
        self.start_node(node)
        resume = ["scontrol", "update", f"nodename={node}", "state=resume"]
        subprocess.run(
            resume, env=self.environment, capture_output=True
        )  # which fails where it came back by itself

    def kill(self, daemon: str) -> None:
        """Kill a daemon."""
        process = self.daemons.pop(daemon)
        process.kill()
        process.wait()

    def wait_for_nodes(self) -> None:
        """Until both nodes take jobs."""
        wait_until(
            lambda: (
                self.ask("sinfo", "-h", "-N", "-p", "low", "-o", "%t").split() == ["idle", "idle"]
            )
        )


def wait_until(holds) -> None:
    """Raises: AssertionError if it takes too long."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


@contextlib.contextmanager
def cluster(grace: int = 20, most_in_array: int = 1001) -> Iterator[Cluster]:
    """A cluster, ended with all of its processes. Partitions: low and lost, whose jobs those of high requeue or cancel.

    grace: seconds that such a job still has
    """
    root = Path(tempfile.mkdtemp(prefix="slurm-"))
    root.chmod(0o755)
    (root / "state").mkdir()
    first, *others = _free_ports()
    text = CONFIGURATION.format(
        root=root,
        host=socket.gethostname(),
        ports=(first, *others),
        grace=grace,
        most_in_array=most_in_array,
    )
    (root / "slurm.conf").write_text(text)
    modules = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    made = Cluster(
        root, {**os.environ, "SLURM_CONF": str(root / "slurm.conf"), "PYTHONPATH": modules}
    )
    try:
        _start_munge(made)
        made.start("slurmctld", "slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            made.start_node(node)
        wait_until(
            lambda: (
                subprocess.run(["sinfo"], env=made.environment, capture_output=True).returncode == 0
            )
        )
        made.wait_for_nodes()
        yield made
    finally:
        for daemon in list(made.daemons):
            made.kill(daemon)
        kill_all(_processes_with(made))
        shutil.rmtree(root, ignore_errors=True)


def _start_munge(made: Cluster) -> None:
    folder = made.root / "munge"
    folder.mkdir(mode=0o755)
    shutil.chown(folder, "munge", "munge")
    files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    words = [f"--{option}={folder}/{name}" for option, name in files.items()]
    as_munge = ("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups")
    made.start("munged", *as_munge, "munged", "--foreground", "--force", *words)
    wait_until((folder / "socket").exists)


def _free_ports() -> tuple[int, int, int]:
    """One, and two that follow each other."""
    while True:
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
            for one in sockets[:2]:
                one.bind(("127.0.0.1", 0))
            first, second = (one.getsockname()[1] for one in sockets[:2])
            with contextlib.suppress(OSError, OverflowError):
                sockets[2].bind(("127.0.0.1", second + 1))
                return first, second, second + 1


# ---------------------------------------------------------------------------------------- clients, and what is killed


@contextlib.contextmanager
def client(slurm: Cluster, root: Path, specs: list, **settings):
    """A client in a process of its own, in the middle of its work."""
    sends = pickle.dumps((root, settings, specs))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", CLIENT], env=slurm.environment, **pipes
    ) as process:
        process.stdin.write(sends)
        process.stdin.close()
        process.stdin = None
        try:
            yield process
        finally:
            process.kill()


def finished(process: subprocess.Popen, seconds: float = PATIENCE) -> list[str]:
    """What a client said after all, but for how far it was."""
    out, _ = process.communicate(timeout=seconds)
    return [
        line
        for line in out.decode().splitlines()
        if not (line[:1].isdigit() or line.startswith("waiting for"))
    ]


def processes_on(node: str, slurm: Cluster) -> list[int]:
    """The numbers of the processes of jobs on a node."""
    return _processes_with(slurm, f"SLURMD_NODENAME={node}")


def _processes_with(slurm: Cluster, *variables: str) -> list[int]:
    """The numbers of the processes of a cluster that also have some variables."""
    wanted = {
        variable.encode()
        for variable in (f"SLURM_CONF={slurm.environment['SLURM_CONF']}", *variables)
    }
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted <= set(path.read_bytes().split(b"\0")):
                found.append(int(path.parent.name))
    return found


def kill_all(pids: list[int]) -> None:
    """Those that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
