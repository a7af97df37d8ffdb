"""Debian's packages that a cluster needs."""

from __future__ import annotations

import os
import shutil
import subprocess

from dev_cluster.errors import ClusterError

SLURM = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
ACCOUNTING = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server-core", "mariadb-install-db": "mariadb-server-core"}
# mariadb-install-db needs my_print_defaults of this one.
ACCOUNTING |= {"my_print_defaults": "mariadb-client-core"}
"""Program -> the package that brings it."""
PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
"""Where programs are found: a user's own path may leave out the daemons."""


def missing(accounting: bool) -> list[str]:
    """The packages whose programs are not on this machine."""
    needed = SLURM | (ACCOUNTING if accounting else {})
    return sorted({package for program, package in needed.items() if shutil.which(program, path=PATH) is None})


def install(accounting: bool) -> None:
    """Install what is missing, as root or by a sudo that asks for no password.

    Raises ClusterError, with the command to give, where that is not possible.
    """
    packages = missing(accounting)
    if not packages:
        return
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
    steps = (
        [*as_root, *apt, "update"],
        [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", *apt, "install", "-y", "--no-install-recommends", *packages],
    )
    by_hand = f"apt-get install --no-install-recommends {' '.join(packages)}"
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, text=True, timeout=600)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ClusterError(f"a cluster needs packages: as root, run {by_hand} ({error})") from error
        if done.returncode:
            why = (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2]
            raise ClusterError(f"a cluster needs packages: as root, run {by_hand} ({why})")
