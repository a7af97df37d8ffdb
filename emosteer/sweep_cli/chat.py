"""`emosteer-sweep chat`: talk to a model that is steered with a cell's vector."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emosteer.errors import EmosteerError
from emosteer.records.cell import Cell
from emosteer.sweep_cli.arguments import CellArgument, SweepArgument
from emosteer.sweep_cli.finding import cell_called, open_sweep

if TYPE_CHECKING:
    from emosteer.conversation import Conversation
    from emosteer.vectors import EmotionVector

HELP = """\
/coefficient 0.2   steer with another coefficient; without a number say which
/baseline on|off   let the unsteered model answer the same words beside
/reset             forget what was said
/help              this
/quit              end; so does ctrl-D. Ctrl-C ends a reply."""
SHOWN = 12
"""Characters of a fingerprint that are shown."""


def chat(
    sweep: SweepArgument,
    cell: CellArgument = None,
    coefficient: Annotated[float | None, typer.Option(help="To begin with; by default the cell's.")] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Begin with the unsteered model's replies beside.")] = False,
    vector: Annotated[
        Path | None, typer.Option("--vector", metavar="FILE", help="Steer with this vector of the same model, instead of the cell's.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of a reply.")] = 200,
    device: Annotated[str | None, typer.Option(help="Where the model runs; by default as the cell's configuration says.")] = None,
) -> None:
    """Talk to a model that is steered with a cell's vector.

    Without a cell it is the best readable one. Type, and the model replies as it is generated; a line that begins with / is a
    command: /coefficient changes how hard it is pushed on the fly, /baseline lets the unsteered model answer beside, /help tells the
    rest. Both answer the same conversation, which goes on with the steered reply. What the cell says of decoding holds, but for the
    replies' length. Lines may come from a pipe. Nothing is written to the disk.

    \b
    Examples:
      emosteer-sweep chat default
      emosteer-sweep chat default joy_sadness-L9-c0.2 --baseline
      echo 'How was your day?' | emosteer-sweep chat default

    \b
    Exit codes:
      0  the conversation ended
      2  no such sweep or cell, the cell is not done, no cell is readable, the
         model is not there or another one, a vector of another model
    """  # noqa: D301 - \b keeps the lines of a paragraph
    found = open_sweep(sweep)
    # Here, so that the other commands do not wait for torch and pandas.
    from emosteer import exporting
    from emosteer.tables import build

    chosen = cell_called(found, cell if cell is not None else exporting.best_cell(build(found)))
    own, layers = exporting.stored_vector(found, chosen)
    taken = own if vector is None else _given(vector, chosen)
    own_coefficient = exporting.stored_coefficient(found, chosen)
    talk = _conversation(chosen, taken, layers, own_coefficient, max_new_tokens, device)
    if coefficient is not None:
        talk.set_coefficient(str(coefficient))
    _Terminal(talk, baseline).run()


def _given(path: Path, cell: Cell) -> EmotionVector:
    """A vector from a file, where it is the cell's model's, as far as the file says."""
    from emosteer.vector_file import load_vector, made_on

    vector, fingerprint = load_vector(path), made_on(path)
    if fingerprint is not None and fingerprint != cell.model.fingerprint:
        raise EmosteerError(
            f"--vector {path}: it was made on the model {_shown(fingerprint)}, and {cell.id} is of {cell.model.config.name}, "
            f"{_shown(cell.model.fingerprint)}: a direction means something to its own model only; build one on this"
        )
    if vector.site != cell.site:
        raise EmosteerError(f"--vector {path}: it is of site={vector.site}, and {cell.id} steers site={cell.site}")
    return vector


def _shown(fingerprint: str) -> str:
    return fingerprint.removeprefix("sha256:")[:SHOWN]


def _conversation(
    cell: Cell, vector: EmotionVector, layers: tuple[int, ...], coefficient: float, max_new_tokens: int, device: str | None
) -> Conversation:
    from emosteer.conversation import Conversation
    from emosteer.model.language_model import load
    from emosteer.model.source import find

    config = cell.model.config if device is None else dataclasses.replace(cell.model.config, device=device)
    source = find(config)
    if source.fingerprint != cell.model.fingerprint:
        raise EmosteerError(
            f"{config.path} is another model by now, {_shown(source.fingerprint)} instead of {_shown(cell.model.fingerprint)}: "
            f"the vector of {cell.id} is for that one only"
        )
    return Conversation(load(config, source), cell, vector, layers, coefficient, max_new_tokens)


class _Terminal:
    """Reads lines and prints replies until there are no more.

    Args:
        talk: the conversation.
        has_baseline: whether the unsteered model answers beside.
    """

    def __init__(self, talk: Conversation, has_baseline: bool) -> None:
        self.talk, self.has_baseline = talk, has_baseline
        self.is_asking = sys.stdin.isatty()

    def run(self) -> None:
        """Until /quit, the end of input, or two ctrl-C in a row."""
        notice, interrupted = f"{self.talk.model.name}, {self._how()}; /help tells the commands", False
        while True:
            try:
                # Inside, so that a ctrl-C that follows what is read here finds its handler.
                if notice:
                    self._say(notice)
                    notice = ""
                line = input("> " if self.is_asking else "").strip()
                interrupted = False
                if line in ("/quit", "/exit"):
                    return
                self._take(line)
            except EOFError:
                return
            except KeyboardInterrupt:
                if interrupted:
                    return
                notice, interrupted = "\n/quit or ctrl-D ends, and so does another ctrl-C", True

    def _take(self, line: str) -> None:
        if line.startswith("/"):
            self._command(*line.split(maxsplit=1))
        elif line:
            self._answer(line)

    def _how(self) -> str:
        cell = self.talk.cell
        if cell.intervention == "ablate":
            return f"{cell.pair.name if cell.pair else 'the vector'} ablated at block {self._blocks()}"
        return f"{cell.pair.name if cell.pair else 'the vector'} at block {self._blocks()}, coefficient {self.talk.coefficient:g}"

    def _blocks(self) -> str:
        return "+".join(map(str, self.talk.layers))

    def _command(self, name: str, value: str = "") -> None:
        if name == "/help":
            self._say(HELP)
        elif name == "/reset":
            self.talk.forget()
            self._say("nothing was said yet")
        elif name == "/coefficient":
            try:
                if value:
                    self.talk.set_coefficient(value)
                self._say(self._how())
            except EmosteerError as error:
                self._say(str(error))
        elif name == "/baseline" and value in ("on", "off"):
            self.has_baseline = value == "on"
            self._say(f"baseline {value}")
        elif name == "/baseline":
            self._say(f"/baseline {value}: give on or off".replace("  ", " "))
        else:
            self._say(f"{name}: no such command; /help tells them")

    def _answer(self, line: str) -> None:
        """Let both sides answer; the conversation goes on with what the steered one had said when it ended or was stopped."""
        self.talk.ask(line)
        try:
            if self.has_baseline:
                self._stream("unsteered", is_steered=False)
            reply = self._stream(f"steered {self.talk.coefficient:g}", is_steered=True)
        except EmosteerError as error:
            self.talk.messages.pop()
            self._say(str(error))
            return
        self.talk.answered(reply)

    def _stream(self, label: str, is_steered: bool) -> str:
        pieces: list[str] = []
        typer.secho(f"{label}: ", bold=True, nl=False)
        with contextlib.suppress(KeyboardInterrupt):
            for piece in self.talk.reply(is_steered):
                pieces.append(piece)
                typer.echo(_harmless(piece), nl=False)
                sys.stdout.flush()
        typer.echo()
        return "".join(pieces)

    def _say(self, text: str) -> None:
        typer.secho(text, dim=True)


def _harmless(text: str) -> str:
    """Text without characters that would command the terminal."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf") or c == "\u200d" else "\ufffd" for c in text)
