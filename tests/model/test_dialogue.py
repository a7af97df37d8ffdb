from __future__ import annotations

import itertools

import pytest
from tiny_models import TEMPLATE, tokenizer_of
from transformers import PreTrainedTokenizerFast

from emosteer.errors import EmosteerError
from emosteer.model.dialogue import Dialogue
from emosteer.model.language_model import LanguageModel

TALK = [
    {"role": "user", "content": "How was the rain?"},
    {"role": "assistant", "content": "Wet."},
    {"role": "user", "content": "And now?"},
]
TEXTS = [
    "I am so happy that you came!",
    "  The garden took all night.\n",
    "How are things?",  # what the opening says, too
    "Wörter, 言葉 and a 🙂 smile",
    "One line.\n\nAnother line: it's “quoted”.",
    "x",
    "assistant",
]


@pytest.fixture(params=[True, False], ids=["template", "plain"])
def dialogue(request: pytest.FixtureRequest) -> Dialogue:
    return Dialogue(tokenizer_of(chat=request.param))


def with_template(template: str) -> Dialogue:
    inner = tokenizer_of().backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return Dialogue(tokenizer)


def test_template_prompt() -> None:
    dialogue = Dialogue(tokenizer_of(chat=True))
    text = dialogue.tokenizer.decode(dialogue.prompt(TALK, "I feel"))
    assert text == ("<s><|user|>How was the rain?</s>\n<|assistant|>Wet.</s>\n<|user|>And now?</s>\n<|assistant|>I feel")


def test_plain_prompt() -> None:
    dialogue = Dialogue(tokenizer_of(chat=False))
    text = dialogue.tokenizer.decode(dialogue.prompt([{"role": "system", "content": "Be brief."}, *TALK], " I feel"))
    assert text == "<s>System: Be brief.\nUser: How was the rain?\nAssistant: Wet.\nUser: And now?\nAssistant: I feel"


SYSTEM = {"role": "system", "content": "Be brief."}
WITHOUT_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
)
DROPS_SYSTEM = "{% for m in messages if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


def test_an_instruction_is_the_system_message(dialogue: Dialogue) -> None:
    assert dialogue.instructed(TALK, "Feel joy.") == ({"role": "system", "content": "Feel joy."}, *TALK)
    under = dialogue.instructed([SYSTEM, *TALK], "Feel joy.")
    assert under == ({"role": "system", "content": "Be brief.\n\nFeel joy."}, *TALK)
    assert "Feel joy." in dialogue.tokenizer.decode(dialogue.prompt(under))


@pytest.mark.parametrize("template", [WITHOUT_SYSTEM, DROPS_SYSTEM], ids=["refuses", "drops"])
def test_without_a_system_message_it_stands_before_the_users_first_words(template: str) -> None:
    dialogue = with_template(template)
    first = {"role": "user", "content": f"Feel joy.\n\n{TALK[0]['content']}"}
    assert dialogue.instructed(TALK, "Feel joy.") == (first, *TALK[1:])


def test_the_real_templates_system_message_is_replaced(smollm2: LanguageModel) -> None:
    plain, under = (
        smollm2.dialogue.tokenizer.decode(smollm2.dialogue.prompt(m)) for m in (TALK, smollm2.dialogue.instructed(TALK, "Feel joy."))
    )
    assert plain.count("system") == under.count("system") == 1
    assert "helpful" in plain
    assert "Feel joy." in under
    assert "helpful" not in under


def said_by(dialogue: Dialogue, messages: list[dict[str, str]], prefix: str = "") -> list[tuple[str, str]]:
    """(role, text) of a prompt, runs of tokens of one role together."""
    tokens, roles = dialogue.prompt(messages, prefix), dialogue.roles(messages, prefix)
    assert len(tokens) == len(roles)
    runs = itertools.groupby(zip(roles, tokens, strict=True), key=lambda one: one[0])
    return [(role, dialogue.tokenizer.decode([token for _, token in run])) for role, run in runs]


