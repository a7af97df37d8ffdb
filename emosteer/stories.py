"""The model's own stories as what tells two emotions apart: what it is asked to write, and which of it counts.

Nobody needs to have written contrastive pairs: the model writes them. What it writes need not be what it was asked for, so that each
story is looked at, and all of them are kept with what was wrong with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emosteer.config import GenerationConfig
from emosteer.datasets import ContrastivePair, digest
from emosteer.engine import Engine, requests_for
from emosteer.errors import EmosteerError
from emosteer.model.batches import Progress, silent
from emosteer.model.language_model import LanguageModel
from emosteer.scoring.fluency import repetition
from emosteer.scoring.nrc import CATEGORIES, emotion_words
from emosteer.scoring.text import split_words
from emosteer.sources import STORY, story_prompts

DECODING = GenerationConfig(max_new_tokens=80, do_sample=True, temperature=0.8, n_samples=2)
LEAST_WORDS = 25
MOST_REPETITION = 0.2
"""Share of a story's three-word runs that occurred in it before."""
LEAST_PAIRS = 8

SHORT, REPETITIVE, ANOTHER, TWICE = "too short", "repetitive", "without the emotion's words", "written twice"


@dataclass(frozen=True)
class Story:
    """One story as the model wrote it."""

    prompt_id: str
    sample: int
    text: str
    dropped: str = ""
    """Why it does not count; empty where it does."""


@dataclass(frozen=True)
class Stories:
    """All that a model wrote for two emotions, in the order of the prompts, then samples."""

    target: str
    counterpart: str
    seed: int
    stories: tuple[Story, ...]

    def pairs(self) -> list[ContrastivePair]:
        """The scenes of which both stories count, once for each sample."""
        n = DECODING.n_samples
        found = []
        for start in range(0, len(self.stories), 2 * n):
            sides = (self.stories[start : start + n], self.stories[start + n : start + 2 * n])
            for positive, negative in zip(*sides, strict=True):
                if not positive.dropped and not negative.dropped:
                    name = positive.prompt_id.removesuffix(f"-{self.target}")
                    found.append(ContrastivePair(f"{name}-{positive.sample}", positive.text, negative.text))
        return found

    def facts(self) -> dict[str, Any]:
        """How many there are: written, dropped by reason, without the other emotion's story beside them, and pairs that are left."""
        pairs = self.pairs()
        reasons = Counter(story.dropped for story in self.stories)
        n_good = reasons.pop("", 0)
        return {
            "target": self.target,
            "counterpart": self.counterpart,
            "seed": self.seed,
            "n_written": len(self.stories),
            "dropped": {reason: reasons[reason] for reason in (SHORT, REPETITIVE, ANOTHER, TWICE)},
            "n_alone": n_good - 2 * len(pairs),
            "n_pairs": len(pairs),
            "texts": digest(pairs),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads back."""
        return {
            **self.facts(),
            "instruction": STORY,
            "decoding": asdict(DECODING),
            "stories": [asdict(s) for s in self.stories],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Stories:
        """The inverse of `to_json`.

        Raises:
            ValueError, KeyError, TypeError: the data is of no stories, or of others than its digest says.
        """
        found = cls(data["target"], data["counterpart"], data["seed"], tuple(Story(**story) for story in data["stories"]))
        if digest(found.pairs()) != data["texts"]:
            raise ValueError("its stories are others than those that were written")
        return found


def judged(texts: Sequence[str], emotion: str, other: str) -> list[str]:
    """Why each of an emotion's stories does not count: too short, repetitive, without its words, or the same as one before.

    Args:
        texts: the stories.
        emotion: that they shall express.
        other: that they shall not: a story needs more words of its emotion than of this one. Words are those of the NRC lexicon, or,
            where it lacks one of the two, those that begin with the emotion's name.
    """
    repeated, seen, reasons = repetition(texts)["repetition"], set[str](), []
    for text, share in zip(texts, repeated, strict=True):
        reason = ""
        if len(split_words(text)) < LEAST_WORDS:
            reason = SHORT
        elif share > MOST_REPETITION:
            reason = REPETITIVE
        elif _count(text, emotion, other) <= _count(text, other, emotion):
            reason = ANOTHER
        elif text in seen:
            reason = TWICE
        seen.add(text)
        reasons.append(reason)
    return reasons


def _count(text: str, emotion: str, other: str) -> int:
    if emotion in CATEGORIES and other in CATEGORIES:
        return sum(emotion in categories for _, categories in emotion_words(text))
    return sum(word.casefold().startswith(emotion.casefold()) for word in split_words(text))


def write_stories(
    engine: Engine | LanguageModel, target: str, counterpart: str, seed: int = 0, on_progress: Progress = silent
) -> Stories:
    """Let a model write stories of two emotions, and look at each; the same for the same seed.

    Args:
        engine: that of the model, or the model.
        target: a noun, such as joy.
        counterpart: another.
        seed: of the sampled tokens.
        on_progress: told the stories that are written.

    Raises:
        EmosteerError: a prompt that does not fit the model, or fewer than `LEAST_PAIRS` pairs of stories that count.
    """
    engine = engine if isinstance(engine, Engine) else Engine(engine)
    model, prompts = engine.model, story_prompts(target, counterpart)
    requests = requests_for(model, prompts, DECODING, seed, where="stories")
    texts = [""] * len(requests)
    for done, (index, reply) in enumerate(engine.generate(requests), 1):
        texts[index] = model.dialogue.reply(reply.tokens)
        on_progress(done, len(requests))
    asked = [prompt.category for prompt in prompts for _ in range(DECODING.n_samples)]
    reasons: dict[int, str] = {}
    for emotion, other in ((target, counterpart), (counterpart, target)):
        own = [i for i, name in enumerate(asked) if name == emotion]
        reasons |= dict(zip(own, judged([texts[i] for i in own], emotion, other), strict=True))
    rows = [request.row_seed for request in requests]
    stories = tuple(Story(row.prompt_id, row.sample, texts[i], reasons[i]) for i, row in enumerate(rows))
    return enough(Stories(target, counterpart, seed, stories), model.name)


def enough(stories: Stories, model_name: str) -> Stories:
    """The stories themselves; raises EmosteerError where too few of them count."""
    facts = stories.facts()
    if facts["n_pairs"] < LEAST_PAIRS:
        counts = ", ".join(f"{number} {reason}" for reason, number in facts["dropped"].items())
        raise EmosteerError(
            f"vector.source=stories: of {facts['n_written']} stories of {stories.target} and {stories.counterpart} by {model_name} "
            f"{facts['n_pairs']} pairs are left, and {LEAST_PAIRS} are needed ({counts}, {facts['n_alone']} alone); "
            "choose another source, or another seed"
        )
    return stories
