"""A Slurm of two nodes on the loopback interface, in a folder of its own."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

DEADLINE_S = 600.0
"""For what takes half a minute on an idle machine."""
_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
FirstJobId={ports[1]}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=1000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=1000
PartitionName=all Nodes=ALL Default=YES State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A cluster of the nodes n1 and n2, and a folder that its jobs start in."""

    folder: Path
    environment: Mapping[str, str]

    def command(self, *words: str) -> str:
        """Run a command of Slurm and return what it says.

        Raises:
            AssertionError: It failed.
        """
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """Return what is known of a job (JobState, Restarts, ExitCode, ...)."""
        said = self.command("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in said if "=" in word)

    def logs(self) -> str:
        """Return what this Slurm, its jobs and their steps have written."""
        files = sorted(self.folder.rglob("*.log"))
        return "\n".join(f"--- {file}\n{file.read_text()}" for file in files)

    def wait_for(self, event: Callable[[], object]) -> None:
        """Return as soon as `event` is true.

        Raises:
            AssertionError: The deadline passed.
        """
        end_s = time.monotonic() + DEADLINE_S
        while not event():
            assert time.monotonic() < end_s, self.logs()
            time.sleep(0.2)


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """Start Slurm, without passwords and for this machine alone; skip a test that cannot.

    `noveltune` is what this Python has.
    """
    if os.getuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "sbatch"))):
        pytest.skip("needs root, and slurmctld, slurmd and slurm-client of Debian")
    with ExitStack() as sockets:
        free = [sockets.enter_context(socket.socket()) for _ in range(3)]
        for each in free:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in free]
    file = folder / "slurm.conf"
    file.write_text(_CONFIGURATION.format(host=socket.gethostname(), folder=folder, ports=ports))
    (folder / "bin").mkdir()
    program = folder / "bin" / "noveltune"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m noveltune "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"SLURM_CONF": str(file), "PATH": path, "PYTHONPATH": root}
    node = ["slurmd", "-D", "-d", shutil.which("slurmstepd") or "/usr/sbin/slurmstepd", "-N"]
    started = []
    try:
        for name, words in {
            "controller": ["slurmctld", "-D", "-c"], "n1": [*node, "n1"], "n2": [*node, "n2"]
        }.items():  # fmt: skip
            with (folder / f"{name}.log").open("w") as log:
                started.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))
        made = Slurm(folder, environment)
        made.wait_for(lambda: _idle_nodes(made) == 2)
        yield made
    finally:
        _end([psutil.Process(each.pid) for each in reversed(started)])
        _end(list(_of_jobs(file)))


def _idle_nodes(cluster: Slurm) -> int:
    asked = ["sinfo", "--noheader", "--Node", "--format=%T"]
    done = subprocess.run(asked, env=cluster.environment, capture_output=True, text=True)
    return done.stdout.split().count("idle")  # none as long as the controller does not answer


def _of_jobs(file: Path) -> Iterator[psutil.Process]:
    """Yield the processes that this Slurm's jobs have left."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("SLURM_CONF") == str(file):
                yield process
        except psutil.Error:  # it has ended, or is not ours
            continue


def _end(processes: list[psutil.Process]) -> None:
    """Terminate processes, and kill those that are there after a while."""
    for process in processes:
        process.terminate()
    _, left = psutil.wait_procs(processes, timeout=20)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=20)