def test_whose_each_token_is() -> None:
    assert said_by(with_template(TEMPLATE), TALK, "I feel") == [
        ("template", "<s><|user|>"),
        ("user", "How was the rain?"),
        ("template", "</s>\n<|assistant|>"),
        ("assistant", "Wet."),
        ("template", "</s>\n<|user|>"),
        ("user", "And now?"),
        ("template", "</s>\n<|assistant|>"),
        ("assistant", "I feel"),
    ]
    plain = said_by(Dialogue(tokenizer_of(chat=False)), [{"role": "system", "content": "Be brief."}, TALK[0]])
    assert [(role, text.strip()) for role, text in plain] == [
        ("template", "<s>System:"),
        ("system", "Be brief."),
        ("template", "User:"),
        ("user", "How was the rain?"),
        ("template", "Assistant:"),
    ]


def test_a_system_text_of_the_templates_own() -> None:
    own = "{% if messages[0]['role'] != 'system' %}{{ '<s>User sad</s>' }}{% endif %}"
    own += "{% for m in messages %}{{ ('<s>' if m['role'] == 'system' else '<|user|>') + m['content'] + '</s>' }}{% endfor %}"
    assert said_by(with_template(own), TALK[:1]) == [
        ("template", "<s>"),
        ("system", "User sad"),
        ("template", "</s><|user|>"),
        ("user", "How was the rain?"),
        ("template", "</s>"),
    ]
    refusing = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}{{ m['content'] }}{% endfor %}"
    )
    assert said_by(with_template(refusing), TALK[:1]) == [("user", "How was the rain?")]


def test_whose_tokens_are_is_not_known_without_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    dialogue = with_template(TEMPLATE)
    monkeypatch.setattr(type(dialogue.tokenizer), "is_fast", False)
    assert dialogue.roles(TALK) == ()


@pytest.mark.real_model
def test_whose_smollm2s_tokens_are(smollm2: LanguageModel) -> None:
    assert said_by(smollm2.dialogue, [{"role": "user", "content": "We won!"}], "I am") == [
        ("template", "<|im_start|>system\n"),
        ("system", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        ("template", "<|im_end|>\n<|im_start|>user\n"),
        ("user", "We won!"),
        ("template", "<|im_end|>\n<|im_start|>assistant\n"),
        ("assistant", "I am"),
    ]


def test_one_beginning_of_sequence(dialogue: Dialogue) -> None:
    begin = dialogue.tokenizer.bos_token_id
    for tokens in (dialogue.prompt(TALK), dialogue.reading(TEXTS[0]).tokens):
        assert tokens[0] == begin
        assert tokens.count(begin) == 1


@pytest.mark.parametrize("text", TEXTS)
def test_a_readings_span_is_the_text(dialogue: Dialogue, text: str) -> None:
    reading = dialogue.reading(text)
    decode = dialogue.tokenizer.decode
    assert decode(reading.tokens[reading.start : reading.stop]).strip() == text.strip()
    before, after = decode(reading.tokens[: reading.start]), decode(reading.tokens[reading.stop :])
    assert before.rstrip().endswith(("<|assistant|>", "Assistant:"))
    assert "How are things?" in before
    assert after.strip() in ("", "</s>")


@pytest.mark.parametrize("text", TEXTS)
def test_the_last_token_of_a_text(dialogue: Dialogue, text: str) -> None:
    whole, last = dialogue.reading(text), dialogue.reading(text, "last_token")
    assert last.tokens == whole.tokens
    assert (last.start, last.stop) == (whole.stop - 1, whole.stop)


@pytest.mark.parametrize("text", TEXTS)
def test_the_assistant_prefix_is_where_the_reply_to_the_text_begins(dialogue: Dialogue, text: str) -> None:
    reading = dialogue.reading(text, "assistant_prefix")
    assert reading.tokens == dialogue.prompt([{"role": "user", "content": text}])
    assert reading.stop - reading.start == 1
    assert reading.stop == len(reading.tokens)
    assert dialogue.tokenizer.decode(reading.tokens[reading.start :]) in ("<|assistant|>", ":")


def test_a_question_under_an_instruction(dialogue: Dialogue) -> None:
    """The question's own tokens, also where its words stand in the instruction; and the token before the reply."""
    messages = [{"role": "system", "content": "And now? Be kind."}, {"role": "user", "content": "And now?"}]
    prompt, decode = dialogue.prompt(messages), dialogue.tokenizer.decode
    whole, last, prefix = (dialogue.asking(messages, at) for at in ("token_mean", "last_token", "assistant_prefix"))
    assert whole.tokens == last.tokens == prefix.tokens == prompt
    assert decode(prompt[whole.start : whole.stop]).strip() == "And now?"
    assert "Be kind." in decode(prompt[: whole.start])
    assert (last.start, last.stop) == (whole.stop - 1, whole.stop)
    assert (prefix.start, prefix.stop) == (len(prompt) - 1, len(prompt))


def test_a_template_without_system_messages_is_told() -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{{ 'Hm' }}"
    with pytest.raises(EmosteerError, match=r"the chat template refuses \['system', 'user'\]: System role not supported"):
        with_template(refusing).asking([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "And now?"}])


