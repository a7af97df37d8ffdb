"""The command: up, down and status of a cluster on this machine."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from dev_cluster import packages
from dev_cluster.cluster import Cluster
from dev_cluster.errors import ClusterError
from dev_cluster.settings import NODES, Settings


def main(arguments: Sequence[str]) -> int:
    """Run a command line; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ClusterError, OSError) as error:
        print(f"dev_cluster: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "dev_cluster", description="A real SLURM of two nodes on this machine, for development and tests."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    defaults = Settings()
    up = commands.add_parser("up", help="bring it up, and say how to use it")
    up.add_argument(
        "--accounting", action="store_true", help="with sacct, and the account 'lab' with limits: slurmdbd and a database"
    )
    up.add_argument(
        "--max-array-size", type=int, metavar="N", default=defaults.max_array_size, help="MaxArraySize (default: %(default)s)"
    )
    up.add_argument(
        "--cpus", type=int, metavar="N", default=defaults.cpus, help="of a node, whatever the machine has (default: %(default)s)"
    )
    up.add_argument("--memory", type=int, metavar="MB", default=defaults.memory, help="of a node (default: %(default)s)")
    up.add_argument("--gpus", type=int, metavar="N", default=defaults.gpus, help="fake ones of a node, 1 to 5 (default: %(default)s)")
    down = commands.add_parser("down", help="cancel its jobs, and end all of its processes")
    status = commands.add_parser("status", help="its nodes, jobs and processes")
    for command, run in ((up, _up), (down, _down), (status, _status)):
        default = Path(tempfile.gettempdir()) / f"emosteer-cluster-{os.getuid()}"
        command.add_argument(
            "directory", nargs="?", metavar="DIR", type=Path, default=default, help="of the cluster (default: %(default)s)"
        )
        command.set_defaults(run=run)
    install = commands.add_parser("install", help="install Debian's packages, which up does too")
    install.add_argument("--accounting", action="store_true", help="also those that accounting needs")
    install.set_defaults(run=lambda options: packages.install(options.accounting))
    return parser


def _up(options: argparse.Namespace) -> None:
    started = time.monotonic()
    settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
    cluster = Cluster(options.directory, settings)
    cluster.up()
    print(f"Up in {time.monotonic() - started:.1f} s: {' and '.join(NODES)}. Use it with:")
    print(f"    export SLURM_CONF={cluster.conf}")
    print(f"Logs: {cluster.directory}/*.log")
    if not cluster.nodes_have_names:
        print("The system allows no namespaces: jobs of both nodes see this machine's host name.")


def _down(options: argparse.Namespace) -> None:
    Cluster(options.directory).down()


def _status(options: argparse.Namespace) -> None:
    cluster = Cluster(options.directory)
    running = cluster.processes()
    print(f"{cluster.directory}: {'up' if running else 'down'}")
    if not running:
        return
    for process in sorted(running, key=lambda one: (one.node, one.pid)):
        print(f"  {process.node:4} {process.pid:>7} {process.program}")
    for command in (("sinfo", "--Node", "--long"), ("squeue", "--array")):
        print(cluster.run(*command, timeout=10).stdout.rstrip())
