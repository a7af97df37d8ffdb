"""The report's attribution: component by block, where the expression is decided, and whether exact patching agrees."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from emosteer.records.store import Store
from emosteer.tables import Tables

log = logging.getLogger(__name__)

LAST = {"last.attention": "attention", "last.mlp": "MLP"}
EVERYWHERE = {"everywhere.attention": "attention", "everywhere.mlp": "MLP"}
HEADS = {"last.head": "head"}
DIGITS = 4


def loci(store: Store, tables: Tables) -> list[dict[str, Any]]:
    """Of each attribution that is there: its pair and model, the ranking with what is known of it, the check against exact patching,
    and heatmaps (name, rows, and scores [row][block] in nats, means over pairs).
    """
    return [_locus(store, key, facts) for key, facts in sorted(tables.found.items()) if facts]


def _locus(store: Store, key: str, facts: dict[str, Any]) -> dict[str, Any]:
    scores, why_not = _scores(store, key)
    first = facts["ranking"][0] if facts.get("ranking") else None
    return {
        "id": key,
        "pair": str(facts.get("pair")),
        "model": str(facts.get("model")),
        "sentence": _sentence(facts, first),
        "method": _method(facts),
        "heatmaps": _heatmaps(scores),
        "why_not": why_not,
        "blocks": {
            name: _rounded(facts.get(name)) for name in ("block_scores", "block_scores_low", "block_scores_high", "first_share")
        },
        "check": [_check(one) for one in facts.get("check") or ()],
    }


def _scores(store: Store, key: str) -> tuple[dict[str, Any], str]:
    path = store.paths.attribution_scores(key)
    try:
        return load_file(path), ""
    except (OSError, SafetensorError) as error:
        log.warning("%s cannot be read, the report goes without its heatmaps: %s", path, error)
        return {}, f"the scores cannot be read ({path.name}: {error}); `emosteer -m mode=force` computes them again"


def _heatmaps(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """Attention and MLP at the last position and over all, then every head; the residual stream's level says nothing by block."""
    found = []
    for name, parts in (("At the last prompt position", LAST), ("Summed over all positions", EVERYWHERE)):
        rows = {label: _rounded(np.nanmean(scores[part], axis=0)) for part, label in parts.items() if part in scores}
        if rows:
            found.append({"name": name, "rows": list(rows), "values": list(rows.values())})
    if "last.head" in scores:
        by_head = np.nanmean(scores["last.head"], axis=0).T
        rows = {f"head {number}": _rounded(values) for number, values in enumerate(by_head)}
        found.append({"name": "Heads, at the last prompt position", "rows": list(rows), "values": list(rows.values())})
    return found


def _rounded(values: Any) -> list[float | None]:
    return [float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None for value in values] if values is not None else []


def _sentence(facts: dict[str, Any], first: int | None) -> str:
    if first is None:
        return "The blocks were not ranked."
    if "first_share" not in facts:  # of an older version
        return f"Block {first} comes first."
    low, high = facts["block_scores_low"][first], facts["block_scores_high"][first]
    return (
        f"Block {first} comes first, in {facts['first_share'][first]:.0%} of resamples of the prompt pairs: its attention and MLP "
        f"add {facts['block_scores'][first]:+.2f} nats [{low:+.2f}, {high:+.2f}]. Then come {_listed(facts['ranking'][1:4])}."
    )


def _listed(blocks: list[int]) -> str:
    return ", ".join(map(str, blocks)) or "no others"


def _method(facts: dict[str, Any]) -> str:
    n, dropped = len(facts.get("pair_ids") or ()), facts.get("n_dropped") or 0
    aligned = f"; {dropped} of unequal length serve at the last position only" if dropped else ""
    return f"{facts.get('direction', 'denoising')}, {n} prompt pairs{aligned}; metric: {facts.get('metric', 'not said')}."


def _check(one: dict[str, Any]) -> dict[str, Any]:
    return {
        "site": str(one["site"]),
        "position": "last" if one["position"] == "last" else "all",
        "n": len(one["components"]),
        "pearson": one["pearson"],
        "spearman": one["spearman"],
        "same_sign": one["same_sign"],
        "is_low": bool(one["is_low"]),
    }
