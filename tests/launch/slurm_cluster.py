"""A real Slurm on this machine, for tests and benchmarks: slurmctld and two nodes.

It needs root and Debian's packages slurm-wlm and munge, which are installed if missing.
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
TIMEOUT = 600  # seconds: long, for a busy machine

# ruff: noqa: E501 - the lines of slurm.conf cannot be wrapped
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
KillWait=15
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=low Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime={grace} PreemptMode=REQUEUE
PartitionName=lost Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=1 GraceTime={grace} PreemptMode=CANCEL
PartitionName=high Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=10
"""


def reason_unavailable() -> str:
    """Return why no cluster can run here, or ""; missing packages are installed."""
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


# A client process: it reads the specs from standard input and prints what was computed.
CLIENT = """
import json, pickle, sys
from journey.engine.store import Store
from journey.engine.workspace import Workspace
from journey.launch.jobs import JobsFailedError
from journey.launch.slurm import Slurm
from journey.tracking import JSONLines
root, settings, specs = pickle.load(sys.stdin.buffer)
defaults = dict(
    cpus=1, memory_gib=0.1, minutes=10, poll_seconds=0.1, gather_seconds=0.2, pack_seconds=0.1,
    checkpoint_seconds=0.3,
)
compute = Slurm(**{**defaults, **settings})
space = Workspace(Store(root), compute, JSONLines(), "test")
try:
    for spec in space.compute.make(specs, space):
        print("computed", spec.label, flush=True)
except JobsFailedError as error:
    print("failed", error, flush=True)
"""


@dataclass
class Cluster:
    """A running cluster; Slurm's commands find it by the environment variables."""

    root: Path
    environment: dict[str, str]
    daemons: dict[str, subprocess.Popen] = field(default_factory=dict)  # by name

    def command(self, *words: str) -> str:
        """Return what a command of Slurm prints."""
        return subprocess.run(
            words, env=self.environment, capture_output=True, text=True, check=True
        ).stdout

    def queue(self) -> list[tuple[str, str]]:
        """Return job and state of all array tasks that are queued or running."""
        return [
            tuple(line.split("|"))
            for line in self.command("squeue", "-h", "-r", "-o", "%i|%T").splitlines()
        ]

    def start(self, daemon: str, *words: str) -> None:
        """Start a daemon of Slurm in the foreground, as a child of this process."""
        log = open(self.root / f"{daemon}.out", "ab")  # noqa: SIM115 - the daemon's
        self.daemons[daemon] = subprocess.Popen(words, env=self.environment, stdout=log, stderr=log)
        log.close()

    def start_node(self, name: str) -> None:
        """Start the daemon of a node."""
        self.start(name, "slurmd", "-D", "-N", name)

    def take_down(self, node: str) -> None:
        """Kill a node with everything on it."""
        self.kill(node)
        kill_all(processes_on(node, self))
        self.command("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")

    def bring_up(self, node: str) -> None:
        """Start a node again."""
        self.start_node(node)
        resume = ["scontrol", "update", f"nodename={node}", "state=resume"]
        # Not checked: it fails where the node resumed by itself.
        subprocess.run(resume, env=self.environment, capture_output=True)

    def kill(self, daemon: str) -> None:
        """Kill a daemon."""
        process = self.daemons.pop(daemon)
        process.kill()
        process.wait()

    def wait_for_nodes(self) -> None:
        """Wait until both nodes accept jobs."""
        wait_until(
            lambda: (
                self.command("sinfo", "-h", "-N", "-p", "low", "-o", "%t").split()
                == ["idle", "idle"]
            )
        )


def wait_until(condition) -> None:
    """Wait for a condition; fail after `TIMEOUT` seconds."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@contextlib.contextmanager
def cluster(grace: int = 120, most_in_array: int = 1001) -> Iterator[Cluster]:
    """Yield a cluster; end it with all of its processes.

    Jobs of partition `high` preempt those of `low` (requeued) and of `lost` (cancelled), after
    `grace` seconds.
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
    running = Cluster(
        root, {**os.environ, "SLURM_CONF": str(root / "slurm.conf"), "PYTHONPATH": modules}
    )
    try:
        _start_munge(running)
        running.start("slurmctld", "slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            running.start_node(node)
        wait_until(
            lambda: (
                subprocess.run(["sinfo"], env=running.environment, capture_output=True).returncode
                == 0
            )
        )
        running.wait_for_nodes()
        yield running
    finally:
        for daemon in list(running.daemons):
            running.kill(daemon)
        kill_all(_processes_with(running))
        shutil.rmtree(root, ignore_errors=True)


def _start_munge(running: Cluster) -> None:
    folder = running.root / "munge"
    folder.mkdir(mode=0o755)
    shutil.chown(folder, "munge", "munge")
    files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    words = [f"--{option}={folder}/{name}" for option, name in files.items()]
    as_munge = ("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups")
    running.start("munged", *as_munge, "munged", "--foreground", "--force", *words)
    wait_until((folder / "socket").exists)


def _free_ports() -> tuple[int, int, int]:
    """Return a free port, and two consecutive ones."""
    while True:
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
            for one in sockets[:2]:
                one.bind(("127.0.0.1", 0))
            first, second = (one.getsockname()[1] for one in sockets[:2])
            with contextlib.suppress(OSError, OverflowError):
                sockets[2].bind(("127.0.0.1", second + 1))
                return first, second, second + 1


@contextlib.contextmanager
def client(slurm: Cluster, root: Path, specs: list, **settings):
    """Yield a client process at work."""
    request = pickle.dumps((root, settings, specs))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", CLIENT], env=slurm.environment, **pipes
    ) as process:
        process.stdin.write(request)
        process.stdin.close()
        process.stdin = None
        try:
            yield process
        finally:
            process.kill()


def finished(process: subprocess.Popen, seconds: float = TIMEOUT) -> list[str]:
    """Return the lines that a client printed, without its progress."""
    out, _ = process.communicate(timeout=seconds)
    return [
        line
        for line in out.decode().splitlines()
        if not (line[:1].isdigit() or line.startswith("waiting for"))
    ]


def processes_on(node: str, slurm: Cluster) -> list[int]:
    """Return the process IDs of the jobs on a node."""
    return _processes_with(slurm, f"SLURMD_NODENAME={node}")


def _processes_with(slurm: Cluster, *variables: str) -> list[int]:
    """Return the IDs of a cluster's processes with these environment variables."""
    wanted = {
        variable.encode()
        for variable in (f"SLURM_CONF={slurm.environment['SLURM_CONF']}", *variables)
    }
    pids = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted <= set(path.read_bytes().split(b"\0")):
                pids.append(int(path.parent.name))
    return pids


def kill_all(pids: list[int]) -> None:
    """Kill the processes that still exist."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
