"""A vector that left the house steers as its cell did: in the library, and in a conversation that is typed into a pipe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from desk import Desk
from typer.testing import CliRunner, Result

import emosteer
from emosteer.sweep_cli import app

LAYER, COEFFICIENT = 2, 0.4


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, library: Path) -> Desk:
    """One cell, as the command runs it."""
    desk = Desk(tmp_path_factory.mktemp("ran"), tiny_directory, library)
    done = desk.run_warm(f"layer={LAYER}", f"coefficient={COEFFICIENT}", "controls=none")
    assert done.code == 0, done.text
    return desk


@pytest.fixture(autouse=True)
def here(ran: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ran.directory)


def of_cell(ran: Desk, baseline: bool = False) -> pd.DataFrame:
    replies = pd.read_parquet(ran.sweep / "replies.parquet")
    return replies[replies["is_baseline"] == baseline].set_index("prompt")


def cell_id(ran: Desk) -> str:
    return str(ran.results().query("not is_control").iloc[0]["cell_id"])


def chat(ran: Desk, *lines: str, options: tuple[str, ...] = ()) -> Result:
    arguments = ["chat", "tiny", cell_id(ran), "--max-new-tokens", "8", *options]
    return CliRunner().invoke(app, arguments, input="\n".join(lines), catch_exceptions=False, prog_name="emosteer-sweep")


def test_the_exported_vector_gives_the_cells_replies(ran: Desk, tmp_path: Path, tiny_directory: Path) -> None:
    done = CliRunner().invoke(app, ["export", "tiny", cell_id(ran), "--to", str(tmp_path), "--json"], catch_exceptions=False)
    files: Any = json.loads(done.stdout)["files"]
    vector = emosteer.load_vector(files["safetensors"])
    model = emosteer.load_model(tiny_directory, device="cpu")
    prompts = emosteer.load_prompts("conversation", limit=6)
    replies = emosteer.steer(model, prompts, vector, layer=LAYER, coefficient=COEFFICIENT, max_new_tokens=8)
    assert replies.texts == of_cell(ran)["reply"].tolist()
    assert replies.texts != of_cell(ran, baseline=True)["reply"].tolist()


def test_a_conversation_begins_with_the_cells_replies(ran: Desk) -> None:
    """Steered and not, whatever the coefficient was in between."""
    prompt, other = of_cell(ran).index[:2]
    done = chat(ran, "/baseline on", prompt, "/reset", "/coefficient 0", prompt, "/reset", "/coefficient 0.4", "/baseline off", other)
    assert done.exit_code == 0
    steered, plain = of_cell(ran)["reply"], of_cell(ran, baseline=True)["reply"]
    shown = " ".join(done.stdout.split())
    for label, reply in (
        ("unsteered", plain[prompt]),
        ("steered 0.4", steered[prompt]),
        ("steered 0", plain[prompt]),
        ("steered 0.4", steered[other]),
    ):
        assert " ".join(f"{label}: {harmless(reply)}".split()) in shown
    assert done.stdout.count("unsteered: ") == 2


def harmless(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def test_the_second_turn_answers_what_was_said_before(ran: Desk, tiny_directory: Path) -> None:
    prompt = of_cell(ran).index[0]
    done = chat(ran, prompt, "And then?")
    dialogue = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": of_cell(ran)["reply"][prompt]},
        {"role": "user", "content": "And then?"},
    ]
    vector = emosteer.load_vector(next((ran.directory / "outputs/store/vectors").glob("joy_sadness-*.safetensors")))
    model = emosteer.load_model(tiny_directory, device="cpu")
    asked = [{"id": "second", "messages": dialogue, "category": "x"}]
    (reply,) = emosteer.steer(model, asked, vector, layer=LAYER, coefficient=COEFFICIENT, max_new_tokens=8).texts
    assert " ".join(harmless(reply).split()) in " ".join(done.stdout.split())


def test_commands_that_are_none_are_told_and_the_conversation_goes_on(ran: Desk) -> None:
    done = chat(
        ran, "/help", "/coefficient", "/coefficient much", "/coefficient inf", "/baseline perhaps", "/dance", "", "/quit", "never"
    )
    for told in (
        "joy_sadness at block 2, coefficient 0.4",
        "/quit              end",
        "coefficient much: give a number such as 0.2",
        "coefficient inf: give a number such as 0.2",
        "/baseline perhaps: give on or off",
        "/dance: no such command",
    ):
        assert told in done.stdout
    assert "steered 0.4:" not in done.stdout
    assert "\x1b" not in done.stdout
    assert done.exit_code == 0


def test_a_conversation_that_fills_the_context_is_told(ran: Desk) -> None:
    done = chat(ran, "word " * 400, "/quit")
    assert "which fill the context" in done.stdout
    assert done.exit_code == 0


def test_a_vector_of_another_model_is_refused(ran: Desk, tmp_path: Path) -> None:
    vector = emosteer.load_vector(next((ran.directory / "outputs/store/vectors").glob("joy_sadness-*.safetensors")))
    emosteer.save_vector(vector, tmp_path / "joy.safetensors", {"model_fingerprint": "sha256:0123456789abcdef"})
    done = chat(ran, options=("--vector", str(tmp_path / "joy.safetensors")))
    assert done.exit_code == 2
    assert "it was made on the model 0123456789ab, and " in done.stderr
    assert len(done.stderr.splitlines()) == 1
    emosteer.save_vector(vector, tmp_path / "unknown.safetensors")
    assert chat(ran, "/quit", options=("--vector", str(tmp_path / "unknown.safetensors"))).exit_code == 0


def test_weights_that_changed_are_refused(ran: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emosteer.model.source.find", lambda config: type("Source", (), {"fingerprint": "sha256:fedcba9876543210"})())
    done = chat(ran)
    assert done.exit_code == 2
    assert "is another model by now, fedcba987654 instead of " in done.stderr


def test_ctrl_c_ends_the_reply_and_two_end_the_conversation(ran: Desk) -> None:
    command = [sys.executable, "-m", "emosteer.sweep_cli", "chat", "tiny", cell_id(ran), "--max-new-tokens", "200"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert "/help tells the commands" in process.stdout.readline()
    process.send_signal(signal.SIGINT)  # nothing is being said
    assert process.stdout.readline() == "\n"
    assert "another ctrl-C" in process.stdout.readline()
    process.stdin.write("/coefficient 0.1\n")
    process.stdin.flush()
    assert "coefficient 0.1" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "\n"
    assert "another ctrl-C" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
