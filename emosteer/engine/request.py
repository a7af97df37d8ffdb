"""What the engine is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emosteer.config import GenerationConfig
from emosteer.datasets import Prompt
from emosteer.errors import EmosteerError
from emosteer.model.context_length import too_long
from emosteer.model.language_model import LanguageModel
from emosteer.steering import Steering


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen."""

    max_new_tokens: int = 60
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True)
class RowSeed:
    """What a row's randomness hangs on; the batch is no part of it, so rows of different cells share their draws."""

    seed: int
    prompt_id: str
    sample: int
    turn: int = 0
    """Of a dialogue's replies."""


@dataclass(frozen=True)
class Origin:
    """What a reply comes from."""

    prompt: tuple[int, ...]
    """Token ids, at least one; of an instruction too, where there was one."""
    steering: Steering | None = None


@dataclass(frozen=True)
class Request:
    """One reply to generate."""

    prompt: tuple[int, ...]
    """Token ids, at least one."""
    row_seed: RowSeed
    steering: Steering | None = None
    decoding: Decoding = Decoding()


@dataclass(frozen=True)
class Reply:
    """Generated token ids, without the stop token that ended them."""

    tokens: tuple[int, ...]
    finished: bool
    """Whether the model ended the reply itself, before `max_new_tokens`."""


def requests_for(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    generation: GenerationConfig,
    seed: int,
    steering: Steering | None = None,
    where: str = "prompts",
    instruction: str = "",
) -> list[Request]:
    """What a cell asks: a request per prompt and sample, in the order of the prompts, then samples; under an instruction, if any.

    Raises:
        EmosteerError: a prompt that does not fit into the model's context together with its reply; `where` says whose it is.
    """
    g = generation
    decoding = Decoding(g.max_new_tokens, g.min_new_tokens, g.do_sample, g.temperature, g.top_p)
    tokens = {prompt.id: _fitting(model, where, prompt, g.max_new_tokens, instruction) for prompt in prompts}
    rows = [(prompt.id, sample) for prompt in prompts for sample in range(g.n_samples)]
    return [Request(tokens[prompt], RowSeed(seed, prompt, sample), steering, decoding) for prompt, sample in rows]


def _fitting(model: LanguageModel, where: str, prompt: Prompt, max_new_tokens: int, instruction: str) -> tuple[int, ...]:
    """A prompt's tokens."""
    messages = model.dialogue.instructed(prompt.messages, instruction) if instruction else prompt.messages
    tokens = model.dialogue.prompt(messages)
    if model.context is not None and len(tokens) + max_new_tokens > model.context:
        raise EmosteerError(too_long(where, prompt.id, len(tokens), max_new_tokens, model.name, model.context))
    return tokens