@pytest.mark.real_model
@pytest.mark.parametrize("text", TEXTS)
def test_a_readings_span_in_the_real_template(smollm2: LanguageModel, text: str) -> None:
    reading = smollm2.dialogue.reading(text)
    decode = smollm2.dialogue.tokenizer.decode
    assert decode(reading.tokens[reading.start : reading.stop]).strip() == text.strip()
    assert decode(reading.tokens[: reading.start]).rstrip().endswith("<|im_start|>assistant")


def test_a_text_that_stands_in_the_templates_end_too() -> None:
    reading = Dialogue(tokenizer_of()).reading("s")
    assert Dialogue(tokenizer_of()).tokenizer.decode(reading.tokens[reading.start : reading.stop]) == "s"


def test_a_template_that_changes_the_text_is_refused() -> None:
    with pytest.raises(EmosteerError, match="changes the text"):
        with_template("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}").reading("All quiet here.")


def test_a_template_that_strips_the_text_is_not() -> None:
    dialogue = with_template("{% for m in messages %}<s>{{ m['content'] | trim }}</s>{% endfor %}")
    reading = dialogue.reading("  All quiet here. ")
    assert dialogue.tokenizer.decode(reading.tokens[reading.start : reading.stop]) == "All quiet here."


def test_a_template_that_thinks_aloud_is_told_not_to() -> None:
    dialogue = with_template("{{ '<think>' if enable_thinking is not defined or enable_thinking else 'quiet' }}")
    assert dialogue.tokenizer.decode(dialogue.prompt(TALK)) == "quiet"


def test_plain_replies_end_where_the_next_turn_begins() -> None:
    dialogue = Dialogue(tokenizer_of(chat=False))
    said = " Fine. The User: label stays.\nUser: And you?\nAssistant: Too."
    assert dialogue.reply(dialogue.tokenizer(said, add_special_tokens=False).input_ids) == "Fine. The User: label stays."
    for speaker in ("System", "Assistant"):
        ids = dialogue.tokenizer(f" Fine.\n{speaker}: more", add_special_tokens=False).input_ids
        assert dialogue.reply(ids) == "Fine."


def test_template_replies_are_not_cut() -> None:
    dialogue = Dialogue(tokenizer_of(chat=True))
    ids = dialogue.tokenizer("Fine.\nUser: a label", add_special_tokens=False).input_ids
    assert dialogue.reply(ids) == "Fine.\nUser: a label"


def test_replies_show_no_special_tokens(dialogue: Dialogue) -> None:
    ids = dialogue.tokenizer("<|assistant|> Wet and 🙂.</s>", add_special_tokens=False).input_ids
    assert dialogue.reply(ids) == "Wet and 🙂."
    assert dialogue.reply([]) == ""
