"""A cluster in a directory of its own: up, down, its faults, and what it is doing."""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from dev_cluster import accounting, packages, processes
from dev_cluster.configuration import gres_conf, slurm_conf, user_name
from dev_cluster.errors import ClusterError
from dev_cluster.processes import HEAD, MARK, Process
from dev_cluster.settings import NODES, Record, Settings

LONGEST = 80
"""Letters of a cluster's directory: the path of a socket in it has at most 107."""
UP_SECONDS = 30
"""How long a daemon may take until it answers."""
NODE_STATES = {"down", "drain", "resume", "idle"}


@dataclass(frozen=True)
class Job:
    """A job, or a task of an array, as squeue shows it."""

    id: str
    state: str
    """SLURM's word: PENDING, RUNNING, COMPLETING, COMPLETED, ..."""
    node: str
    """Empty while it waits."""
    partition: str
    reason: str
    name: str


def _runs(program: str, process: Process) -> bool:
    return process.program == program


class Cluster:
    """Two nodes, n1 and n2, in the partitions main (the default), short, preemptible, preemptible_nograce and urgent.

    What is in the directory alone says whether there is one: an object made in another process stands for the same cluster.
    """

    def __init__(self, directory: Path | str, settings: Settings | None = None) -> None:
        """Nothing runs yet. `settings` are for `up`. Raises ClusterError for a path that SLURM's files cannot hold."""
        self.directory = Path(directory).resolve()
        self._settings = settings or Settings()
        if len(str(self.directory)) > LONGEST or any(letter in str(self.directory) for letter in " \t\n#%,=\"'\\"):
            raise ClusterError(
                f"{self.directory}: a cluster's directory has at most {LONGEST} letters, and none of them space # % , = quotes"
            )

    def __enter__(self) -> Cluster:
        self.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.down()

    # What it is

    @property
    def conf(self) -> Path:
        return self.directory / "slurm.conf"

    @property
    def settings(self) -> Settings:
        """The options that it was brought up with. Raises ClusterError where there is none."""
        return self._record().settings

    @property
    def environment(self) -> dict[str, str]:
        """What SLURM's commands need in their environment to speak to this cluster."""
        return {"SLURM_CONF": str(self.conf)}

    def processes(self) -> list[Process]:
        """Every process of the cluster: daemons, step daemons and what its jobs started."""
        return processes.of_cluster(self.directory)

    def node_processes(self, node: str) -> list[Process]:
        """Those of one node."""
        self._check(node)
        return [process for process in self.processes() if process.node == node]

    @property
    def nodes_have_names(self) -> bool:
        """Whether jobs see their node's name as the machine's. False where the system refuses namespaces."""
        namespaces = {Path(f"/proc/{one.pid}/ns/uts").readlink() for one in self.processes() if one.program == "slurmd"}
        return len(namespaces) == len(NODES)

    def _record(self) -> Record:
        return Record.read(self.directory / "cluster.json")

    @staticmethod
    def _check(node: str) -> None:
        if node not in NODES:
            raise ClusterError(f"no node {node!r}: there are {' and '.join(NODES)}")

    # Up and down

    def up(self) -> None:
        """Bring it up, and wait until both nodes are idle. What an earlier cluster left in the directory goes.

        Raises ClusterError, with the end of the log, for a daemon that does not come up; nothing runs then.
        """
        packages.install(self._settings.accounting)
        self._make_directory()
        try:
            self._start_munged()
            if self._settings.accounting:
                accounting.start(self, self._record())
            self.start_controller()
            for node in NODES:
                self._start_slurmd(node)
            self._wait_until_idle()
        except BaseException:
            self.down()
            raise

    def _wait_until_idle(self) -> None:
        for node in NODES:
            self.wait(functools.partial(self._is_in, ("idle",), node), "slurmd", node)

    def _is_in(self, states: Sequence[str], node: str) -> bool:
        return self.node_state(node) in states

    def _make_directory(self) -> None:
        if self.processes():
            raise ClusterError(f"{self.directory}: a cluster is up there; take it down first")
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.directory.stat().st_uid != os.geteuid():
            raise ClusterError(f"{self.directory} belongs to another user: give a directory of your own")
        self._clear()
        self.directory.chmod(0o700)
        for folder in ("state", *(f"spool/{node}" for node in NODES)):
            (self.directory / folder).mkdir(parents=True)
        record = Record(self._settings)
        record.write(self.directory / "cluster.json")
        self.conf.write_text(slurm_conf(self.directory, record), encoding="utf-8")
        (self.directory / "gres.conf").write_text(gres_conf(self._settings.gpus), encoding="utf-8")
        (self.directory / "munge.key").write_bytes(secrets.token_bytes(128))
        (self.directory / "munge.key").chmod(0o600)

    def _clear(self) -> None:
        entries = list(self.directory.iterdir())
        if entries:
            self._record()  # Or it holds somebody's work.
        for entry in entries:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def down(self) -> None:
        """End all of it: jobs are cancelled and have the time that SLURM gives them, then every process goes. Logs stay.

        Does nothing where nothing runs. Raises ClusterError for processes that cannot be ended.
        """
        if any(process.program == "slurmctld" for process in self.processes()):
            self._cancel_jobs()
        for program in ("slurmd", "slurmctld", "slurmdbd", "mariadbd", "munged"):
            self._end(functools.partial(_runs, program))
        self._end(lambda _: True, patience=1)

    def _cancel_jobs(self) -> None:
        try:
            self.run("scancel", f"--user={user_name()}", timeout=10)
            deadline = time.monotonic() + 6
            while self.jobs() and time.monotonic() < deadline:
                time.sleep(0.05)
        except ClusterError:
            return  # The controller does not answer: what its jobs started is ended below.

    def _end(self, is_meant: Callable[[Process], bool], patience: float = 5) -> None:
        processes.end(lambda: [one for one in self.processes() if is_meant(one)], patience)

    def _kill(self, is_meant: Callable[[Process], bool]) -> None:
        self._end(is_meant, patience=0)

    # Daemons

    def start_daemon(self, *command: str, node: str = HEAD, log: str) -> None:
        """Run a daemon's command, which returns when the daemon is in the background. Raises ClusterError when it fails."""
        own = str(self.directory)
        environment = {"PATH": packages.PATH, "HOME": own, "TMPDIR": own, "LC_ALL": "C.UTF-8", **self.environment, MARK: node}
        try:
            done = subprocess.run(  # noqa: S603
                command,
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                # Not a pipe: a daemon that keeps it open would keep us waiting.
                stdout=(output := (self.directory / "daemons.out").open("ab")),
                stderr=output,
                timeout=UP_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ClusterError(f"{command[0]} did not start: {error}{self._tail(log)}") from error
        finally:
            output.close()
        if done.returncode:
            raise ClusterError(f"{command[0]} did not start{self._tail('daemons.out')}{self._tail(log)}")

    def _start_munged(self) -> None:
        files = {
            "key-file": "munge.key",
            "socket": "munge.sock",
            "pid-file": "munged.pid",
            "seed-file": "munge.seed",
            "log-file": "munged.log",
        }
        options = [f"--{option}={self.directory / name}" for option, name in files.items()]
        # --force: the directories above ours may be open to others.
        self.start_daemon("munged", "--force", *options, log="munged.log")

    def start_controller(self) -> None:
        """Start slurmctld with the state that it left, and wait until it answers."""
        self.start_daemon("slurmctld", log="slurmctld.log")
        self.wait(self._controller_answers, "slurmctld")

    def _controller_answers(self) -> bool:
        return self.run("scontrol", "ping", check=False).returncode == 0

    def stop_controller(self) -> None:
        """End slurmctld as its service would. Jobs run on; SLURM's commands fail."""
        self._end(functools.partial(_runs, "slurmctld"))

    def kill_controller(self) -> None:
        """Kill slurmctld: it has no time to save its state."""
        self._kill(functools.partial(_runs, "slurmctld"))

    def _start_slurmd(self, node: str) -> None:
        program = Path(__file__).with_name("namespace.py")
        self.start_daemon(sys.executable, "-I", str(program), node, "slurmd", "-N", node, node=node, log=f"{node}.log")

    def start_node(self, node: str) -> None:
        """Start a node's slurmd, and wait until SLURM may use the node."""
        self._check(node)
        self._start_slurmd(node)
        self.wait(functools.partial(self._is_in, ("idle", "mixed", "allocated"), node), "slurmd", node)

    def kill_slurmd(self, node: str) -> None:
        """Kill a node's slurmd alone: its jobs run on."""
        self._check(node)
        self._kill(lambda one: one.node == node and one.program == "slurmd")

    def kill_node(self, node: str) -> None:
        """Kill all that runs on a node at once, as when a machine is lost. SLURM sees it after 10 to 30 s."""
        # Stopped first, so that none has the time to report the death of another.
        processes.send(self.node_processes(node), signal.SIGSTOP)
        self._kill(lambda one: one.node == node)

    def mend(self) -> None:
        """Undo faults: no job is left, every daemon runs, and both nodes are idle. For a cluster that several tests share."""
        running = {(one.node, one.program) for one in self.processes()}
        if (HEAD, "slurmctld") not in running:
            self.start_controller()
        self._cancel_jobs()
        self._kill(lambda one: one.node != HEAD and one.program != "slurmd")
        for node in NODES:
            if (node, "slurmd") not in running:
                self._start_slurmd(node)
            if {"down", "drain"} & set(self.node_state(node).split("+")):
                self.set_node(node, "resume")
        self._wait_until_idle()

    def wait(self, is_so: Callable[[], bool], program: str, node: str = HEAD) -> None:
        """Wait until a daemon has come to something. Raises ClusterError, with its log's end, where that fails."""
        started = time.monotonic()
        name, log = (program, f"{program}.log") if node == HEAD else (f"{program} of {node}", f"{node}.log")
        while not is_so():
            waited = time.monotonic() - started
            if waited > UP_SECONDS:
                raise ClusterError(f"{name} is not ready after {UP_SECONDS} s{self._tail(log)}")
            # Its command may have returned before there was a process by its name.
            if waited > 1 and not any(one.program == program and one.node == node for one in self.processes()):
                raise ClusterError(f"{name} has ended{self._tail(log)}")
            time.sleep(0.05)

    def _tail(self, log: str, lines: int = 10) -> str:
        try:
            text = (self.directory / log).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""
        return f"\n{self.directory / log} ends:\n" + "\n".join(text.splitlines()[-lines:]) if text else ""

    # SLURM's commands

    def run(self, *command: str, timeout: float = 30, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Give a command in this cluster, one of SLURM's or any other.

        Raises ClusterError for one that takes longer than `timeout` seconds, and, with `check`, for one that fails.
        """
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SQUEUE", "SACCT"))}
        try:
            done = subprocess.run(  # noqa: S603
                command,
                env={**inherited, **self.environment},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ClusterError(str(error)) from error
        if check and done.returncode:
            raise ClusterError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
        return done

    def jobs(self, ended: bool = False) -> list[Job]:
        """What waits or runs, a task of an array by itself; with `ended`, also what ended in the last minute."""
        states = ["--states=all"] if ended else []
        done = self.run("squeue", "--noheader", "--array", *states, "--format=%i|%T|%N|%P|%r|%j")
        return [Job(*line.split("|", 5)) for line in done.stdout.splitlines()]

    def node_state(self, node: str) -> str:
        """SLURM's words for a node's state: "idle", "mixed", "allocated", "down", "idle+drain", "down+not_responding", ...

        Not by sinfo, which may call a node mixed for ever whose job ended while a new controller came up.
        """
        self._check(node)
        shown = self.run("scontrol", "--oneliner", "show", "node", node).stdout
        return next(word.removeprefix("State=").lower() for word in shown.split() if word.startswith("State="))

    def set_node(self, node: str, state: str, reason: str = "by hand") -> None:
        """Do what an administrator does to a node: down, drain, resume or idle."""
        self._check(node)
        if state not in NODE_STATES:
            raise ClusterError(f"no state {state!r} to set: there are {', '.join(sorted(NODE_STATES))}")
        self.run(
            "scontrol", "update", f"nodename={node}", f"state={state}", *([f"reason={reason}"] if state in ("down", "drain") else [])
        )
