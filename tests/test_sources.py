"""Texts that stand in for contrastive pairs."""

from __future__ import annotations

import itertools
import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from emosteer.errors import EmosteerError
from emosteer.scoring.nrc import CATEGORIES, words_of
from emosteer.sources import INSTRUCTIONS, MOST_WORDS, QUESTIONS, lexicon_pairs, persona_prompts


@pytest.fixture(scope="module")
def lexicon() -> dict[str, list[str]]:
    spec = find_spec("nrclex")
    assert spec is not None and spec.submodule_search_locations  # noqa: PT018
    tags: dict[str, list[str]] = json.loads((Path(spec.submodule_search_locations[0]) / "data" / "nrc_en.json").read_text())
    return tags


def test_words_of_a_category_are_the_lexicons(lexicon: dict[str, list[str]]) -> None:
    for category in CATEGORIES:
        assert words_of(category) == sorted(word for word, tags in lexicon.items() if category in tags)


@pytest.mark.parametrize(("target", "counterpart"), list(itertools.permutations(CATEGORIES[:8], 2)))
def test_words_are_of_one_emotion_alone_and_in_no_favoured_order(
    lexicon: dict[str, list[str]], target: str, counterpart: str
) -> None:
    pairs = lexicon_pairs(target, counterpart)
    alone = [sum(a in tags and b not in tags for tags in lexicon.values()) for a, b in ((target, counterpart), (counterpart, target))]
    assert len(pairs) == min(MOST_WORDS, *alone)
    for pair in pairs:
        assert target in lexicon[pair.positive]
        assert counterpart not in lexicon[pair.positive]
        assert counterpart in lexicon[pair.negative]
        assert target not in lexicon[pair.negative]
    assert [pair.positive for pair in lexicon_pairs(counterpart, target)] == [pair.negative for pair in pairs]
    initials = {pair.positive[0] for pair in pairs}
    assert len(initials) > 10, "not the beginning of the alphabet"


def test_two_personas_differ_in_the_emotions_name_alone() -> None:
    prompts = persona_prompts("joy", "sadness")
    assert len(prompts) == 2 * len(INSTRUCTIONS) * len(QUESTIONS)
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    for joyful, sad in zip(prompts[::2], prompts[1::2], strict=True):
        (system, asked), (other, same) = joyful.messages, sad.messages
        assert asked == same
        assert asked["role"] == "user"
        assert system["role"] == "system"
        assert "joy" in system["content"]
        assert system["content"].replace("joy", "sadness") == other["content"]
    words = {word.strip("?.,").lower() for text in (*QUESTIONS, *INSTRUCTIONS) for word in text.split()}
    emotions = {"joy", "sadness", "trust", "disgust", "anger", "fear", "surprise"}
    assert not {word for word in words for emotion in emotions if word in words_of(emotion)}, "of themselves they have no emotion"


def test_an_emotion_that_the_lexicon_has_not_is_refused() -> None:
    with pytest.raises(EmosteerError, match=r"pair.counterpart=hate: .* the NRC lexicon has joy, sadness, trust"):
        lexicon_pairs("joy", "hate")
    with pytest.raises(EmosteerError, match=r"no word is of joy or joy alone"):
        lexicon_pairs("joy", "joy")
