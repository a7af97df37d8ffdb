"""Dialogues turn by turn, against a loop that is obviously right: one dialogue, one reply at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from tiny_models import random_vector, tiny_model

import emosteer
from emosteer.config import GenerationConfig
from emosteer.datasets import Message, Partner, Prompt
from emosteer.engine import Decoding, Engine, Request, RowSeed
from emosteer.engine.sampling import gumbel_noise
from emosteer.errors import EmosteerError
from emosteer.model.language_model import LanguageModel
from emosteer.scoring.negotiation import accepts, amounts, negotiation
from emosteer.scoring.perplexity import perplexity
from emosteer.scoring.scorer import Context
from emosteer.steering import Push, Steering
from emosteer.turns import BEGIN, SILENCE, context_of, hold, stored, talks_for

SAMPLED = GenerationConfig(max_new_tokens=6, do_sample=True, n_samples=2)
STEERING = Steering((Push("residual", 1, random_vector(3, 4.0)),))


def said(*contents: str) -> tuple[Message, ...]:
    """A user's and an assistant's words in turn."""
    return tuple({"role": role, "content": content} for role, content in zip(["user", "assistant"] * 9, contents, strict=False))


HELLO = Prompt("hello", "Hello there", "", said("Hello there"))
THREE = Prompt("three", "One", "", said("One"), turns=("Two", "Three"))
SYSTEM: Message = {"role": "system", "content": "You sell tea."}
HAGGLE = Prompt("haggle", "How much?", "", (SYSTEM, *said("How much?")), partner=Partner("You buy tea.", 3))


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model()


def alone(model: LanguageModel, messages: Sequence[Message], seed: RowSeed, steering: Steering | None) -> tuple[int, ...]:
    """One reply to whole messages."""
    request = Request(model.dialogue.prompt(messages), seed, steering, Decoding(max_new_tokens=6, do_sample=True))
    ((_, reply),) = Engine(model).generate([request])
    return reply.tokens


def by_hand(model: LanguageModel, prompt: Prompt, sample: int, steering: Steering | None) -> list[tuple[str, tuple[int, ...]]]:
    """What each reply answers, and its tokens."""
    messages, held, answer = list(prompt.messages), [], ""
    for turn in range(prompt.n_replies):
        tokens = alone(model, messages, RowSeed(5, prompt.id, sample, turn), steering)
        held.append((answer, tokens))
        text = model.dialogue.reply(tokens)
        messages.append({"role": "assistant", "content": text})
        if turn + 1 == prompt.n_replies:
            break
        if prompt.partner:
            roles = {"user": "assistant", "assistant": "user"}
            theirs = [{"role": "system", "content": prompt.partner.system}, {"role": "user", "content": BEGIN}]
            theirs += [{**message, "role": roles[message["role"]]} for message in messages if message["role"] != "system"]
            own = alone(model, theirs, RowSeed(5, f"{prompt.id}\0partner", sample, turn), None)
            answer = model.dialogue.reply(own) or SILENCE
        else:
            answer = prompt.turns[turn]
        messages.append({"role": "user", "content": answer})
    return held


@pytest.mark.parametrize("steering", [None, STEERING], ids=["plain", "steered"])
def test_dialogues_together_are_those_of_one_at_a_time(model: LanguageModel, steering: Steering | None) -> None:
    talks = talks_for(model, [HELLO, THREE, HAGGLE], SAMPLED, 5, steering)
    assert sorted(hold(Engine(model), talks)) == list(range(6))
    for talk in talks:
        sample = talk.opening.row_seed.sample
        assert [(turn.said, turn.reply.tokens) for turn in talk.turns] == by_hand(model, talk.prompt, sample, steering)


def test_dialogues_of_one_reply_are_over_before_others_go_on(model: LanguageModel) -> None:
    talks = talks_for(model, [THREE, HELLO], GenerationConfig(max_new_tokens=3), 0)
    held = hold(Engine(model), talks)
    assert next(held) == 1
    assert len(talks[0].turns) == 1
    assert list(held) == [0]


def test_turns_draw_numbers_of_their_own() -> None:
    first, second = (gumbel_noise(RowSeed(0, "a", 0, turn), 0, 50) for turn in (0, 1))
    assert not first.equal(second)
    assert gumbel_noise(RowSeed(0, "a", 0), 0, 50).equal(first), "what was sampled before there were turns stays"


def test_scorers_see_the_dialogue_so_far(model: LanguageModel) -> None:
    talks = talks_for(model, [THREE, HELLO], GenerationConfig(max_new_tokens=5), 0, STEERING)
    engine = Engine(model)
    assert len(list(hold(engine, talks))) == 2
    replies = stored(talks)
    assert [(reply.prompt_id, reply.turn, reply.said) for reply in replies] == [
        ("three", 0, ""),
        ("three", 1, "Two"),
        ("three", 2, "Three"),
        ("hello", 0, ""),
    ]
    context = context_of(engine, [THREE, HELLO], replies)
    whole = said("One", replies[0].reply, "Two", replies[1].reply, "Three")
    assert context.prompts == [model.dialogue.prompt(m) for m in (whole[:1], whole[:3], whole, HELLO.messages)]
    assert context.said == ["One", "Two", "Three", "Hello there"]
    single = Context(engine, [context.prompts[2]], [context.replies[2]])
    texts = [reply.reply for reply in replies]
    assert perplexity(texts, context=context)["perplexity"][2] == perplexity([""], context=single)["perplexity"][0]


def test_an_instruction_stands_in_every_turn(model: LanguageModel) -> None:
    asked: list[Request] = []
    engine = Engine(model)
    right = engine.generate

    def noting(requests: Sequence[Request], *rest: object) -> object:
        asked.extend(requests)
        return right(requests)

    engine.generate = noting  # type: ignore[method-assign, assignment]
    list(hold(engine, talks_for(model, [THREE], GenerationConfig(max_new_tokens=3), 0, instruction="Be glad")))
    texts = [model.dialogue.tokenizer.decode(list(request.prompt)) for request in asked]
    assert len(texts) == 3
    assert all("Be glad" in text for text in texts)


def test_a_dialogue_that_may_not_fit_is_refused_before_it_begins(model: LanguageModel) -> None:
    assert model.context == 256
    long = replace(THREE, turns=("Two",) * 12)
    talks_for(model, [long], GenerationConfig(max_new_tokens=2), 0)
    with pytest.raises(EmosteerError, match=r"mine: the dialogue of prompt 'three' may come to \d+ tokens with 13 replies"):
        talks_for(model, [long], GenerationConfig(max_new_tokens=20), 0, where="mine")


def test_a_notebook_holds_dialogues_too(model: LanguageModel) -> None:
    prompts = [{"id": "a", "text": "One", "turns": ["Two"]}, "Hello there"]
    replies = emosteer.reply(model, prompts, max_new_tokens=4)
    table = emosteer.score(model, replies, ["words"])
    assert table["turn"].tolist() == [0, 1, 0]
    assert table["prompt"].tolist() == ["One", "Two", "Hello there"]
    assert emosteer.compare(table, table).loc["words", "n"] == 2, "the prompt is the unit"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I'd give €1,250.50 or 30 euros", [1250.5, 30]),
        ("$5, 7$ and 9 bucks, at 4 o'clock for 3 people", [5, 7, 9]),
        ("£40. Not a pound more", [40]),
        ("two hundred", []),
    ],
)
def test_amounts_stand_beside_a_currency(text: str, found: list[float]) -> None:
    assert amounts(text) == found


@pytest.mark.parametrize(
    ("text", "is_accepted"),
    [
        ("Deal!", True),
        ("All right. It's a deal.", True),
        ("OK, deal", True),
        ("I accept your $3.50.", True),
        ("Then I'll take it for €90.", True),
        ("We have an agreement.", True),
        ("No deal.", False),
        ("Do we have a deal?", False),
        ("I can't accept that.", False),
        ("If you add a bell, I'll take it.", False),
        ("A great deal of people ask. We agreed to meet.", False),
        ("I sold one last week.", False),
        ("", False),
    ],
)
def test_acceptance(text: str, is_accepted: bool) -> None:
    assert accepts(text) == is_accepted


def test_how_negotiations_end() -> None:
    replies = ["I want $90.", "Then $80.", "Hm.", "Deal."]
    context = Context(
        engine=None,  # type: ignore[arg-type]
        prompts=[()] * 4,
        replies=[()] * 4,
        turns=[0, 1, 0, 1],
        said=["I'd pay $60.", "I accept.", "It costs $70.", "$50, last word."],
    )
    scores = negotiation(replies, context=context)
    # The first ended when the other side accepted the 90, whatever was said afterwards; the second at 50, which the other had named.
    assert scores["agreed"] == [pytest.approx(math.nan, nan_ok=True), 1, pytest.approx(math.nan, nan_ok=True), 1]
    assert scores["price"][1::2] == [90, 50]
    assert scores["offer"][1] == 80
    assert math.isnan(scores["offer"][3])


def test_an_opening_that_accepts_is_no_agreement() -> None:
    context = Context(None, [()], [()], [0], ["Deal, $40."])  # type: ignore[arg-type]
    scores = negotiation(["We shall see."], context=context)
    assert scores["agreed"] == [0]
    assert math.isnan(scores["price"][0])
