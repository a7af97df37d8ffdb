"""The text of SLURM's configuration files."""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path

from dev_cluster.settings import DEVICES, NODES, Record

PARTITIONS = """
PartitionName=DEFAULT Nodes={nodes} MaxTime=UNLIMITED PriorityTier=1 PreemptMode=OFF
PartitionName=main Default=YES
PartitionName=short MaxTime=60
PartitionName=preemptible PreemptMode=REQUEUE GraceTime=5
PartitionName=preemptible_nograce PreemptMode=REQUEUE GraceTime=0
PartitionName=urgent PriorityTier=10
"""


def user_name() -> str:
    """Who runs this, by what the system says: the environment of a user who became another one may still name the first."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def slurm_conf(directory: Path, record: Record) -> str:
    """The configuration that daemons and clients share.

    What makes it quick, and run without cgroups and without root, was measured on SLURM 22.05: `cred_expire` is how long a
    requeued job waits before it may start again, 120 s by default.
    """
    settings, ports = record.settings, record.ports
    user = user_name()
    lines = [
        "ClusterName=emosteer",
        f"SlurmctldHost={socket.gethostname().partition('.')[0]}(127.0.0.1)",
        f"SlurmctldPort={ports['slurmctld']}",
        "CommunicationParameters=NoCtldInAddrAny",
        f"SlurmUser={user}",
        f"SlurmdUser={user}",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        f"AuthInfo=socket={directory}/munge.sock,cred_expire=5",
        f"StateSaveLocation={directory}/state",
        f"SlurmdSpoolDir={directory}/spool/%n",
        f"SlurmctldPidFile={directory}/slurmctld.pid",
        f"SlurmdPidFile={directory}/%n.pid",
        f"SlurmctldLogFile={directory}/slurmctld.log",
        f"SlurmdLogFile={directory}/%n.log",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SwitchType=switch/none",
        "MpiDefault=none",
        "MailProg=/bin/true",
        "JobAcctGatherType=jobacct_gather/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "DefMemPerCPU=512",
        "GresTypes=gpu",
        f"MaxArraySize={settings.max_array_size}",
        "JobRequeue=1",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "SlurmctldParameters=preempt_send_user_signal",
        "SlurmdParameters=config_overrides",
        "SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1",
        "SlurmdTimeout=10",
        "KillWait=3",
        "MinJobAge=60",
        # A lost node comes back by itself; one that was set down stays so until it is resumed (with 2, for a second or so).
        "ReturnToService=1",
        *(
            _with_accounting(directory, ports["slurmdbd"])
            if settings.accounting
            else ["AccountingStorageType=accounting_storage/none"]
        ),
        f"NodeName=DEFAULT CPUs={settings.cpus} RealMemory={settings.memory} Gres=gpu:{settings.gpus}",
        *(f"NodeName={node} NodeAddr=127.0.0.1 Port={ports[node]}" for node in NODES),
    ]
    return "\n".join(lines) + PARTITIONS.format(nodes=",".join(NODES))


def _with_accounting(directory: Path, port: int) -> list[str]:
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={port}",
        # Without it, sacctmgr waits for a munge of the system's.
        f"AccountingStoragePass={directory}/munge.sock",
        "AccountingStorageTRES=gres/gpu",
        "AccountingStorageEnforce=associations,limits,qos",
    ]


def gres_conf(gpus: int) -> str:
    """Which files are the GPUs of the nodes; nothing opens them."""
    return "".join(f"NodeName={node} Name=gpu File={device}\n" for node in NODES for device in DEVICES[:gpus])


def slurmdbd_conf(directory: Path, record: Record, password: str) -> str:
    """The configuration of the accounting daemon; it wants the file to be readable by its user alone."""
    return f"""AuthType=auth/munge
AuthInfo=socket={directory}/munge.sock
ArchiveDir={directory}
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={record.ports["slurmdbd"]}
SlurmUser={user_name()}
PidFile={directory}/slurmdbd.pid
LogFile={directory}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={record.ports["mariadbd"]}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm
"""
