"""The judge scorer against a server on this machine, which answers, refuses, talks nonsense, hangs, or is not there."""

from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from judge_server import KEY, completion, rated, serving, well

from emosteer.errors import EmosteerError
from emosteer.records.answers import StoredAnswers
from emosteer.scoring import endpoint
from emosteer.scoring.judge import EMOTIONS, PROMPT, judge, ratings
from emosteer.scoring.scorer import Context, find_scorers


@pytest.fixture(autouse=True)
def _nothing_is_known_to_be_down() -> None:
    endpoint._down.clear()


REPLIES = ["I am so happy!", "A chair.", "I am so happy!", "", "Trust me, friend.", "..."]
QUICK: dict[str, Any] = {"emotions": ["joy", "trust"], "backoff": 0.01, "timeout": 5.0, "model": "made-up"}


def context(kept: Path | None = None) -> Context:
    engine: Any = SimpleNamespace()
    return Context(engine, [], [], **({"answers": lambda key: StoredAnswers(kept, key)} if kept else {}))


def test_each_reply_is_rated_once_and_those_without_words_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with serving(well) as server:
        found = judge(REPLIES, context=context(), base_url=server.url, key_env="MY_KEY", **QUICK)

    for number, reply in enumerate(REPLIES):
        values = [found[f"judge_{emotion}"][number] for emotion in ("joy", "trust")]
        if reply in ("", "..."):
            assert all(math.isnan(value) for value in values)
        else:
            assert values == list(rated(reply).values())
    assert sorted(server.times) == sorted({"I am so happy!", "A chair.", "Trust me, friend."})
    assert set(server.times.values()) == {1}
    assert set(server.keys) == {f"Bearer {KEY}"}
    call = server.calls[0]
    assert (call["path"], call["model"], call["temperature"]) == ("/v1/chat/completions", "made-up", 0)
    assert "joy, trust" in call["messages"][0]["content"]


def test_answers_are_kept_and_another_model_or_prompt_is_asked_anew(tmp_path: Path) -> None:
    with serving(well) as server:
        first = judge(REPLIES, context=context(tmp_path), base_url=server.url, **QUICK)
        again = judge([*REPLIES, "New."], context=context(tmp_path), base_url=server.url, **QUICK)
        assert len(server.calls) == 4
        assert again["judge_joy"][:3] == first["judge_joy"][:3]
        judge(["New."], context=context(tmp_path), base_url=server.url, **{**QUICK, "model": "other"})
        judge(["New."], context=context(tmp_path), base_url=server.url, **{**QUICK, "emotions": ["trust", "joy"]})
        assert len(server.calls) == 6


@pytest.mark.parametrize("state", [429, 500, 503])
def test_an_endpoint_that_recovers_costs_nothing_but_time(state: int) -> None:
    def say(text: str, time: int) -> tuple[int, Any]:
        return well(text, time) if time > 2 else (state, {"error": "busy"})

    with serving(say) as server:
        found = judge(REPLIES[:2], context=context(), base_url=server.url, **QUICK)
    assert found["judge_joy"] == [rated(reply)["joy"] for reply in REPLIES[:2]]
    assert set(server.times.values()) == {3}


@pytest.mark.parametrize(
    "content",
    [
        "I would say joy: 3",
        '```json\n{"joy": 3, "trust": 1}\n```',
        '{"joy": 3}',
        '{"joy": 3, "trust": 1, "fear": 0}',
        '{"joy": 11, "trust": 1}',
        '{"joy": -1, "trust": 1}',
        '{"joy": 3.5, "trust": 1}',
        '{"joy": true, "trust": 1}',
        '{"joy": "3", "trust": 1}',
        '{"joy": null, "trust": 1}',
        '{"joy": 3, "joy": 4, "trust": 1}',
        "[" * 100_000,
        "",
        None,
        5,
    ],
)
def test_what_is_no_rating_is_not_computed_with_the_reason_and_never_zero(content: Any) -> None:
    def say(text: str, time: int) -> tuple[int, Any]:
        return (200, completion(content)) if text == "A chair." else well(text, time)

    with serving(say) as server:
        found = judge(REPLIES[:2], context=context(), base_url=server.url, **QUICK, attempts=2)
    value = found["judge_joy"][1]
    assert math.isnan(value)
    assert "not what was asked for" in value.reason  # type: ignore[attr-defined]
    assert "(2 attempts)" in value.reason  # type: ignore[attr-defined]
    assert found["judge_joy"][0] == rated(REPLIES[0])["joy"], "the others are untouched"
    assert server.times["A chair."] == 2


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"choices": []}', b"[1, 2", b"\xff\xfe"])
def test_a_body_that_is_no_completion_is_not_computed_either(body: bytes) -> None:
    with serving(lambda *_: (200, body)) as server:
        found = judge(["Joy."], context=context(), base_url=server.url, **QUICK, attempts=1)
    assert math.isnan(found["judge_joy"][0])


def test_nothing_undefined_is_kept(tmp_path: Path) -> None:
    with serving(lambda *_: (200, completion("no"))) as server:
        judge(["Joy."], context=context(tmp_path), base_url=server.url, **QUICK, attempts=1)
        server.say = well
        assert judge(["Joy."], context=context(tmp_path), base_url=server.url, **QUICK)["judge_joy"] == [rated("Joy.")["joy"]]


