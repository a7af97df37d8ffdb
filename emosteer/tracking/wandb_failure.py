"""Why an upload to Weights & Biases came to nothing, from what `wandb sync` printed, in words that say what to do."""

from __future__ import annotations

import re

from emosteer.tracking.child import Ending
from emosteer.tracking.wandb_login import server

KNOWN = (
    (
        r"user is not logged in|invalid api key|401|API key must have|API key verification failed",
        "the key is not one of {server}: `wandb login --relogin`",
    ),
    (
        r"entity not found|(?:entity|user|team) \S* ?(?:does not exist|not found)|404",
        "no such entity or project there: check tracking.entity",
    ),
    (r"permission denied|403", "the key may not write there: check tracking.entity and tracking.project"),
    (r"no such host|name resolution|connection refused|network is unreachable|no route to host", "{server} cannot be reached"),
)
"""What a line says -> what it means."""
NOISE = re.compile(r"^(?:wandb:\s*)?(?:\[[^\]]*\]\s*)?")


def diagnosis(ending: Ending, patience: float) -> str:
    """One line, with what wandb said."""
    said = _said(ending)
    for pattern, meaning in KNOWN:
        if re.search(pattern, said, re.IGNORECASE):
            return f"{meaning.format(server=server())} (wandb: {said})"
    if ending.code is None:
        return f"no progress for {patience:g} s, from {server()}"
    return said or f"wandb sync ended with {ending.code}"


def _said(ending: Ending) -> str:
    """The last line with an error, else the last one."""
    lines = [line.strip() for line in ending.output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror\b|\bfailed\b", line, re.IGNORECASE)]
    return NOISE.sub("", (errors or lines or [""])[-1]).removeprefix("ERROR ")
