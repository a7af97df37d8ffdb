"""What slow scorers said of texts, kept by a hash of each text, so that no text is read twice: by any cell, sweep or worker.

A cache: scores lie beside the replies as those of all scorers do, and what is lost or damaged here is asked for again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

from emosteer.records.publish import names_in, publish_json, read_json

log = logging.getLogger(__name__)


class StoredAnswers:
    """The answers under one key. Each batch is a file of its own, so that workers add to them without waiting for each other.

    Args:
        directory: of all answers.
        key: of whoever gives them, with all that changes them.
    """

    def __init__(self, directory: Path, key: str) -> None:
        self.directory, self.key = directory, key
        self._known: dict[str, dict[str, float]] = {}
        self._read: set[str] = set()

    def find(self, texts: Iterable[str]) -> dict[str, dict[str, float]]:
        """Of the texts that have an answer, metric -> value."""
        self._look()
        return {text: self._known[name] for text in texts if (name := _name(text)) in self._known}

    def keep(self, said: Mapping[str, Mapping[str, float]]) -> None:
        """Add answers: text -> metric -> value."""
        answers = {_name(text): dict(values) for text, values in said.items()}
        if answers:
            self._known |= answers
            name = f"{self.key}.{uuid.uuid4().hex[:12]}.json"
            self._read.add(name)
            publish_json(self.directory / name, {"answers": answers})

    def _look(self) -> None:
        """Read what has come since the last look."""
        for name in sorted(names_in(self.directory) - self._read):
            if not name.startswith(f"{self.key}."):
                continue
            self._read.add(name)
            try:
                found = (read_json(self.directory / name) or {"answers": {}})["answers"]
                self._known |= {str(text): {str(m): float(v) for m, v in values.items()} for text, values in found.items()}
            except (ValueError, KeyError, TypeError, AttributeError):
                log.warning("%s is damaged: what it held is asked for again", self.directory / name)
                with contextlib.suppress(OSError):
                    (self.directory / name).unlink()


def _name(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
