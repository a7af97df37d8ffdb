"""A language model behind an OpenAI-compatible endpoint as a judge: how strongly each reply expresses emotions, from 0 to 10.

Off unless a configuration names it. The key stands in an environment variable, whose name alone is in the configuration.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from emosteer.errors import EmosteerError
from emosteer.scoring.endpoint import Endpoint, Unusable, secret
from emosteer.scoring.scorer import Context, NotComputed, Scores, answered, versioned
from emosteer.scoring.text import split_words

PROMPT: Final = (Path(__file__).parents[1] / "data" / "judge" / "emotions.txt").read_text(encoding="utf-8")
EMOTIONS: Final = ("joy", "sadness", "trust", "disgust", "anger", "fear", "anticipation", "surprise")
MOST: Final = 10
CALLS_KEPT: Final = 8
"""So many answers by each of those that ask at once are kept together."""
NO_WORDS: Final = "a reply without words has no emotion to judge"
LEAST: Final = {"concurrency": 1, "attempts": 1, "max_tokens": 1}


def pinned(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options themselves, looked through; raises EmosteerError for one that cannot be used, or a key that is not there."""
    url = urlsplit(str(options.get("base_url", "")))
    if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
        raise EmosteerError("base_url: give the address of an endpoint, such as http://localhost:8000/v1, without a query")
    if url.username or url.password:
        raise EmosteerError("base_url holds a user or password, which others can read: name an environment variable in key_env")
    for name, least in LEAST.items():
        value = options.get(name, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise EmosteerError(f"{name}={value}: give a whole number of at least {least}")
    for name in ("timeout", "backoff"):
        value = options.get(name, 1.0)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise EmosteerError(f"{name}={value}: give a number of seconds above 0")
    emotions = options.get("emotions", EMOTIONS)
    if not isinstance(emotions, list | tuple) or not emotions or not all(re.fullmatch(r"\w+", str(e)) for e in emotions):
        raise EmosteerError(f"emotions={emotions}: give a list of words, such as [joy,trust]")
    if len(set(emotions)) < len(emotions):
        raise EmosteerError(f"emotions={emotions}: give each once")
    if not str(options.get("model", "")).strip():
        raise EmosteerError("model is empty: give the name by which the endpoint knows the model")
    secret(options.get("key_env"))
    return dict(options)


@versioned(1, per_reply=True, pin=pinned)
def judge(
    replies: Sequence[str],
    *,
    context: Context,
    base_url: str,
    model: str,
    key_env: str | None = None,
    emotions: Sequence[str] = EMOTIONS,
    json_mode: bool = True,
    max_tokens: int = 200,
    timeout: float = 60.0,
    attempts: int = 5,
    backoff: float = 1.0,
    concurrency: int = 4,
) -> Scores:
    """How strongly a judge finds each emotion expressed in a reply: `judge_<emotion>`, whole numbers from 0 to 10.

    The judge gets the reply alone, under the prompt in `emosteer/data/judge/emotions.txt`, at temperature 0, and answers with a JSON
    object of whole numbers. Anything else is asked again; what is no such object after all `attempts` is not computed: NaN, with the
    reason beside the scores. An endpoint that is down after all attempts fails the cell, with the reason; what it has said by
    then is kept in the store, in batches, and `emosteer-sweep retry` asks for the rest.

    A name and a temperature of 0 do not promise the same answer twice. Answers are kept by the reply's hash, the model's name and the
    prompt, so that equal replies have equal scores within a store.

    Args:
        replies: the texts.
        context: what was said before.
        base_url: of the endpoint, to which `/chat/completions` is added.
        model: its name there.
        key_env: name of the environment variable that holds the key; None sends none.
        emotions: what is rated.
        json_mode: ask the endpoint for a JSON object (`response_format`); not all of them know that.
        max_tokens: of an answer.
        timeout: seconds for one answer, from the call to its last byte.
        attempts: to get an answer.
        backoff: seconds before the second attempt; doubled each time, up to a minute, or what the endpoint asks for (`Retry-After`).
        concurrency: replies asked for at once.

    Raises:
        EmosteerError: the endpoint is down or refuses, or the key is not there.
    """
    metrics = [f"judge_{emotion}" for emotion in emotions]
    endpoint = Endpoint(base_url, secret(key_env), timeout, attempts, backoff, concurrency)
    prompt = PROMPT.replace("{emotions}", ", ".join(emotions))
    key = {
        "function": f"{__name__}.judge",
        "version": 1,
        "base_url": base_url,
        "model": model,
        "prompt": hashlib.sha256(prompt.encode()).hexdigest(),
        "max_tokens": max_tokens,
        "json_mode": json_mode,
    }

    def ask(texts: Sequence[str]) -> list[dict[str, float]]:
        def call(text: str) -> dict[str, Any]:
            messages = [{"role": "user", "content": prompt.replace("{text}", text)}]
            shape = {"response_format": {"type": "json_object"}} if json_mode else {}
            return {"model": model, "messages": messages, "temperature": 0, "max_tokens": max_tokens, **shape}

        said = endpoint.ask([call(text) for text in texts], lambda answer: ratings(answer, emotions))
        return [_of(metrics, one) for one in said]

    readable = list(dict.fromkeys(reply for reply in replies if split_words(reply)))
    found = answered(context, key, readable, CALLS_KEPT * concurrency, ask)
    nothing = dict.fromkeys(metrics, NotComputed(NO_WORDS))
    return {metric: [found.get(reply, nothing)[metric] for reply in replies] for metric in metrics}


def _of(metrics: Sequence[str], said: dict[str, int] | Unusable) -> dict[str, float]:
    if isinstance(said, Unusable):
        return dict.fromkeys(metrics, NotComputed(said.reason))
    return {metric: float(value) for metric, value in zip(metrics, said.values(), strict=True)}


def ratings(answer: str, emotions: Sequence[str]) -> dict[str, int]:
    """The ratings in an answer, in the order of `emotions`.

    Raises:
        ValueError: it is not one JSON object with just these keys, and whole numbers from 0 to 10.
    """
    try:
        found = json.loads(answer, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict) or set(found) != set(emotions):
        raise ValueError(f"not an object with the keys {', '.join(emotions)}")
    for emotion, value in found.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST:
            raise ValueError(f"{emotion} is no whole number from 0 to {MOST}")
    return {emotion: found[emotion] for emotion in emotions}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands there twice")
    return dict(pairs)
