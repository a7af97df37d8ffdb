"""A model's activations at texts' own tokens, for every block in one pass, reduced while the model runs.

What the texts have in common at their beginning (the template, and the opening before them) is read once, nothing is read after
a text's last token, and the forward ends after the last block: the output matrix never runs.

Memory: one block's work on `BATCH_TOKENS` tokens, one output of it in float32, and what `reduce` leaves of every block. No activation
[row, position, width] is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from emosteer.model.batches import Progress, run_in_batches, silent
from emosteer.model.capture import Place, Site, every_place, watching
from emosteer.model.dialogue import Reading
from emosteer.model.language_model import LanguageModel
from emosteer.model.padding import pad_right
from emosteer.model.prefix import Prefix, agrees, common_beginning, inputs_after, read_prefix

BATCH_TOKENS = 2048
"""Read together: far more than the few hundred from which on a forward is bound by arithmetic, on a CPU and a GPU alike."""

Reduce = Callable[[Tensor, Tensor], Tensor]
"""Makes [row, ...] of a block's output [row, position, width] and a mask of the texts' own tokens [row, position]."""


@dataclass(frozen=True)
class Extracted:
    """What was read of some of the texts."""

    rows: list[int]
    """Their indices among the texts."""
    own: Tensor
    """Which positions are the texts' own tokens [row, position], on the CPU."""
    by_site: dict[Site, Tensor]
    """What `reduce` left [row, block, ...], on the CPU."""


def extract(
    model: LanguageModel,
    readings: Sequence[Reading],
    sites: Iterable[Site],
    reduce: Reduce,
    take: Callable[[Extracted], None],
    on_progress: Progress = silent,
) -> None:
    """Read texts in batches, and give `take` what `reduce` leaves of each block's output.

    Args:
        model: the language model.
        readings: the texts.
        sites: all of them are read in one pass.
        reduce: called for each block, on the device where it lies.
        take: called once for each batch; an index comes once.
        on_progress: told the texts that are read.
    """
    texts = [replace(reading, tokens=reading.tokens[: reading.stop]) for reading in readings]
    prefix = _common_beginning(model, texts)
    skipped = prefix.length if prefix else 0
    places = every_place(model.anatomy, dict.fromkeys(sites))

    def run(rows: list[int]) -> None:
        take(_read(model, [texts[row] for row in rows], rows, prefix, places, reduce))

    run_in_batches(run, [len(text.tokens) - skipped for text in texts], BATCH_TOKENS, on_progress)


def _common_beginning(model: LanguageModel, texts: Sequence[Reading]) -> Prefix | None:
    """What stands before every text's own tokens, read; None where that saves nothing, or the model does not do it exactly."""
    longest = max(texts, key=lambda text: len(text.tokens), default=None)
    if longest is None:
        return None
    length = common_beginning([text.tokens[: min(text.start, len(text.tokens) - 1)] for text in texts])
    # Seeing that the model does it reads the longest text whole, and its two parts.
    if length * (len(texts) - 1) <= 2 * len(longest.tokens) or not agrees(model, longest.tokens, length):
        return None
    ids, mask = pad_right([longest.tokens[:length]], model.pad_token_id, model.device)
    return read_prefix(model, ids, mask)


@torch.no_grad()
def _read(
    model: LanguageModel, texts: Sequence[Reading], rows: list[int], prefix: Prefix | None, places: Sequence[Place], reduce: Reduce
) -> Extracted:
    skipped = prefix.length if prefix else 0
    ids, mask = pad_right([text.tokens[skipped:] for text in texts], model.pad_token_id, model.device)
    position = torch.arange(skipped, skipped + ids.shape[1], device=model.device)
    # A text ends with its last own token.
    own = mask.bool() & (position >= torch.tensor([text.start for text in texts], device=model.device)[:, None])
    found: dict[Place, Tensor] = {}

    def look(place: Place, states: Tensor) -> None:
        found[place] = reduce(states, own.to(states.device))

    with watching(model.anatomy, places, look, stops=True):
        model.model(**inputs_after(model, prefix, ids, mask))
    # Blocks may lie on different devices.
    by_site = {
        site: torch.stack([found[site, layer].cpu() for layer in range(model.n_blocks)], dim=1)
        for site in dict.fromkeys(site for site, _ in places)
    }
    return Extracted(rows, own.cpu(), by_site)
