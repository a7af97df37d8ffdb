"""A prompt that cannot fit into a model's context is told before the model is loaded; one that fits never is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tiny_models import tokenizer_of

from emosteer.datasets import Prompt
from emosteer.errors import EmosteerError
from emosteer.model.context_length import check_prompts_fit
from emosteer.model.source import ModelSource

CONTEXT, NEW = 64, 10


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    """A model's directory with a tokenizer."""
    tokenizer_of().save_pretrained(tmp_path)
    return ModelSource(str(tmp_path), None, None, "sha256:abc", 4, CONTEXT)


def prompt(text: str) -> Prompt:
    return Prompt("long", text, "", ({"role": "user", "content": text},))


def n_tokens(text: str) -> int:
    return len(tokenizer_of()(text, add_special_tokens=False).input_ids)


def check(source: ModelSource, text: str) -> None:
    check_prompts_fit(source, "tiny", [prompt("short"), prompt(text)], NEW, "mine.jsonl")


def text_of(n: int) -> str:
    """A text of exactly n tokens, which has more bytes."""
    words = ["assistant"] * n
    while n_tokens(" ".join(words)) > n:
        words.pop()
    text = " ".join(words)
    while n_tokens(text) < n:
        text += "!"
    assert n_tokens(text) == n
    return text


def test_tokens_count_and_not_bytes(source: ModelSource) -> None:
    fits, does_not = text_of(CONTEXT - NEW), text_of(CONTEXT - NEW + 1)
    assert len(fits) > CONTEXT

    check(source, fits)
    with pytest.raises(EmosteerError) as refused:
        check(source, does_not)

    assert str(refused.value) == (
        "mine.jsonl: prompt 'long' has 55 tokens and its reply up to 10, but the context of tiny is 64: "
        "shorten it, or lower generation.max_new_tokens"
    )


def test_without_a_tokenizer_words_are_the_least_there_can_be(source: ModelSource, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").unlink()

    check(source, "characters-of-one-word" * 20)
    with pytest.raises(EmosteerError, match="prompt 'long' has 55 tokens"):
        check(source, "a " * 55)


def test_a_model_that_says_no_context_has_no_limit(source: ModelSource) -> None:
    check(dataclasses.replace(source, context=None), "a " * 10_000)


def test_all_turns_of_a_dialogue_count(source: ModelSource) -> None:
    turns = tuple({"role": role, "content": "a b c d e f g h i j " * 3} for role in ("user", "assistant", "user"))

    with pytest.raises(EmosteerError, match="shorten it"):
        check_prompts_fit(source, "tiny", [Prompt("talk", "a", "", turns)], NEW, "mine.jsonl")
