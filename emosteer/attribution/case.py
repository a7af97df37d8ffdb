"""A diagnostic pair as a model reads it, and the metric that attribution explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from emosteer.datasets import DiagnosticPair
from emosteer.errors import EmosteerError
from emosteer.model.language_model import LanguageModel
from emosteer.model.prefix import common_beginning

MIN_PAIRS = 8
"""Rankings over fewer prompt pairs do not repeat on other pairs."""


@dataclass(frozen=True)
class Case:
    """Token ids of a diagnostic pair's two prompts, and of the words whose probability is the metric."""

    id: str
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    expressive: tuple[int, ...]
    counterpart: tuple[int, ...]
    roles: tuple[str, ...] = ()
    """Whose each token of the clean prompt is; empty where that is not known."""

    def swapped(self) -> Case:
        """With the two prompts and the two word lists exchanged: what is clean into corrupted here is the way back there."""
        return replace(self, clean=self.corrupted, corrupted=self.clean, expressive=self.counterpart, counterpart=self.expressive)

    @property
    def is_aligned(self) -> bool:
        """Whether both prompts have the same number of tokens, so that their positions correspond."""
        return len(self.clean) == len(self.corrupted)

    @cached_property
    def n_common(self) -> int:
        """Tokens with which both prompts begin: there nothing is to be scored, as both runs are one."""
        return common_beginning((self.clean, self.corrupted))

    @property
    def first_difference(self) -> int:
        """Of aligned prompts: the position, counted from the end (-1 is the last), of the first token that differs."""
        return self.n_common - len(self.clean)

    @property
    def n_scored(self) -> int:
        """Positions at the prompts' ends whose components are scored: from the first difference on, or the last if unaligned."""
        return max(1, len(self.clean) - self.n_common) if self.is_aligned else 1


def prepare(model: LanguageModel, pairs: Sequence[DiagnosticPair]) -> list[Case]:
    """Tokenise diagnostic pairs for a model.

    Raises:
        EmosteerError: fewer than 8 pairs, a word without tokens, or one whose first token begins words of both lists.
    """
    if len(pairs) < MIN_PAIRS:
        raise EmosteerError(f"{len(pairs)} diagnostic pairs: attribution needs at least {MIN_PAIRS}")
    return [_case(model, pair) for pair in pairs]


def metric(logits: Tensor, cases: Sequence[Case]) -> Tensor:
    """Log-probability of the expressive words minus that of the counterpart's, as the next token [case].

    Args:
        logits: [case, vocabulary] at the last prompt position.
        cases: one per row. A word stands by its first token; a list's probability is the sum over its words.
    """
    logp = logits.float().log_softmax(-1)
    rows = [
        logp[row, list(case.expressive)].logsumexp(0) - logp[row, list(case.counterpart)].logsumexp(0)
        for row, case in enumerate(cases)
    ]
    return torch.stack(rows)


def _case(model: LanguageModel, pair: DiagnosticPair) -> Case:
    expressive = _first_tokens(model, pair, pair.expressive)
    counterpart = _first_tokens(model, pair, pair.counterpart)
    if shared := set(expressive) & set(counterpart):
        words = [model.dialogue.tokenizer.decode([token]) for token in shared]
        raise EmosteerError(f"diagnostic pair {pair.id}: both word lists have words that begin with the token {words}")
    clean, corrupted = (({"role": "user", "content": text},) for text in (pair.clean, pair.corrupted))
    prompts = [model.dialogue.prompt(messages, pair.reply_prefix) for messages in (clean, corrupted)]
    return Case(pair.id, prompts[0], prompts[1], expressive, counterpart, model.dialogue.roles(clean, pair.reply_prefix))


def _first_tokens(model: LanguageModel, pair: DiagnosticPair, words: Sequence[str]) -> tuple[int, ...]:
    firsts = []
    for word in words:
        tokens = model.dialogue.tokenizer(word, add_special_tokens=False).input_ids
        if not tokens:
            raise EmosteerError(f"diagnostic pair {pair.id}: the word {word!r} has no tokens")
        firsts.append(int(tokens[0]))
    return tuple(dict.fromkeys(firsts))
