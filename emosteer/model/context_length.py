"""Whether prompts fit into a model's context, told before the model is loaded.

What is counted here never exceeds what the model will read, so that no prompt is refused wrongly; the worker, which has the chat
template, counts exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from emosteer.datasets import Prompt
from emosteer.errors import EmosteerError
from emosteer.model.source import ModelSource, converted_dir, hub_file


def check_prompts_fit(source: ModelSource, model_name: str, prompts: Sequence[Prompt], max_new_tokens: int, where: str) -> None:
    """Raise EmosteerError for the first prompt that cannot fit, together with its reply.

    Args:
        source: the model that was found.
        model_name: for the error.
        prompts: what will be replied to.
        max_new_tokens: length of the longest reply.
        where: the prompts' file, for the error.
    """
    if source.context is None:
        return
    # A token has at least one byte of text, so that most prompts are done with here.
    suspects = [prompt for prompt in prompts if _bytes(prompt) + max_new_tokens > source.context]
    if not suspects:
        return
    count = _counter(source)
    for prompt in suspects:
        n_tokens = sum(count(message["content"]) for message in prompt.messages)
        if n_tokens + max_new_tokens > source.context:
            raise EmosteerError(too_long(where, prompt.id, n_tokens, max_new_tokens, model_name, source.context))


def too_long(where: str, prompt_id: str, n_tokens: int, max_new_tokens: int, model_name: str, context: int) -> str:
    """What a user reads of a prompt that does not fit."""
    return (
        f"{where}: prompt {prompt_id!r} has {n_tokens:,} tokens and its reply up to {max_new_tokens:,}, "
        f"but the context of {model_name} is {context:,}: shorten it, or lower generation.max_new_tokens"
    )


def _bytes(prompt: Prompt) -> int:
    return sum(len(message["content"].encode()) for message in prompt.messages)


def _counter(source: ModelSource) -> Callable[[str], int]:
    """Counts a text's tokens; its words, of which none is less than a token, where there is no tokenizer file yet."""
    file = _tokenizer_file(source)
    if file is None:
        return lambda text: len(text.split())
    # Not by transformers, whose import takes seconds.
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _tokenizer_file(source: ModelSource) -> Path | None:
    directory = converted_dir(source) if source.gguf_file else Path(source.location)
    if directory.is_dir():
        return path if (path := directory / "tokenizer.json").exists() else None
    if source.gguf_file or not source.revision:
        return None
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return hub_file(source.location, "tokenizer.json", source.revision)
    except (HfHubHTTPError, OSError, ValueError):
        # Not every repository has one; the worker counts in any case.
        return None
