"""What goes wrong with a cluster, for the person who brought it up."""

from __future__ import annotations


class ClusterError(Exception):
    """What went wrong, and what to do about it."""
