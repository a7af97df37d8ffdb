"""A diagnostic pair as a model reads it, and the metric that attribution explains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from emosteer.datasets import DiagnosticPair
from emosteer.errors import EmosteerError
from emosteer.model.language_model import LanguageModel
from emosteer.model.prefix import common_beginning

WORDS, HITS, PROJECTION, NEARNESS = "words", "hits", "projection", "nearness"
"""Kinds of metrics: see `emosteer.attribution.metrics`."""
MIN_PAIRS = 8
"""Rankings over fewer prompt pairs do not repeat on other pairs."""


@dataclass(frozen=True)
class Case:
    """Token ids of a diagnostic pair's two prompts, and what the metric is read by."""

    id: str
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    expressive: tuple[int, ...]
    """Tokens of the words that the metric counts for the target emotion; first tokens where they are a pair's own."""
    counterpart: tuple[int, ...]
    """Of those that it counts against it."""
    roles: tuple[str, ...] = ()
    """Whose each token of the clean prompt is; empty where that is not known."""
    kind: str = WORDS
    """Of the metric."""
    reference: Tensor | None = field(default=None, compare=False)
    """Of a projection the unit direction [width], of nearness the clean run's log-probabilities [vocabulary]."""
    sign: int = 1
    """With which the metric counts."""

    def swapped(self) -> Case:
        """With the two prompts exchanged and the metric negated: what is clean into corrupted here is the way back there.

        Raises:
            EmosteerError: the metric is nearness to the clean run, whose gradient there is 0.
        """
        if self.kind == NEARNESS:
            raise EmosteerError(
                "attribution.metric=kl asks how near a run comes to the clean one, where its gradient is 0; choose "
                "attribution.direction=denoising, or another metric"
            )
        other = replace(self, clean=self.corrupted, corrupted=self.clean)
        if self.kind == WORDS:
            return replace(other, expressive=self.counterpart, counterpart=self.expressive)
        return replace(other, sign=-self.sign)

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


def prepare(
    model: LanguageModel, pairs: Sequence[DiagnosticPair], measure: Callable[[LanguageModel, Case], Case] | None = None
) -> list[Case]:
    """Tokenise diagnostic pairs for a model.

    Args:
        model: the language model.
        pairs: at least 8.
        measure: which metric, one of `emosteer.attribution.metrics`; None takes the words that come with each pair.

    Raises:
        EmosteerError: fewer than 8 pairs, a word without tokens, or one whose first token begins words of both lists.
    """
    if len(pairs) < MIN_PAIRS:
        raise EmosteerError(f"{len(pairs)} diagnostic pairs: attribution needs at least {MIN_PAIRS}")
    if measure is None:
        return [_with_own_words(model, pair, _case(model, pair)) for pair in pairs]
    return [measure(model, _case(model, pair)) for pair in pairs]


def metric(outcome: Tensor, cases: Sequence[Case]) -> Tensor:
    """What attribution explains, of each case [case]. Of words: log-probability of the expressive minus that of the counterpart's.

    Args:
        outcome: logits [case, vocabulary] at the last prompt position; of a projection the residual stream after the last block
            there [case, width].
        cases: one per row, with one kind of metric. A list's probability is the sum over its tokens.
    """
    kind = cases[0].kind
    rows = outcome.float() if kind == PROJECTION else outcome.float().log_softmax(-1)
    return torch.stack([case.sign * _READ[kind](row, case) for row, case in zip(rows, cases, strict=True)])


def _log_ratio(logp: Tensor, case: Case) -> Tensor:
    return logp[list(case.expressive)].logsumexp(0) - logp[list(case.counterpart)].logsumexp(0)


def _expected_hits(logp: Tensor, case: Case) -> Tensor:
    return 100 * logp[list(case.expressive)].exp().sum()


def _projected(states: Tensor, case: Case) -> Tensor:
    assert case.reference is not None
    return states @ case.reference.to(states.device)


def _nearness(logp: Tensor, case: Case) -> Tensor:
    assert case.reference is not None
    clean = case.reference.to(logp.device)
    return -(clean.exp() * (clean - logp)).sum()


_READ = {WORDS: _log_ratio, HITS: _expected_hits, PROJECTION: _projected, NEARNESS: _nearness}


def _case(model: LanguageModel, pair: DiagnosticPair) -> Case:
    clean, corrupted = (({"role": "user", "content": text},) for text in (pair.clean, pair.corrupted))
    prompts = [model.dialogue.prompt(messages, pair.reply_prefix) for messages in (clean, corrupted)]
    return Case(pair.id, prompts[0], prompts[1], (), (), model.dialogue.roles(clean, pair.reply_prefix))


def _with_own_words(model: LanguageModel, pair: DiagnosticPair, case: Case) -> Case:
    expressive = _first_tokens(model, pair, pair.expressive)
    counterpart = _first_tokens(model, pair, pair.counterpart)
    if shared := set(expressive) & set(counterpart):
        words = [model.dialogue.tokenizer.decode([token]) for token in shared]
        raise EmosteerError(f"diagnostic pair {pair.id}: both word lists have words that begin with the token {words}")
    return replace(case, expressive=expressive, counterpart=counterpart)


def _first_tokens(model: LanguageModel, pair: DiagnosticPair, words: Sequence[str]) -> tuple[int, ...]:
    firsts = []
    for word in words:
        tokens = model.dialogue.tokenizer(word, add_special_tokens=False).input_ids
        if not tokens:
            raise EmosteerError(f"diagnostic pair {pair.id}: the word {word!r} has no tokens")
        firsts.append(int(tokens[0]))
    return tuple(dict.fromkeys(firsts))
