"""The clusters of the session."""

from slurm_cluster import accounting_cluster, cluster, idle_cluster

__all__ = ["accounting_cluster", "cluster", "idle_cluster"]
