"""What the project promises of the texts that it ships; emosteer/data/DATASHEET.md says the same in words and figures."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import simplemma
from scipy.stats import wilcoxon
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from emosteer.datasets import (
    SHIPPED,
    ContrastivePair,
    DiagnosticPair,
    Prompt,
    load_contrastive_pairs,
    load_diagnostic_pairs,
    load_neutral_texts,
    load_prompts,
)
from emosteer.scoring.negotiation import amounts

if TYPE_CHECKING:
    from emosteer.model.language_model import LanguageModel

PAIRS = ("joy_sadness", "trust_disgust", "anger_fear", "anticipation_surprise", "love_hate")
PROMPTS = {"conversation": 80, "confirmation": 48, "replication": 48}
DIALOGUES = {"dialogues": 24, "negotiation": 16}
"""Sets of prompts that go on after the first reply."""
NRC_EMOTIONS = {"love": "joy", "hate": "anger"}
"""Where the lexicon has no category of an emotion's name."""
FIRST_PERSON = re.compile(r"(i|we)('(m|re|ve|d|ll))?|me|mine|my|myself|us|ours?|ourselves")
EMOTION_WORD = re.compile(
    r"""
    (admir|ador|affection|afraid|alarm|amaz|amus|anger|angr|annoy|anticipat|anxi|asham|astonish|astound|bitter|bliss|cheer
    |cherish|cried|cries|crying|delight|depress|desir|despair|despis|detest|devot|disappoint|disgust|dislik|distress|distrust
    |dread|eager|ecsta|elat|embarrass|emotion|enjoy|enrag|envi|envy|excite|exciti|fear|feel|felt|fond|fright|frustrat|fume
    |furi|fury|glad|gloom|grateful|grief|griev|grumpy|guilt|happi|happy|hate|hating|hatred|heartbr|hope|hoping|horr|hostil
    |impatien|infuriat|irritat|jealous|joy|laugh|livid|loath|lonel|love|loving|melanchol|merry|miser|mood|mourn|nause|nervous
    |outrag|panic|passion|pleased|pleasur|proud|reassur|regret|repuls|resent|revolt|sadde|sadly|sadness|scare|scari|scary
    |shame|shock|sick|smil|sobb|sorrow|startl|stun|sulk|surpris|tearful|terrif|terror|thrill|trust|unhapp|upset|weep|wept
    |wonderf|worr|yearn)[a-z']*
    |mad|sad|sob|lone|rage|vile
    """,
    re.VERBOSE,
)
"""Words that name or show an emotion: all that begin so, and some that must stand whole (mad, not made)."""


def words(text: str) -> list[str]:
    """Lower-cased words of letters; an apostrophe inside a word belongs to it."""
    return re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower().replace("’", "'"))


def overlap(one: Iterable[str], other: Iterable[str]) -> float:
    """Words in common, as a share of the smaller set."""
    a, b = set(one), set(other)
    return len(a & b) / min(len(a), len(b))


def runs(text: str, length: int) -> set[tuple[str, ...]]:
    """Every run of so many words of a text."""
    spoken = words(text)
    return {tuple(spoken[i : i + length]) for i in range(len(spoken) - length + 1)}


@cache
def contrastive(name: str) -> list[ContrastivePair]:
    return load_contrastive_pairs(SHIPPED / "pairs" / f"{name}.jsonl")


@cache
def diagnostic(name: str) -> list[DiagnosticPair]:
    return load_diagnostic_pairs(SHIPPED / "diagnostics" / f"{name}.jsonl")


@cache
def prompts(name: str) -> list[Prompt]:
    return load_prompts(SHIPPED / "prompts" / f"{name}.jsonl")


def all_prompts() -> list[Prompt]:
    return [prompt for name in (*PROMPTS, *DIALOGUES) for prompt in prompts(name)]


def contrastive_texts() -> dict[str, str]:
    """Both sides of every contrastive pair, by a name for messages."""
    pairs = [pair for name in PAIRS for pair in contrastive(name)]
    return {f"{p.id} {side}": getattr(p, side) for p in pairs for side in ("positive", "negative")}