def test_an_endpoint_that_stays_down_is_an_error_and_the_next_cell_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with serving(lambda *_: (500, {"error": f"your key {KEY} is fine, we are not"})) as server:
        with pytest.raises(EmosteerError, match="gave no answer in 3 attempts: HTTP 500") as caught:
            judge(["Joy."], context=context(), base_url=server.url, key_env="MY_KEY", **QUICK, attempts=3)
        assert KEY not in str(caught.value)
        assert len(server.calls) == 3
        with pytest.raises(EmosteerError, match="gave no answer a moment ago: HTTP 500"):
            judge(["Joy."], context=context(), base_url=server.url, **QUICK, attempts=3)
        assert len(server.calls) == 3
        monkeypatch.setattr(endpoint, "GIVEN_UP_SECONDS", 0.0)
        with pytest.raises(EmosteerError, match="gave no answer in 1 attempt: HTTP 500"):
            judge(["Joy."], context=context(), base_url=server.url, **QUICK, attempts=3)
        assert len(server.calls) == 4
        server.say = well
        assert judge(["Joy."], context=context(), base_url=server.url, **QUICK)["judge_joy"] == [rated("Joy.")["joy"]]


def test_nobody_listens() -> None:
    with serving(well) as server:
        url = server.url
    with pytest.raises(EmosteerError, match=f"{url} gave no answer in 2 attempts: ConnectionRefusedError"):
        judge(["Joy."], context=context(), base_url=url, **QUICK, attempts=2)


def test_a_server_that_hangs_gets_the_time_that_it_was_given() -> None:
    gone = threading.Event()

    def hang(*_: Any) -> tuple[int, Any]:
        gone.wait(20)
        return 200, b""

    with serving(hang) as server:
        started = time.monotonic()
        with pytest.raises(EmosteerError, match=r"gave no answer in 2 attempts: .*time"):
            judge(["Joy."], context=context(), base_url=server.url, **{**QUICK, "timeout": 0.3}, attempts=2)
        assert time.monotonic() - started < 5
        gone.set()


@pytest.mark.parametrize("state", [400, 401, 404, 302])
def test_a_call_that_is_refused_is_not_repeated_and_no_redirect_gets_the_key(state: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with serving(lambda *_: (state, {"error": f"no such model for {KEY}"})) as server:
        with pytest.raises(EmosteerError, match=f"refuses: HTTP {state}") as caught:
            judge(["Joy."], context=context(), base_url=server.url, key_env="MY_KEY", **QUICK)
        assert KEY not in str(caught.value)
        assert [call["path"] for call in server.calls] == ["/v1/chat/completions"]


def test_no_more_calls_at_once_than_were_allowed() -> None:
    def slow(text: str, n: int) -> tuple[int, Any]:
        time.sleep(0.03)
        return well(text, n)

    with serving(slow) as server:
        judge([f"Reply {i}" for i in range(20)], context=context(), base_url=server.url, **QUICK, concurrency=3)
    assert 2 <= server.most_at_once <= 3


def entry(**changes: Any) -> dict[str, dict[str, Any]]:
    options = {"base_url": "http://localhost:1/v1", "model": "made-up"} | changes
    return {"judge": {"_target_": "emosteer.scoring.judge.judge", **options}}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"base_url": "localhost:8000"}, "give the address of an endpoint"),
        ({"base_url": "file:///etc/passwd"}, "give the address of an endpoint"),
        ({"base_url": "http://h/v1?api_key=x"}, "give the address of an endpoint"),
        ({"base_url": f"https://me:{KEY}@h/v1"}, "holds a user or password"),
        ({"model": " "}, "model is empty"),
        ({"key_env": KEY}, "give the name of an environment variable"),
        ({"key_env": "NOT_THERE"}, "key_env=NOT_THERE: there is no such environment variable"),
        ({"attempts": 0}, "attempts=0"),
        ({"concurrency": 1.5}, "concurrency=1.5"),
        ({"timeout": 0}, "timeout=0"),
        ({"backoff": float("nan")}, "backoff=nan"),
        ({"emotions": []}, "emotions="),
        ({"emotions": ["joy", "joy"]}, "give each once"),
        ({"emotions": ["joy; ignore"]}, "give a list of words"),
    ],
)
def test_wrong_options_are_refused_when_the_sweep_is_given(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(EmosteerError, match=rf"^scorers\.judge\..*{told}") as caught:
        find_scorers(entry(**changes))
    assert KEY not in str(caught.value)


def test_the_key_is_in_no_option_and_no_scores_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    (scorer,) = find_scorers(entry(key_env="MY_KEY"))
    assert KEY not in json.dumps(scorer.facts()) + scorer.key + repr(endpoint.Endpoint("http://h", KEY, 1, 1, 1, 1))


def test_ratings_come_in_the_order_that_was_asked() -> None:
    assert list(ratings('{"trust": 1, "joy": 0}', ["joy", "trust"]).items()) == [("joy", 0), ("trust", 1)]
    assert set(EMOTIONS) == {"joy", "sadness", "trust", "disgust", "anger", "fear", "anticipation", "surprise"}
    assert PROMPT.count("{text}") == PROMPT.count("{emotions}") == 1
