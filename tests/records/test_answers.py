"""What slow scorers said of texts: found again by other processes, apart by key, and asked for again where it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from emosteer.records.answers import StoredAnswers

SAID = {"a text": {"judge_joy": 3.0}, "é \ud800\u2028": {"judge_joy": 0.0}}


def test_answers_are_found_by_text_and_key_alone(tmp_path: Path) -> None:
    first, second = StoredAnswers(tmp_path, "one"), StoredAnswers(tmp_path, "one")
    assert second.find(SAID) == {}
    first.keep(SAID)
    first.keep({})

    assert first.find([*SAID, "another"]) == SAID
    assert second.find([*SAID, "another"]) == SAID, "that looked before they came"
    assert StoredAnswers(tmp_path, "one").find(["a text"]) == {"a text": {"judge_joy": 3.0}}
    assert StoredAnswers(tmp_path, "on").find(SAID) == {}
    assert len(list(tmp_path.iterdir())) == 1
    assert "a text" not in next(tmp_path.iterdir()).read_text()


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"answers": {"x": 1}}', '{"answers": {"x": {"y": null}}}', "\0"])
def test_a_damaged_file_is_told_and_forgotten(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    answers = StoredAnswers(tmp_path, "one")
    answers.keep(SAID)
    next(tmp_path.iterdir()).write_text(content)

    assert StoredAnswers(tmp_path, "one").find(SAID) == {}
    assert "is damaged" in caplog.text
    assert list(tmp_path.iterdir()) == []