def diagnostic_texts() -> dict[str, str]:
    pairs = [pair for name in PAIRS for pair in diagnostic(name)]
    return {f"{p.id} {side}": getattr(p, side) for p in pairs for side in ("clean", "corrupted")}


@cache
def lexicon() -> dict[str, list[str]]:
    spec = find_spec("nrclex")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    file = Path(spec.submodule_search_locations[0], "data", "nrc_en.json")
    entries: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8"))
    return entries


def tags(word: str) -> list[str]:
    """NRC categories of a word or else of its lemma; none outside the lexicon."""
    return lexicon().get(word) or lexicon().get(simplemma.lemmatize(word, "en")) or []


def in_lexicon(word: str) -> bool:
    return word in lexicon() or simplemma.lemmatize(word, "en") in lexicon()


def rate(texts: Iterable[str], counts: Callable[[str], bool]) -> float:
    """Words that count, per 100 words of all texts together."""
    return 100 * float(np.mean([counts(word) for text in texts for word in words(text)]))


def nrc_rate(texts: Iterable[str], category: str) -> float:
    return rate(texts, lambda word: category in tags(word))


def sides(name: str) -> tuple[list[str], list[str]]:
    return [p.positive for p in contrastive(name)], [p.negative for p in contrastive(name)]


def told_apart(pairs: Sequence[ContrastivePair], keep: Callable[[str], bool]) -> float:
    """Accuracy with which the kept words of a text tell its side, for pairs that the classifier has not seen."""
    texts = [text for pair in pairs for text in (pair.positive, pair.negative)]
    kept = [" ".join(word for word in words(text) if keep(word)) for text in texts]
    bags = CountVectorizer(token_pattern=r"\S+", binary=True).fit_transform(kept)
    side = np.tile([1, 0], len(pairs))
    pair_of = np.repeat(np.arange(len(pairs)), 2)
    model = LogisticRegression(max_iter=1000)
    predicted = cross_val_predict(model, bags, side, groups=pair_of, cv=GroupKFold(len(pairs) // 3))
    return float(np.mean(predicted == side))


def test_no_shipped_set_is_left_out() -> None:
    assert {path.stem for path in (SHIPPED / "pairs").iterdir()} == set(PAIRS)
    assert {path.stem for path in (SHIPPED / "diagnostics").iterdir()} == set(PAIRS)
    assert {path.stem for path in (SHIPPED / "prompts").iterdir()} == {*PROMPTS, *DIALOGUES}
    assert [path.stem for path in (SHIPPED / "neutral").iterdir()] == ["neutral"]


def test_an_id_names_one_thing_in_all_files() -> None:
    pairs = [pair.id for name in PAIRS for pair in (*contrastive(name), *diagnostic(name))]
    counts = Counter([*pairs, *(prompt.id for prompt in all_prompts()), *(text.id for text in load_neutral_texts())])
    assert [one for one, count in counts.items() if count > 1] == []


# Contrastive pairs


@pytest.mark.parametrize("name", PAIRS)
def test_there_are_sixty_pairs_with_ids_of_their_own(name: str) -> None:
    assert len({pair.id for pair in contrastive(name)}) == len(contrastive(name)) >= 60


def test_overlap_by_hand() -> None:
    # the, dog in common; four words against three, each counted once
    assert overlap(words("The dog, the old DOG barks."), words("the dog sleeps")) == pytest.approx(2 / 3)
    assert overlap(words("Isn’t it"), words("isn't that so")) == pytest.approx(1 / 2)


@pytest.mark.parametrize("name", PAIRS)
def test_no_two_pairs_share_more_than_half_their_words(name: str) -> None:
    said = {pair.id: set(words(f"{pair.positive} {pair.negative}")) for pair in contrastive(name)}
    shares = {(a, b): overlap(said[a], said[b]) for a, b in itertools.combinations(said, 2)}
    assert {ids: share for ids, share in shares.items() if share > 0.5} == {}


@pytest.mark.parametrize("name", PAIRS)
def test_the_sides_do_not_differ_in_length_as_a_group(name: str) -> None:
    longer = np.array([len(words(pair.positive)) - len(words(pair.negative)) for pair in contrastive(name)])
    # Sides of equal length throughout leave the test nothing to rank.
    assert not longer.any() or wilcoxon(longer).pvalue > 0.05


@pytest.mark.parametrize("name", PAIRS)
def test_the_sides_say_i_and_we_alike(name: str) -> None:
    # The first-person rate is one of the outcomes: a vector must not carry it by its texts.
    positive, negative = (rate(texts, lambda word: bool(FIRST_PERSON.fullmatch(word))) for texts in sides(name))
    assert positive == pytest.approx(negative, abs=0.5)


@pytest.mark.parametrize("name", PAIRS)
def test_words_outside_the_lexicon_hardly_tell_the_sides_apart(name: str) -> None:
    assert told_apart(contrastive(name), lambda word: not in_lexicon(word)) <= 0.65


@pytest.mark.parametrize("name", PAIRS)
def test_words_inside_the_lexicon_tell_the_sides_apart(name: str) -> None:
    assert told_apart(contrastive(name), in_lexicon) >= 0.85


@pytest.mark.parametrize("name", PAIRS)
def test_each_side_is_richer_in_its_own_emotion(name: str) -> None:
    positive, negative = sides(name)
    target, counterpart = (NRC_EMOTIONS.get(emotion, emotion) for emotion in name.split("_"))
    assert nrc_rate(positive, target) > 3 * nrc_rate(negative, target)
    assert nrc_rate(negative, counterpart) > 3 * nrc_rate(positive, counterpart)


# Diagnostic pairs


@pytest.mark.parametrize("name", PAIRS)
def test_there_are_twenty_four_diagnostic_pairs_with_ids_of_their_own(name: str) -> None:
    assert len({pair.id for pair in diagnostic(name)}) == len(diagnostic(name)) >= 24


@pytest.mark.parametrize("name", PAIRS)
def test_a_continuation_stands_once_and_begins_with_a_space(name: str) -> None:
    for pair in diagnostic(name):
        listed = (*pair.expressive, *pair.counterpart)
        assert [word for word, count in Counter(listed).items() if count > 1] == [], pair.id
        assert all(re.fullmatch(r" [a-z]+", word) for word in listed), pair.id
        assert pair.reply_prefix == pair.reply_prefix.rstrip() != "", pair.id


@pytest.mark.real_model
@pytest.mark.parametrize("name", PAIRS)
def test_diagnostic_pairs_are_aligned_in_smollm2(name: str, smollm2: LanguageModel) -> None:
    def length(text: str, reply_prefix: str) -> int:
        return len(smollm2.dialogue.prompt([{"role": "user", "content": text}], reply_prefix))

    aligned = [p.id for p in diagnostic(name) if length(p.clean, p.reply_prefix) == length(p.corrupted, p.reply_prefix)]
    assert len(aligned) >= 20


@pytest.mark.real_model
@pytest.mark.parametrize("name", PAIRS)
def test_a_continuation_is_one_token_of_smollm2(name: str, smollm2: LanguageModel) -> None:
    tokenizer = smollm2.dialogue.tokenizer
    listed = {word for pair in diagnostic(name) for word in (*pair.expressive, *pair.counterpart)}
    assert [word for word in sorted(listed) if len(tokenizer(word, add_special_tokens=False).input_ids) != 1] == []


# Prompts


@pytest.mark.parametrize(("name", "at_least"), (PROMPTS | DIALOGUES).items())
def test_there_are_enough_prompts(name: str, at_least: int) -> None:
    assert len({prompt.id for prompt in prompts(name)}) == len(prompts(name)) >= at_least


@pytest.mark.parametrize("name", [*PROMPTS, "dialogues"])
def test_eight_categories_are_balanced_and_alternate(name: str) -> None:
    categories = [prompt.category for prompt in prompts(name)]
    assert set(categories) == {prompt.category for prompt in prompts("conversation")}
    assert len(set(categories)) == 8
    assert len(set(Counter(categories).values())) == 1
    # So that the first n of a file, at any n, hold each category as often as the others, give or take one.
    assert all(len(set(categories[i : i + 8])) == 8 for i in range(0, len(categories), 8))


def emotion_words(text: str) -> list[str]:
    return [word for word in words(text) if EMOTION_WORD.fullmatch(word)]


@pytest.mark.parametrize("name", [*PROMPTS, *DIALOGUES])
def test_prompts_name_no_emotion(name: str) -> None:
    said = {prompt.id: " ".join([prompt.text, *prompt.turns]) for prompt in prompts(name)}
    assert {prompt: found for prompt, text in said.items() if (found := emotion_words(text))} == {}


def test_a_user_of_a_dialogue_speaks_three_times_and_never_in_the_same_words() -> None:
    assert {prompt.n_replies for prompt in prompts("dialogues")} == {3}
    said = [tuple(words(text)) for prompt in prompts("dialogues") for text in (prompt.text, *prompt.turns)]
    assert len(set(said)) == len(said)


def test_negotiations_leave_room_to_agree_and_each_side_is_taken_as_often() -> None:
    found = prompts("negotiation")
    assert Counter(prompt.category for prompt in found) == {"selling": 8, "buying": 8}
    for prompt in found:
        assert prompt.partner is not None
        wanted, limit = amounts(prompt.messages[0]["content"])
        theirs, their_limit = amounts(prompt.partner.system)
        sign = 1 if prompt.category == "selling" else -1
        assert sign * wanted > sign * their_limit > sign * limit > sign * theirs, prompt.id
        assert theirs in amounts(prompt.text), "it opens with what it would like"


def test_the_list_of_emotion_words_finds_them_where_they_are() -> None:
    texts = contrastive_texts().values()
    assert np.mean([bool(emotion_words(text)) for text in texts]) > 0.5


def test_no_prompt_is_also_a_text_that_makes_a_vector_or_a_ranking() -> None:
    neutral = {text.id: text.text for text in load_neutral_texts()}
    made_of = {tuple(words(text)): name for name, text in (contrastive_texts() | diagnostic_texts() | neutral).items()}
    said = {prompt.id: tuple(words(turn["content"])) for prompt in all_prompts() for turn in prompt.messages}
    assert {one: made_of[text] for one, text in said.items() if text in made_of} == {}


def test_no_prompt_repeats_a_contrastive_text() -> None:
    texts = {name: set(words(text)) for name, text in contrastive_texts().items()}
    repeated = {}
    for prompt in all_prompts():
        said = set(words(prompt.text))
        for name, text in texts.items():
            if len(said & text) > len(said) / 2:
                repeated[prompt.id, name] = said & text
    assert repeated == {}


def test_no_prompt_shares_six_words_in_a_row_with_what_makes_a_vector_or_a_ranking() -> None:
    made_of = set().union(*(runs(text, 6) for text in (contrastive_texts() | diagnostic_texts()).values()))
    assert made_of
    assert {prompt.id: shared for prompt in all_prompts() if (shared := runs(prompt.text, 6) & made_of)} == {}


@pytest.mark.parametrize(
    ("later", "earlier"), [("confirmation", "conversation"), ("replication", "conversation"), ("replication", "confirmation")]
)
def test_prompts_that_confirm_are_new(earlier: str, later: str) -> None:
    for new, known in itertools.product(prompts(later), prompts(earlier)):
        assert overlap(words(new.text), words(known.text)) <= 0.5, (new.id, known.id)


# Neutral texts


def test_there_are_forty_neutral_texts() -> None:
    assert len({text.text for text in load_neutral_texts()}) == len(load_neutral_texts()) >= 40


def test_neutral_texts_lean_neither_way() -> None:
    analyzer = SentimentIntensityAnalyzer()

    def compound(text: str) -> float:
        return float(analyzer.polarity_scores(text)["compound"])

    assert abs(np.mean([compound(text.text) for text in load_neutral_texts()])) < 0.1
    joyful, sad = sides("joy_sadness")
    assert np.mean([compound(text) for text in joyful]) > 0.5
    assert np.mean([compound(text) for text in sad]) < -0.5


@pytest.mark.parametrize("emotion", ["joy", "sadness", "anger", "fear"])
def test_neutral_texts_hold_few_emotion_words(emotion: str) -> None:
    neutral = nrc_rate([text.text for text in load_neutral_texts()], emotion)
    assert neutral < 2
    sets_with_it = [name for name in PAIRS if emotion in name.split("_")]
    emotional = [sides(name)[name.split("_").index(emotion)] for name in sets_with_it]
    assert all(nrc_rate(texts, emotion) > 5 * neutral for texts in emotional)
