"""Calls of an OpenAI-compatible endpoint: several at once, again where that may help, and never for longer than they were given."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, Final, NoReturn, Protocol, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from emosteer.errors import EmosteerError

log = logging.getLogger(__name__)

AGAIN: Final = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""HTTP states after which another attempt may succeed."""
LONGEST_PAUSE: Final = 60.0
MOST_BYTES: Final = 1 << 20
"""Of an answer; a server that sends more is broken."""
SHOWN: Final = 200
GIVEN_UP_SECONDS: Final = 60.0
"""For so long nobody asks an endpoint again that was down, and then once: a sweep of many cells must not wait for it cell by cell."""

Parsed = TypeVar("Parsed")

_down: dict[str, tuple[float, str]] = {}
"""When each address that is down was last asked, and what came of it."""


@dataclass(frozen=True)
class Unusable:
    """An answer came at the last attempt, and at none of them one that can be used."""

    reason: str


class _Down(Exception):  # noqa: N818 - what it is
    """No answer came; another attempt may get one, after `pause` seconds where the server says so."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class _NoRedirects(HTTPRedirectHandler):
    """A redirect would take the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def secret(name: Any) -> str | None:
    """The value of the environment variable that holds a key; None without a name.

    Raises:
        EmosteerError: no such variable, or what stands there looks like the key itself; its value is not shown.
    """
    if name is None:
        return None
    if not isinstance(name, str) or not re.fullmatch(r"[A-Z][A-Z0-9_]{0,99}", name):
        raise EmosteerError("key_env: give the name of an environment variable, such as OPENAI_API_KEY, never the key itself")
    if not (value := os.environ.get(name, "").strip()):
        raise EmosteerError(f"key_env={name}: there is no such environment variable; export it, jobs inherit it")
    if not value.isascii() or not value.isprintable():
        raise EmosteerError(f"key_env={name}: its value holds what no key holds; export it again")
    return value


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how patiently."""

    base_url: str
    key: str | None = field(repr=False)
    timeout: float
    """Seconds for one answer, to its last byte."""
    attempts: int
    backoff: float
    """Seconds before the second attempt; doubled with each."""
    concurrency: int

    def ask(self, calls: Sequence[dict[str, Any]], parse: Callable[[str], Parsed]) -> list[Parsed | Unusable]:
        """The parsed content of the answer to each call, in order; `Unusable` where no attempt gave one that parses.

        Args:
            calls: what is sent, as plain data.
            parse: of the answer's content; raises ValueError for one that is none.

        Raises:
            EmosteerError: the endpoint is down after all attempts, or refuses the call itself.
        """
        stop = threading.Event()

        def one(call: dict[str, Any]) -> Parsed | Unusable | EmosteerError | None:
            try:
                return None if stop.is_set() else self._patiently(call, parse, stop)
            except EmosteerError as error:
                stop.set()
                return error

        with ThreadPoolExecutor(self.concurrency) as pool:
            found = list(pool.map(one, calls))
        answers: list[Parsed | Unusable] = []
        for answer in found:
            if isinstance(answer, EmosteerError):
                raise answer
            if answer is not None:
                answers.append(answer)
        return answers

    def _patiently(self, call: dict[str, Any], parse: Callable[[str], Parsed], stop: threading.Event) -> Parsed | Unusable:
        since, reason = _down.get(self.base_url, (float("-inf"), ""))
        if time.monotonic() - since < GIVEN_UP_SECONDS:
            raise EmosteerError(f"{self.base_url} gave no answer a moment ago: {reason}")
        attempts = 1 if reason else self.attempts
        reason, is_down = "", False
        for attempt in range(attempts):
            pause = 0.0
            try:
                content = self._content(call)
                _down.pop(self.base_url, None)
                is_down = False
                return parse(content)
            except _Down as error:
                reason, is_down, pause = str(error), True, error.pause
            except EmosteerError:
                raise
            except ValueError as error:
                reason = self._hidden(f"the judge's answer is not what was asked for: {error}")
            # With some chance, so that many workers do not come back at one moment.
            longest = max(pause, self.backoff * 2**attempt * random.uniform(0.75, 1.25))  # noqa: S311
            if attempt + 1 < attempts and stop.wait(min(longest, LONGEST_PAUSE)):
                break
        if is_down:
            _down[self.base_url] = time.monotonic(), reason
            raise EmosteerError(f"{self.base_url} gave no answer in {_attempts(attempts)}: {reason}; see to it, then retry the cells")
        return Unusable(f"{reason} ({_attempts(attempts)})")

    def _content(self, call: dict[str, Any]) -> str:
        body = self._sent(json.dumps(call).encode())
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise ValueError(f"no chat completion but {body[:SHOWN].decode(errors='replace')!r}") from None
        if not isinstance(content, str):
            raise ValueError("no text in it")
        return content

    def _sent(self, data: bytes) -> bytes:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        # The scheme was looked at when the sweep was given.
        request = Request(f"{self.base_url.rstrip('/')}/chat/completions", data, headers, method="POST")  # noqa: S310
        deadline = time.monotonic() + self.timeout
        try:
            with build_opener(_NoRedirects).open(request, timeout=self.timeout) as answer:
                return _read(answer, deadline)
        except HTTPError as error:
            self._refuse(error, deadline)
        except (URLError, OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise _Down(self._hidden(f"{type(reason).__name__}: {reason}")) from None

    def _refuse(self, error: HTTPError, deadline: float) -> NoReturn:
        with error:
            try:
                said = _read(error, deadline)[:SHOWN].decode(errors="replace")
            except (_Down, OSError, HTTPException):
                said = ""
        reason = self._hidden(f"HTTP {error.code} {error.reason} {said}".strip())
        if error.code in AGAIN:
            raise _Down(reason, _seconds(error.headers.get("Retry-After"))) from None
        raise EmosteerError(f"{self.base_url} refuses: {reason}") from None

    def _hidden(self, text: str) -> str:
        """A server may say the key again, which must not be written down."""
        return text.replace(self.key, "***") if self.key else text


def _attempts(number: int) -> str:
    return "1 attempt" if number == 1 else f"{number} attempts"


class _Readable(Protocol):
    def read1(self, n: int, /) -> bytes: ...


def _read(answer: _Readable, deadline: float) -> bytes:
    """All of an answer; a server that sends byte by byte does not get longer than one that sends none."""
    parts, size = [], 0
    while part := answer.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > MOST_BYTES:
            raise _Down(f"an answer of more than {MOST_BYTES:,} bytes")
        if time.monotonic() > deadline:
            raise _Down("the answer did not end in time")
    return b"".join(parts)


def _seconds(header: str | None) -> float:
    """What `Retry-After` asks for, where it is a number of seconds."""
    try:
        return min(max(float(header or 0), 0.0), LONGEST_PAUSE)
    except ValueError:
        return 0.0
