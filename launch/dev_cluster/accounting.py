"""The accounting of a cluster: a database, slurmdbd, and an account with limits."""

from __future__ import annotations

import os
import secrets
import socket
from typing import TYPE_CHECKING

from dev_cluster.configuration import slurmdbd_conf, user_name

if TYPE_CHECKING:
    from dev_cluster.cluster import Cluster
    from dev_cluster.settings import Record

DATABASE = (
    "--no-defaults",
    "--skip-name-resolve",
    # What it holds need not outlive a power cut.
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-doublewrite=0",
    "--innodb-buffer-pool-size=64M",
    "--innodb-lock-wait-timeout=900",
)
SMALL = ("MaxSubmitJobsPerUser=4", "MaxWall=01:00:00")
"""The limits of the QOS 'small'."""


def start(cluster: Cluster, record: Record) -> None:
    """Start the database and slurmdbd, and fill in the cluster, the account 'lab' with this user, and the QOS 'small'.

    Raises ClusterError for what does not come up.
    """
    password = secrets.token_hex(16)
    _start_database(cluster, record.ports["mariadbd"], password)
    configuration = cluster.directory / "slurmdbd.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(slurmdbd_conf(cluster.directory, record, password), encoding="utf-8")
    cluster.start_daemon("slurmdbd", log="slurmdbd.log")
    cluster.wait(lambda: answers(record.ports["slurmdbd"]), "slurmdbd")
    _fill(cluster)


def _start_database(cluster: Cluster, port: int, password: str) -> None:
    directory = cluster.directory
    as_user = ("--user=root",) if os.geteuid() == 0 else ()
    log = "mariadbd.log"
    options = (*DATABASE, f"--datadir={directory}/database", *as_user)
    cluster.start_daemon("mariadb-install-db", *options, "--auth-root-authentication-method=socket", "--skip-test-db", log=log)
    first_words = directory / "database.sql"
    first_words.touch(mode=0o600)
    first_words.write_text(
        f"CREATE OR REPLACE USER slurm@'127.0.0.1' IDENTIFIED BY '{password}';\nGRANT ALL ON slurm.* TO slurm@'127.0.0.1';\n",
        encoding="utf-8",
    )
    files = {"init-file": "database.sql", "socket": "mariadbd.sock", "pid-file": "mariadbd.pid", "log-error": log}
    paths = [f"--{option}={directory / name}" for option, name in files.items()]
    # It does not go to the background by itself.
    cluster.start_daemon("setsid", "--fork", "mariadbd", *options, *paths, "--bind-address=127.0.0.1", f"--port={port}", log=log)
    cluster.wait(lambda: answers(port), "mariadbd")


def answers(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _fill(cluster: Cluster) -> None:
    """Before slurmctld starts: it reads them once, and knows no later ones for a while."""
    for words in (
        ("cluster", "emosteer"),
        ("account", "lab", "Description=lab", "Organization=lab"),
        ("qos", "small", *SMALL),
        ("user", user_name(), "Account=lab", "DefaultAccount=lab", "QOS=normal,small", "DefaultQOS=normal"),
    ):
        cluster.run("sacctmgr", "--immediate", "add", *words)
