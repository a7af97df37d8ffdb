"""A real SLURM of two nodes on this machine, for development and tests: `python launch/dev_cluster up`, or `Cluster` in a test."""

from dev_cluster.cluster import Cluster, Job
from dev_cluster.errors import ClusterError
from dev_cluster.settings import Settings

__all__ = ["Cluster", "ClusterError", "Job", "Settings"]
