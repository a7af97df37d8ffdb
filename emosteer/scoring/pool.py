"""The replies of many cells measured in one call, so that a model's batches are full and equal replies are read once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from emosteer.errors import Damaged
from emosteer.scoring.scorer import Context, Scorer, Scores, no_origins

if TYPE_CHECKING:
    from emosteer.engine import Origin

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CellReplies:
    """All replies of one cell, as scorers get them."""

    texts: list[str]
    context: Callable[[], Context]
    """Makes the model and the tokens, for scorers that ask."""
    origins: Callable[[], list[Origin]] = no_origins
    """Tells what each came from, for scorers that ask."""


def measure_together(scorer: Scorer, cells: Sequence[CellReplies]) -> Iterator[Scores | Exception]:
    """What a scorer says of each cell's replies, in order; for a cell on which it raised, what it raised.

    One that looks at each reply alone gets all of them at once, equal ones once. Any other one gets them cell by cell; so does one
    that raised, so that only those cells fail for which it raises again.

    Raises:
        Damaged: the prompts' texts are not what they were.
    """
    if scorer.is_per_reply and len(cells) > 1:
        try:
            pooled = _pooled(scorer, cells)
        except Damaged:
            raise
        except Exception as error:
            log.info("scorer %s raised for %d cells together (%s): now one by one", scorer.name, len(cells), error)
        else:
            yield from pooled
            return
    for cell in cells:
        yield _alone(scorer, cell)


def _alone(scorer: Scorer, cell: CellReplies) -> Scores | Exception:
    try:
        return scorer.measure(cell.texts, cell.context, cell.origins)
    except Damaged:
        raise
    except Exception as error:
        return error


@dataclass(frozen=True)
class _Row:
    """A reply, with what else the scorer asks for."""

    text: str
    prompt: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    origin: Origin | None = None


def _pooled(scorer: Scorer, cells: Sequence[CellReplies]) -> list[Scores]:
    contexts = [cell.context() for cell in cells] if scorer.needs_model else []
    rows = [_rows(scorer, cell, contexts[number] if contexts else None) for number, cell in enumerate(cells)]
    place = {row: number for number, row in enumerate(dict.fromkeys(row for own in rows for row in own))}

    def tokens() -> Context:
        prompts, replies = [row.prompt for row in place], [row.tokens for row in place]
        return replace(contexts[0], prompts=prompts, replies=replies, turns=[], said=[])

    def origins() -> list[Origin]:
        return [row.origin for row in place if row.origin is not None]

    scores = scorer.measure([row.text for row in place], tokens, origins)
    return [{metric: [values[place[row]] for row in own] for metric, values in scores.items()} for own in rows]


def _rows(scorer: Scorer, cell: CellReplies, context: Context | None) -> list[_Row]:
    """A cell's replies, with what the scorer asks for, and without what it does not: equal ones are measured once."""
    nothing: list[tuple[int, ...]] = [()] * len(cell.texts)
    prompts, tokens = (context.prompts, context.replies) if context else (nothing, nothing)
    origins: list[Origin | None] = [*cell.origins()] if scorer.needs_origins else [None] * len(cell.texts)
    return [_Row(*row) for row in zip(cell.texts, prompts, tokens, origins, strict=True)]
