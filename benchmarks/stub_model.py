"""A model whose call costs nothing, for measuring what a sweep costs besides: a tiny random model that never runs.

Everything else of a worker is the real thing: dialogue and tokenizer, claims, records with their flushes, scorers.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emosteer.records.cell import Cell
from emosteer.scoring.scorer import Context, Scores

if TYPE_CHECKING:
    from torch import Tensor

    from emosteer.bench import Bench
    from emosteer.datasets import ContrastivePair
    from emosteer.engine import Reply, Request
    from emosteer.model.language_model import LanguageModel

sys.path.append(str(Path(__file__).parent.parent / "tests"))

BLOCKS = 4
PAIRS = ("joy_sadness", "trust_disgust", "anger_fear", "anticipation_surprise", "love_hate")
PROMPTS = 8
TEXTS = (
    "I am so happy that you came, and we will dance all night with our friends in the garden!",
    "The rain took the garden, nobody called, and I was sad and afraid of what the evening would bring.",
    "A train leaves the station at nine and arrives before noon, which is early enough for the meeting.",
    "You can trust my brother: he keeps his promises, he likes his work, and he is never late.",
    "We expected a surprise, but the letter was dull, and my mother threw it away without a word.",
)
"""The replies, of 17 to 20 words each."""
SETTINGS = (
    "model=custom",
    "model.device=cpu",
    "attribution=none",
    "tracking=none",
    f"prompts.limit={PROMPTS}",
    "generation.max_new_tokens=40",
    "name=sweep",
    "vector.method=stub_model.direction",
    "scorers.perplexity._target_=stub_model.perplexity",
)
"""Of a command over the tiny model; `model.path` besides. What would ask the model is answered here."""


class StubEngine:
    """Answers every request at once, with one of `TEXTS`."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._replies = itertools.cycle([tuple(model.dialogue.tokenizer.encode(text, add_special_tokens=False)) for text in TEXTS])

    def generate(self, requests: Sequence[Request], on_tokens: Callable[[int], None]) -> Iterator[tuple[int, Reply]]:
        """As the engine's own."""
        from emosteer.engine import Reply

        for index in range(len(requests)):
            tokens = next(self._replies)
            on_tokens(len(tokens))
            yield index, Reply(tokens, finished=True)


def perplexity(replies: Sequence[str], *, context: Context) -> Scores:
    """Numbers that differ between replies, for the statistics."""
    return {"perplexity": [10.0 + sum(tokens) % 97 / 10 for tokens in context.replies]}


def direction(model: LanguageModel, pairs: Sequence[ContrastivePair], site: str) -> Tensor:
    """A vector method [block, width] that reads the pairs and asks no model."""
    import torch

    return torch.randn(model.n_blocks, model.width, generator=torch.Generator().manual_seed(len("".join(p.positive for p in pairs))))


def save(directory: Path) -> Path:
    """Put the tiny model into a directory, as a user's own model."""
    from tiny_models import bare_model, tokenizer_of

    bare_model("llama", seed=0).save_pretrained(directory)
    tokenizer_of().save_pretrained(directory)
    return directory


def bench_of(cell: Cell) -> Bench:
    """A bench with a cell's model and the stub in the engine's place: a worker takes it for a model that is loaded already."""
    from emosteer.bench import Bench, Loaded
    from emosteer.model.language_model import load

    model = load(cell.model.config)
    return Bench(Loaded(cell.model.key, model, StubEngine(model)))  # type: ignore[arg-type]


def grid(n: int) -> list[list[str]]:
    """The overrides of n cells, over all axes that a sweep usually has."""
    coefficients = [f"{0.001 * step:g}" for step in range(1, 2 + n // (len(PAIRS) * BLOCKS))]
    points = itertools.product(coefficients, PAIRS, range(BLOCKS))
    return [[f"pair={pair}", f"layer={layer}", f"coefficient={c}"] for c, pair, layer in itertools.islice(points, n)]
