"""Loaders, limit, digest and canonical form: what is read, what is refused, and where the refusal points."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emosteer.datasets import (
    SHIPPED,
    ContrastivePair,
    DiagnosticPair,
    NeutralText,
    Prompt,
    digest,
    load_contrastive_pairs,
    load_diagnostic_pairs,
    load_neutral_texts,
    load_prompts,
    to_json_lines,
)
from emosteer.errors import EmosteerError

Record = dict[str, Any]
Loader = Callable[[Path], list[Any]]

PAIR: Record = {"id": "a", "positive": "Good news!", "negative": "Bad news!", "topic": "news"}
DIAGNOSTIC: Record = {
    "id": "a",
    "clean": "The dog is well.",
    "corrupted": "The dog is ill.",
    "reply_prefix": "I am",
    "expressive": [" happy", " glad"],
    "counterpart": [" sorry", " sad"],
    "topic": "dog",
}
PROMPT: Record = {"id": "a", "text": "Tea or coffee?", "category": "small_talk"}
DIALOGUE: Record = {
    "id": "a",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hello to you."},
        {"role": "user", "content": "Tea or coffee?"},
    ],
    "category": "small_talk",
}
NEUTRAL: Record = {"id": "a", "text": "The canal has nineteen locks."}

KINDS: list[tuple[Loader, Record]] = [
    (load_contrastive_pairs, PAIR),
    (load_diagnostic_pairs, DIAGNOSTIC),
    (load_prompts, PROMPT),
    (load_prompts, DIALOGUE),
    (load_neutral_texts, NEUTRAL),
]
OPTIONAL = {"topic", "category", "reply_prefix"}
TEXTS = [(loader, good, key) for loader, good in KINDS for key in good if isinstance(good[key], str)]
REQUIRED_TEXTS = [(loader, good, key) for loader, good, key in TEXTS if key not in OPTIONAL]
OPTIONAL_TEXTS = [(loader, good, key) for loader, good, key in TEXTS if key in OPTIONAL]
LINE_SEPARATORS = "\u2028 \u2029 \u0085 \u000b \u001c \r\n"


def write(path: Path, *lines: Record | str) -> Path:
    """A file of these lines, records as JSON; in bytes, so that no newline is translated."""
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_bytes("".join(f"{text}\n" for text in texts).encode())
    return path


def refusal(loader: Loader, path: Path, line: int | None = None) -> str:
    """What the loader says against a file, after checking that it is one line that begins with file and line number."""
    with pytest.raises(EmosteerError) as caught:
        loader(path)
    where, message = f"{path}:{line}: " if line else f"{path}: ", str(caught.value)
    assert message.startswith(where)
    assert "\n" not in message
    return message.removeprefix(where)


def refusal_of(loader: Loader, good: Record, bad: Record | str, directory: Path) -> str:
    """What is said against a bad line that stands fourth, after good ones and an empty one."""
    path = write(directory / "data.jsonl", good | {"id": "first"}, good | {"id": "second"}, "", bad, good | {"id": "last"})
    return refusal(loader, path, line=4)


def test_each_kind_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    assert load_contrastive_pairs(write(path, PAIR)) == [ContrastivePair("a", "Good news!", "Bad news!", "news")]
    assert load_diagnostic_pairs(write(path, DIAGNOSTIC)) == [
        DiagnosticPair("a", "The dog is well.", "The dog is ill.", "I am", (" happy", " glad"), (" sorry", " sad"), "dog")
    ]
    turn = {"role": "user", "content": "Tea or coffee?"}
    assert load_prompts(write(path, PROMPT)) == [Prompt("a", "Tea or coffee?", "small_talk", (turn,))]
    assert load_prompts(write(path, DIALOGUE)) == [Prompt("a", "Tea or coffee?", "small_talk", tuple(DIALOGUE["messages"]))]
    assert load_neutral_texts(write(path, NEUTRAL)) == [NeutralText("a", "The canal has nineteen locks.")]


@pytest.mark.parametrize(("loader", "good"), KINDS)
def test_items_keep_the_order_of_the_file(loader: Loader, good: Record, tmp_path: Path) -> None:
    ids = ["z", "a", "m", "B"]
    path = write(tmp_path / "data.jsonl", *(good | {"id": one} for one in ids))
    assert [item.id for item in loader(path)] == ids


@pytest.mark.parametrize(("loader", "good", "key"), OPTIONAL_TEXTS)
@pytest.mark.parametrize("absence", ["missing", "null", "empty"])
def test_an_optional_text_may_be_absent(loader: Loader, good: Record, key: str, absence: str, tmp_path: Path) -> None:
    without = {k: v for k, v in good.items() if k != key}
    record = without | {"missing": {}, "null": {key: None}, "empty": {key: ""}}[absence]
    assert getattr(loader(write(tmp_path / "data.jsonl", record))[0], key) == ""


# A bad line


@pytest.mark.parametrize(("loader", "good", "key"), REQUIRED_TEXTS)
def test_a_missing_key_is_refused(loader: Loader, good: Record, key: str, tmp_path: Path) -> None:
    bad = {k: v for k, v in good.items() if k != key}
    assert repr(key) in refusal_of(loader, good, bad, tmp_path)


@pytest.mark.parametrize("key", ["expressive", "counterpart"])
@pytest.mark.parametrize("words", [None, [], " happy", {" happy": 1}, [" happy", 3], [" happy", ""], [[" happy"]]])
def test_word_lists_that_are_none_are_refused(key: str, words: object, tmp_path: Path) -> None:
    assert repr(key) in refusal_of(load_diagnostic_pairs, DIAGNOSTIC, DIAGNOSTIC | {"id": "bad", key: words}, tmp_path)


@pytest.mark.parametrize(("loader", "good", "key"), REQUIRED_TEXTS)
@pytest.mark.parametrize("value", [3, 0, True, None, [], ["text"], {}, "", " \t\n"])
def test_what_is_no_text_is_refused(loader: Loader, good: Record, key: str, value: object, tmp_path: Path) -> None:
    message = refusal_of(loader, good, good | {"id": "bad"} | {key: value}, tmp_path)
    assert repr(key) in message
    assert repr(value) in message


@pytest.mark.parametrize(("loader", "good", "key"), OPTIONAL_TEXTS)
@pytest.mark.parametrize("value", [3, 0, True, False, [], {}, " "])
def test_an_optional_key_of_a_wrong_type_is_not_taken_as_absent(
    loader: Loader, good: Record, key: str, value: object, tmp_path: Path
) -> None:
    assert repr(key) in refusal_of(loader, good, good | {"id": "bad", key: value}, tmp_path)


@pytest.mark.parametrize(("loader", "good"), KINDS)
@pytest.mark.parametrize(
    "line",
    [
        "{",
        "{'id': 'a'}",
        '{"id": "a"} {"id": "b"}',
        "id,text",
        '{"id": "a\tb"}',
        "[" * 100_000,
        pytest.param(f'{{"id": {"1" * 5_000}}}', id="a number longer than Python converts"),
        "3",
        "null",
        '"text"',
        '[{"id": "a"}]',
    ],
    ids=lambda line: line[:12] if isinstance(line, str) else None,
)
def test_what_is_no_json_object_is_refused(loader: Loader, good: Record, line: str, tmp_path: Path) -> None:
    assert "JSON object" in refusal_of(loader, good, line, tmp_path)


@pytest.mark.parametrize(("loader", "good"), KINDS)
def test_a_duplicate_id_is_refused_with_both_lines(loader: Loader, good: Record, tmp_path: Path) -> None:
    message = refusal_of(loader, good, good | {"id": "second"}, tmp_path)
    assert "'second'" in message
    assert "line 2" in message


@pytest.mark.parametrize(
    ("loader", "good", "one", "other"),
    [(load_contrastive_pairs, PAIR, "positive", "negative"), (load_diagnostic_pairs, DIAGNOSTIC, "clean", "corrupted")],
)
def test_the_same_text_twice_is_refused(loader: Loader, good: Record, one: str, other: str, tmp_path: Path) -> None:
    message = refusal_of(loader, good, good | {"id": "bad", other: good[one]}, tmp_path)
    assert one in message
    assert other in message
    assert "same" in message


@pytest.mark.parametrize(("loader", "good", "key"), TEXTS)
def test_a_lone_surrogate_is_refused_and_an_escaped_emoji_is_not(loader: Loader, good: Record, key: str, tmp_path: Path) -> None:
    def escaped(text: str) -> str:
        return json.dumps(good | {"id": "new"} | {key: text}, ensure_ascii=True)

    message = refusal_of(loader, good, escaped("half \ud83d of one"), tmp_path)
    assert repr(key) in message
    assert "surrogate" in message
    message.encode()  # can be printed and logged
    assert r"\ud83d\ude00" in escaped("whole 😀 one")
    assert getattr(loader(write(tmp_path / "data.jsonl", escaped("whole 😀 one")))[0], key) == "whole 😀 one"


@pytest.mark.parametrize("key", ["expressive", "counterpart"])
def test_a_lone_surrogate_in_a_word_is_refused(key: str, tmp_path: Path) -> None:
    bad = json.dumps(DIAGNOSTIC | {"id": "bad", key: [" happy", "\udc00"]})
    assert "surrogate" in refusal_of(load_diagnostic_pairs, DIAGNOSTIC, bad, tmp_path)


@pytest.mark.parametrize(
    ("messages", "saying"),
    [
        (None, "'messages'"),
        ([], "'messages'"),
        ("Hello.", "'messages'"),
        ({"role": "user", "content": "Hello."}, "'messages'"),
        (["Hello."], "role"),
        ([{"content": "Hello."}], "role"),
        ([{"role": "robot", "content": "Hello."}], "role"),
        ([{"role": "User", "content": "Hello."}], "role"),
        ([{"role": ["user"], "content": "Hello."}], "role"),
        ([{"role": "robot", "content": "Hello."}, {"role": "user", "content": "Hello."}], "role"),
        ([{"role": "user"}], "'content'"),
        ([{"role": "user", "content": " "}], "'content'"),
        ([{"role": "user", "content": ["Hello."]}], "'content'"),
        ([{"role": "assistant", "content": ""}, {"role": "user", "content": "Hello."}], "'content'"),
        ([{"role": "assistant", "content": "\ud800"}, {"role": "user", "content": "Hello."}], "surrogate"),
        ([{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}], "last"),
        ([{"role": "user", "content": "Hello."}, {"role": "system", "content": "Be brief."}], "last"),
    ],
)
def test_bad_messages_are_refused(messages: object, saying: str, tmp_path: Path) -> None:
    bad = json.dumps({"id": "bad", "messages": messages})
    assert saying in refusal_of(load_prompts, DIALOGUE, bad, tmp_path)


@pytest.mark.parametrize(
    ("more", "saying"),
    [
        ({"turns": "And then?"}, "'turns' must be a list"),
        ({"turns": ["And then?", " "]}, "'turns' must be a text that is not empty"),
        ({"turns": [7]}, "'turns'"),
        ({"turns": ["And?"], "partner": {"system": "You buy.", "turns": 3}}, "give one of them"),
        ({"partner": "You buy."}, "'partner' needs a 'system' text"),
        ({"partner": {"turns": 3}}, "'system'"),
        ({"partner": {"system": "You buy."}}, "2 to 20, found None"),
        ({"partner": {"system": "You buy.", "turns": 1}}, "2 to 20, found 1"),
        ({"partner": {"system": "You buy.", "turns": 21}}, "2 to 20, found 21"),
        ({"partner": {"system": "You buy.", "turns": True}}, "2 to 20, found True"),
    ],
)
def test_bad_dialogues_are_refused(more: dict[str, object], saying: str, tmp_path: Path) -> None:
    assert saying in refusal_of(load_prompts, PROMPT, {"id": "bad", "text": "Hello."} | more, tmp_path)


def test_dialogues_are_read_and_written_as_they_are(tmp_path: Path) -> None:
    lines = [
        {"id": "a", "text": "One", "turns": ["Two", "Three"]},
        {"id": "b", "text": "One", "partner": {"system": "You buy.", "turns": 4}},
    ]
    found = load_prompts(write(tmp_path / "a.jsonl", *lines))
    assert [prompt.n_replies for prompt in found] == [3, 4]
    again = tmp_path / "b.jsonl"
    again.write_text(to_json_lines(found))
    assert load_prompts(again) == found
    plain = load_prompts(write(tmp_path / "c.jsonl", {"id": "a", "text": "One"}))
    assert digest(plain) != digest(found[:1])
    assert "turns" not in to_json_lines(plain), "what was hashed before there were dialogues stays"


def test_a_prompt_needs_text_or_messages(tmp_path: Path) -> None:
    message = refusal_of(load_prompts, PROMPT, {"id": "bad", "category": "plans"}, tmp_path)
    assert "'text'" in message
    assert "'messages'" in message


# A bad file


@pytest.mark.parametrize(("loader", "good"), KINDS)
@pytest.mark.parametrize("content", ["", "\n", "\n  \n\t\n", "\ufeff", "\ufeff\n"])
def test_a_file_without_records_is_refused(loader: Loader, good: Record, content: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content.encode())
    assert "no records" in refusal(loader, path)


@pytest.mark.parametrize(("loader", "good"), KINDS)
def test_a_missing_file_is_refused(loader: Loader, good: Record, tmp_path: Path) -> None:
    assert "no such file" in refusal(loader, tmp_path / "data.jsonl")
    refusal(loader, tmp_path)  # a directory


@pytest.mark.parametrize(("loader", "good"), KINDS)
@pytest.mark.parametrize("bad", ["é".encode("latin-1"), "half \ud83d of one".encode("utf-8", "surrogatepass")])
def test_what_is_not_utf_8_is_refused_with_its_place(loader: Loader, good: Record, bad: bytes, tmp_path: Path) -> None:
    head = json.dumps(good).encode() + b'\n{"id": "b", "text": "'
    path = tmp_path / "data.jsonl"
    path.write_bytes(head + bad + b'"}\n')
    place = len(head) + bad.index(next(byte for byte in bad if byte > 127))
    message = refusal(loader, path)
    assert "UTF-8" in message
    assert f"byte {place})" in message


# What editors and other programs write


@pytest.mark.parametrize(("loader", "good"), KINDS)
def test_byte_order_mark_crlf_and_blank_lines_change_nothing(loader: Loader, good: Record, tmp_path: Path) -> None:
    lines = [json.dumps(good | {"id": one}) for one in "ab"]
    plain = write(tmp_path / "plain.jsonl", *lines)
    windows = tmp_path / "windows.jsonl"
    windows.write_bytes(f"\ufeff{lines[0]}\r\n\r\n  \r\n{lines[1]}".encode())
    assert loader(windows) == loader(plain)


@pytest.mark.parametrize(("loader", "good", "key"), TEXTS)
def test_unicode_line_separators_stay_inside_their_text(loader: Loader, good: Record, key: str, tmp_path: Path) -> None:
    text = f"one{LINE_SEPARATORS}two"
    line = json.dumps(good | {key: text}, ensure_ascii=False)
    assert "\u2028" in line
    path = write(tmp_path / "data.jsonl", line)
    assert getattr(loader(path)[0], key) == text
    refusal(loader, write(path, line, "{"), line=2)


# Limit


@pytest.mark.parametrize("limit", [0, -1, -100])
def test_a_limit_below_one_is_refused(limit: int, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", PROMPT)
    with pytest.raises(EmosteerError, match=re.escape(f"prompts.limit={limit}:")):
        load_prompts(path, limit)


@pytest.mark.parametrize(("limit", "expected"), [(1, "c"), (2, "ca"), (3, "cab"), (4, "cab"), (1000, "cab"), (None, "cab")])
def test_limit_takes_the_first(limit: int | None, expected: str, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", *(PROMPT | {"id": one} for one in "cab"))
    assert "".join(prompt.id for prompt in load_prompts(path, limit)) == expected


def test_a_bad_line_beyond_the_limit_is_refused_too(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", PROMPT, "{")
    assert "JSON" in refusal(lambda file: load_prompts(file, 1), path, line=2)


# Digest


def digest_of(directory: Path, loader: Loader, *records: Record) -> str:
    return digest(loader(write(directory / "data.jsonl", *records)))


@pytest.mark.parametrize(("loader", "good"), KINDS)
def test_equal_texts_have_equal_digests_wherever_they_lie(loader: Loader, good: Record, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    here = write(tmp_path / "data.jsonl", good)
    there = tmp_path / "elsewhere" / "other.jsonl"
    there.write_bytes(b"\xef\xbb\xbf\r\n" + json.dumps(dict(reversed(good.items())), indent=None, separators=(",", ":")).encode())
    assert digest(loader(here)) == digest(loader(there))


@pytest.mark.parametrize(("loader", "good"), KINDS)
def test_category_and_topic_do_not_change_the_digest(loader: Loader, good: Record, tmp_path: Path) -> None:
    labels = {key: "another" for key in ("category", "topic") if key in good}
    bare = {key: value for key, value in good.items() if key not in labels}
    assert digest_of(tmp_path, loader, good | labels) == digest_of(tmp_path, loader, good) == digest_of(tmp_path, loader, bare)


def one_letter_more(record: Record) -> list[Record]:
    """The record with a letter added to one of the texts that a model reads: all such records."""
    changed = []
    for key, value in record.items():
        if isinstance(value, str) and key not in ("id", "category", "topic"):
            changed.append(record | {key: value + "s"})
        for i, part in enumerate(value if isinstance(value, list) else ()):
            more = part | {"content": part["content"] + "s"} if isinstance(part, dict) else part + "s"
            changed.append(record | {key: [*value[:i], more, *value[i + 1 :]]})
    return changed


@pytest.mark.parametrize(("loader", "good"), KINDS)
def test_a_changed_letter_changes_the_digest(loader: Loader, good: Record, tmp_path: Path) -> None:
    others = [digest_of(tmp_path, loader, record) for record in one_letter_more(good)]
    assert others
    assert len({digest_of(tmp_path, loader, good), *others}) == 1 + len(others)


@pytest.mark.parametrize(
    ("loader", "good", "one", "other"),
    [
        (load_contrastive_pairs, PAIR, "positive", "negative"),
        (load_diagnostic_pairs, DIAGNOSTIC, "clean", "corrupted"),
        (load_diagnostic_pairs, DIAGNOSTIC, "expressive", "counterpart"),
    ],
)
def test_exchanged_sides_change_the_digest(loader: Loader, good: Record, one: str, other: str, tmp_path: Path) -> None:
    exchanged = good | {one: good[other], other: good[one]}
    assert digest_of(tmp_path, loader, exchanged) != digest_of(tmp_path, loader, good)


@pytest.mark.parametrize(("loader", "good"), KINDS)
def test_order_and_number_change_the_digest(loader: Loader, good: Record, tmp_path: Path) -> None:
    a, b = good, good | {"id": "b"}
    assert len({digest_of(tmp_path, loader, *records) for records in ((a, b), (b, a), (a,), (b,))}) == 4


def test_a_role_changes_the_digest_and_the_short_form_does_not(tmp_path: Path) -> None:
    turns = [dict(turn) for turn in DIALOGUE["messages"]]
    turns[0]["role"] = "user"
    assert digest_of(tmp_path, load_prompts, DIALOGUE | {"messages": turns}) != digest_of(tmp_path, load_prompts, DIALOGUE)
    long = {"id": "a", "messages": [{"role": "user", "content": PROMPT["text"]}]}
    assert digest_of(tmp_path, load_prompts, long) == digest_of(tmp_path, load_prompts, PROMPT)


# Canonical form


NASTY = f'“Naïve”, she said: "C:\\new" {{}} 😀 \u0000 \ufeff{LINE_SEPARATORS}\n\tend '


@pytest.mark.parametrize(("loader", "good"), KINDS)
def test_json_lines_are_read_back_to_equal_items(loader: Loader, good: Record, tmp_path: Path) -> None:
    nasty = {key: f"{value}{NASTY}" if isinstance(value, str) else value for key, value in good.items()}
    if "messages" in nasty:
        nasty["messages"] = [turn | {"content": turn["content"] + NASTY} for turn in nasty["messages"]]
    if "expressive" in nasty:
        nasty["expressive"] = [*nasty["expressive"], NASTY]
    items = loader(write(tmp_path / "data.jsonl", good, nasty))
    text = to_json_lines(items)
    assert text.endswith("\n")
    assert [json.loads(line)["id"] for line in text.removesuffix("\n").split("\n")] == [item.id for item in items]
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(text.encode())
    assert loader(copy) == items
    assert to_json_lines(loader(copy)) == text
    assert digest(loader(copy)) == digest(items)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*/*.jsonl")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_shipped_files_survive_the_round_trip(path: Path, tmp_path: Path) -> None:
    loaders: dict[str, Loader] = {
        "pairs": load_contrastive_pairs,
        "diagnostics": load_diagnostic_pairs,
        "prompts": load_prompts,
        "neutral": load_neutral_texts,
    }
    loader = loaders[path.parent.name]
    items = loader(path)
    assert loader(write(tmp_path / "copy.jsonl", to_json_lines(items))) == items


def test_the_shipped_neutral_texts_are_the_default() -> None:
    assert load_neutral_texts() == load_neutral_texts(SHIPPED / "neutral" / "neutral.jsonl")
