"""The least time that decoding can take on this machine, and the share of it that the engine reaches."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """The least time of one decoding step, from what `variants/machine.py` measured."""

    rows: int
    by_products: float
    """Seconds of the fastest pass over all linear weights."""
    by_memory: float
    """Seconds in which the weights are read from memory once."""
    flops: float
    """Floating-point operations in a second, of that pass."""
    bandwidth: float
    """Bytes in a second."""

    @classmethod
    def of(cls, told: dict[str, Any]) -> Step:
        """From the machine's answer."""
        fastest = min(seconds for passes in told["passes"].values() for seconds in passes)
        return cls(told["rows"], fastest, told["bytes"] / told["bandwidth"], told["flop"] / fastest, told["bandwidth"])

    @property
    def seconds(self) -> float:
        """Attention, norms and choosing tokens are left out: this is a floor."""
        return max(self.by_products, self.by_memory)


def rows_of(account: dict[str, Any]) -> int:
    """Rows in the mean step of a run. A step's least time grows in line with its rows, so that the mean step stands for all."""
    return max(1, round(account["row_steps"] / max(1, account["steps"])))


def share(account: dict[str, Any], told: dict[str, Any]) -> float:
    """The least time for a run's steps over the seconds that it decoded; NaN where the engine has not counted them."""
    return account["steps"] * Step.of(told).seconds / (account["decode_seconds"] or float("nan"))


def summary(accounts: list[dict[str, Any]], told: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, each round's decoding against what the machine did in that round."""
    steps = [Step.of(one) for one in told]
    median = statistics.median
    return {
        "rows": round(median(step.rows for step in steps)),
        "steps": round(median(account["steps"] for account in accounts)),
        "gflop_per_second": median(step.flops for step in steps) / 1e9,
        "gigabytes_per_second": median(step.bandwidth for step in steps) / 1e9,
        "least_seconds": median(a["steps"] * step.seconds for a, step in zip(accounts, steps, strict=True)),
        "decode_seconds": median(account["decode_seconds"] for account in accounts),
        "prefill_seconds": median(account["prefill_seconds"] for account in accounts),
        "share": median(share(account, one) for account, one in zip(accounts, told, strict=True)),
        "share_spared": median(account["share_spared"] for account in accounts),
        "passes": told,
    }
