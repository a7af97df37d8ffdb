"""The replies of many cells measured in one call, so that a model's batches are full and equal replies are read once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from emosteer.errors import Damaged
from emosteer.scoring.scorer import Context, Scorer, Scores

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CellReplies:
    """All replies of one cell, as scorers get them."""

    texts: list[str]
    context: Callable[[], Context]
    """Makes the model and the tokens, for scorers that ask."""


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
        return scorer.measure(cell.texts, cell.context)
    except Damaged:
        raise
    except Exception as error:
        return error


_Row = tuple[str, tuple[int, ...], tuple[int, ...]]
"""A reply's text, and the tokens of its prompt and of itself; without tokens where the scorer does not ask for them."""


def _pooled(scorer: Scorer, cells: Sequence[CellReplies]) -> list[Scores]:
    contexts = [cell.context() for cell in cells] if scorer.needs_model else []
    rows: list[list[_Row]] = [[(text, (), ()) for text in cell.texts] for cell in cells]
    if contexts:
        rows = [list(zip(cell.texts, own.prompts, own.replies, strict=True)) for cell, own in zip(cells, contexts, strict=True)]
    place = {row: number for number, row in enumerate(dict.fromkeys(row for own in rows for row in own))}

    def tokens() -> Context:
        prompts, replies = [prompt for _, prompt, _ in place], [reply for _, _, reply in place]
        return replace(contexts[0], prompts=prompts, replies=replies, turns=[], said=[])

    scores = scorer.measure([text for text, _, _ in place], tokens)
    return [{metric: [values[place[row]] for row in own] for metric, values in scores.items()} for own in rows]
