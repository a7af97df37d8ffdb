"""The report's replies, with their emotion words and first-person words marked.

Texts are kept once: a group of replies for each cell, control and baseline, and every prompt by its number. A mark is three numbers,
where a word begins (counted from the end of the mark before), how long it is, in characters, and which of `kinds` it is.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any

from emosteer.report.grid import plain
from emosteer.report.words import visible
from emosteer.scoring.nrc import categories_of
from emosteer.scoring.pronouns import is_first_person
from emosteer.scoring.text import place_words
from emosteer.tables import Tables

MOST_REPLIES = 100_000
FIRST_PERSON = "first person"
ALWAYS = ("first_person", "sentiment", "perplexity")
"""Metrics of each reply that are shown besides the pairs' primary ones."""


def replies(tables: Tables, lemmatise: bool = True, most: int = MOST_REPLIES) -> dict[str, Any]:
    """Plain data: `prompts` ([id, text]), `metrics`, `kinds` (lists of the lexicon's categories, and first person), `groups` and
    `cut`, what is left out. A group has, by a cell's id, `prompts`, `samples`, `turns`, `said` (what a later turn answers), `texts`,
    `marks` and `values` (a list per metric), all in one order.

    Args:
        tables: the sweep's.
        lemmatise: whether emotion words are found by their lemmas too, as the sweep's scorer does.
        most: so many replies are kept: whole groups, those of the cells with the largest effects first, with their baselines.
    """
    every = tables.replies
    if every.empty:
        return {"prompts": [], "metrics": [], "kinds": [], "groups": {}, "cut": ""}
    kept = _kept(tables, most)
    own = every[every["cell_id"].isin(kept)]
    primaries = tables.cells["primary"].dropna().unique()
    metrics = [metric for metric in dict.fromkeys([*sorted(primaries), *ALWAYS]) if metric in own]
    marker = Marker(lemmatise)
    prompts: dict[tuple[str, str], int] = {}
    groups = {}
    for cell_id, rows in own.groupby("cell_id", sort=False):
        begins = dict(zip(rows["prompt_id"][rows["turn"] == 0], rows["prompt"][rows["turn"] == 0], strict=True))
        keys = [(prompt_id, begins.get(prompt_id, "")) for prompt_id in rows["prompt_id"]]
        texts = [unicodedata.normalize("NFC", visible(text)) for text in rows["reply"]]
        groups[str(cell_id)] = {
            "prompts": [prompts.setdefault(key, len(prompts)) for key in keys],
            "samples": rows["sample"].tolist(),
            "turns": rows["turn"].tolist(),
            "said": [visible(text) if turn else None for turn, text in zip(rows["turn"], rows["prompt"], strict=True)],
            "texts": texts,
            "marks": [marker.marks(text) for text in texts],
            "values": [plain(rows[metric]) for metric in metrics],
        }
    left_out = len(every) - len(own)
    cut = f"{left_out:,} of {len(every):,} replies are left out here; replies.parquet has all." if left_out else ""
    return {
        "prompts": [[str(key), visible(text)] for key, text in prompts],
        "metrics": metrics,
        "kinds": marker.kinds,
        "groups": groups,
        "cut": cut,
    }


def _kept(tables: Tables, most: int) -> set[str]:
    """The ids of the groups that are kept: cells by the size of their primary effect, then controls; with their baselines."""
    sizes = tables.replies.groupby("cell_id", sort=False).size().to_dict()
    results = tables.results
    effects = [abs(row.get(f"{row['primary']}_delta") or 0.0) if row["primary"] else 0.0 for row in results.to_dict("records")]
    order = results.assign(_effect=effects).sort_values(["is_control", "_effect", "cell_id"], ascending=[True, False, True])
    kept: set[str] = set()
    for cell_id, baseline_id in zip(order["cell_id"], order["baseline_id"], strict=True):
        new = {cell_id, baseline_id} - kept
        if cell_id not in sizes:
            continue
        if most < sum(sizes.get(one, 0) for one in new):
            break
        most -= sum(sizes.get(one, 0) for one in new)
        kept |= new
    return kept


class Marker:
    """Finds the words of replies that scorers count."""

    def __init__(self, lemmatise: bool = True) -> None:
        self.kinds: list[list[str]] = []
        """What a word may be: NRC categories, first person."""
        self._numbers: dict[tuple[str, ...], int] = {}
        self._kind = lru_cache(maxsize=1 << 16)(lambda word, is_shouted: self._find(word, is_shouted, lemmatise))

    def marks(self, text: str) -> list[int]:
        """Three numbers for each word of a text, in composed form, that counts: how far it begins from the end of the one before, its
        length, its place in `kinds`.
        """
        found, end = [], 0
        is_shouted = text.isupper()
        for begins, ends, word in place_words(text):
            kind = self._kind(word, is_shouted)
            if kind >= 0:
                found += [begins - end, ends - begins, kind]
                end = ends
        return found

    def _find(self, word: str, is_shouted: bool, lemmatise: bool) -> int:
        kind = (*categories_of(word, lemmatise), *([FIRST_PERSON] if is_first_person(word, is_shouted) else []))
        if not kind:
            return -1
        if kind not in self._numbers:
            self._numbers[kind] = len(self.kinds)
            self.kinds.append(list(kind))
        return self._numbers[kind]
