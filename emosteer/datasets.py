"""The texts that emosteer reads: contrastive pairs, diagnostic pairs, prompts and neutral texts, as JSON lines.

Every loader takes a user's own file as well as the shipped ones, and refuses a bad line with its file and number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from emosteer.errors import EmosteerError

SHIPPED = Path(__file__).parent / "data"
LARGEST = 100_000_000
"""Bytes of a file: more are not read into memory to find out that they are no texts."""
MOST_TURNS = 20

Message = dict[str, str]
"""One turn of a dialogue: `role` (system, user or assistant) and `content`."""


@dataclass(frozen=True)
class ContrastivePair:
    """Two texts about the same thing: `positive` expresses the target emotion, `negative` its counterpart."""

    id: str
    positive: str
    negative: str
    topic: str = ""


@dataclass(frozen=True)
class DiagnosticPair:
    """Two prompts of one sentence frame. The reply begins with `reply_prefix`; its next word tells the emotion.

    `clean` calls for a word of `expressive` (the target emotion), `corrupted` for one of `counterpart`.
    """

    id: str
    clean: str
    corrupted: str
    reply_prefix: str
    expressive: tuple[str, ...]
    counterpart: tuple[str, ...]
    topic: str = ""


@dataclass(frozen=True)
class Partner:
    """Who talks with the model, played by the same model unsteered."""

    system: str
    """Who it is, and what it wants."""
    turns: int
    """Replies of the model that it talks with, from 2 to 20; it answers all but the last."""


@dataclass(frozen=True)
class Prompt:
    """What a user says: the last of `messages`, shown in tables as `text`; and how the dialogue goes on, if it does."""

    id: str
    text: str
    category: str
    messages: tuple[Message, ...]
    turns: tuple[str, ...] = ()
    """What the user says after each of the model's replies but the last, whatever they were."""
    partner: Partner | None = None
    """Who answers the model's replies instead."""

    @property
    def n_replies(self) -> int:
        """Replies of the model in the whole dialogue."""
        return self.partner.turns if self.partner else 1 + len(self.turns)


@dataclass(frozen=True)
class NeutralText:
    """A text without emotion, from which a model's usual activation norms are measured."""

    id: str
    text: str


Item = TypeVar("Item", ContrastivePair, DiagnosticPair, Prompt, NeutralText)


def shipped_pairs() -> dict[str, Path]:
    """Name of each shipped emotion pair -> the file of its contrastive pairs."""
    return {path.stem: path for path in sorted((SHIPPED / "pairs").glob("*.jsonl"))}


def load_contrastive_pairs(path: Path) -> list[ContrastivePair]:
    """The pairs of a file; raises EmosteerError with file and line where one is unusable."""
    return _load(path, _contrastive_pair)


def load_diagnostic_pairs(path: Path) -> list[DiagnosticPair]:
    """The diagnostic pairs of a file; raises EmosteerError with file and line where one is unusable."""
    return _load(path, _diagnostic_pair)


def load_prompts(path: Path, limit: int | None = None) -> list[Prompt]:
    """The first `limit` prompts of a file (all for None), in its order; raises EmosteerError as the others do."""
    if limit is not None and limit < 1:
        raise EmosteerError(f"prompts.limit={limit}: give a whole number of at least 1, or null for all prompts")
    return _load(path, _prompt)[:limit]


def load_neutral_texts(path: Path = SHIPPED / "neutral" / "neutral.jsonl") -> list[NeutralText]:
    """The neutral texts of a file; raises EmosteerError as the others do."""
    return _load(path, _neutral_text)


def from_records(records: Iterable[Item | Mapping[str, Any]], kind: type[Item], name: str) -> list[Item]:
    """Items that come from no file, held to what the loaders ask of a file's lines.

    Args:
        records: items of `kind`, or mappings with the keys that its files have.
        kind: ContrastivePair, DiagnosticPair, Prompt or NeutralText.
        name: what messages call the records: `prompts` makes them say `prompts[3]`.

    Raises:
        EmosteerError: no record, one that cannot be used, or two with one id.
    """
    plain = [(place, _plain(record, kind, f"{name}[{place}]")) for place, record in enumerate(records)]
    items: list[Item] = _parse_all(plain, _PARSERS[kind], lambda place: f"{name}[{place}]", lambda place: f"{name}[{place}]")
    if not items:
        raise EmosteerError(f"{name} is empty: give at least one {kind.__name__}")
    return items


def labels_exchanged(pairs: Sequence[ContrastivePair], seed: int, index: int) -> list[ContrastivePair]:
    """The pairs with positive and negative exchanged in half of them: what is left of a direction is not the emotion.

    Args:
        pairs: at least 2, of which the smaller half is exchanged.
        seed: of the draw.
        index: which of the seed's draws.
    """

    def lot(pair: ContrastivePair) -> str:
        return hashlib.sha256(f"labels exchanged {seed} {index} {pair.id}".encode()).hexdigest()

    drawn = {pair.id for pair in sorted(pairs, key=lot)[: len(pairs) // 2]}
    return [replace(pair, positive=pair.negative, negative=pair.positive) if pair.id in drawn else pair for pair in pairs]


def digest(items: Sequence[Item]) -> str:
    """A hash of what a model would read, in order: equal texts have equal digests, wherever their file lies."""
    read = [{key: value for key, value in _content(item).items() if key not in ("category", "topic")} for item in items]
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()[:16]


def to_json_lines(items: Sequence[Item]) -> str:
    """The items as canonical JSON lines, which the loaders read back to equal items."""
    return "".join(json.dumps(_content(item), sort_keys=True, ensure_ascii=False) + "\n" for item in items)


def _content(item: Any) -> dict[str, Any]:
    """An item's keys; those of a dialogue only where it goes on, so that other prompts keep the digests that they have always had."""
    return {key: value for key, value in asdict(item).items() if value or key not in ("turns", "partner")}


def _load(path: Path, parse: Callable[[dict[str, Any]], Item]) -> list[Item]:
    items = _parse_all(_records(path), parse, lambda number: f"{path}:{number}", lambda number: f"line {number}")
    if not items:
        raise EmosteerError(f"{path}: no records; write one JSON object a line")
    return items


def _parse_all(
    records: Iterable[tuple[int, dict[str, Any]]],
    parse: Callable[[dict[str, Any]], Item],
    where: Callable[[int], str],
    earlier: Callable[[int], str],
) -> list[Item]:
    """The items of numbered records; `where` and `earlier` name a number at the beginning and inside of a message."""
    items: list[Item] = []
    seen: dict[str, int] = {}
    for number, record in records:
        try:
            item = parse(record)
        except EmosteerError as error:
            raise EmosteerError(f"{where(number)}: {error}") from None
        if item.id in seen:
            raise EmosteerError(f"{where(number)}: id {item.id!r} stands already in {earlier(seen[item.id])}; ids must differ")
        seen[item.id] = number
        items.append(item)
    return items


def _plain(record: Item | Mapping[str, Any], kind: type[Item], where: str) -> dict[str, Any]:
    if isinstance(record, kind):
        return asdict(record)
    if isinstance(record, Mapping):
        return dict(record)
    raise EmosteerError(f"{where} is {repr(record)[:60]}: give a {kind.__name__}, or a mapping with its keys")


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not splitlines(): JSON may hold U+2028 and other separators that it would split at.
    for number, line in enumerate(_text_of(path).split("\n"), 1):
        if line.strip():
            yield number, _record(path, number, line)


def _text_of(path: Path) -> str:
    """A file's text, with newlines as they are here."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise EmosteerError(f"{path}: no such file; give the path of a file of JSON lines") from None
    except OSError as error:
        raise EmosteerError(f"{path}: {error.strerror}; give the path of a file of JSON lines that can be read") from None
    except ValueError as error:  # a path with a NUL
        raise EmosteerError(f"{path}: {error}; give the path of a file of JSON lines") from None
    if len(content) > LARGEST:
        raise EmosteerError(f"{path}: more than {LARGEST:,} bytes are no file of texts; give one of JSON lines")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EmosteerError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # besides JSONDecodeError: a number of more than 4,300 digits
        raise EmosteerError(f"{path}:{number}: not a JSON object: {error}; write one a line") from None
    if not isinstance(record, dict):
        raise EmosteerError(f"{path}:{number}: expected a JSON object, found {type(record).__name__}; write one a line")
    return record


def _contrastive_pair(record: dict[str, Any]) -> ContrastivePair:
    pair = ContrastivePair(
        id=_text(record, "id"),
        positive=_text(record, "positive"),
        negative=_text(record, "negative"),
        topic=_optional_text(record, "topic"),
    )
    if pair.positive == pair.negative:
        raise EmosteerError("positive and negative are the same text")
    return pair


def _diagnostic_pair(record: dict[str, Any]) -> DiagnosticPair:
    pair = DiagnosticPair(
        id=_text(record, "id"),
        clean=_text(record, "clean"),
        corrupted=_text(record, "corrupted"),
        reply_prefix=_optional_text(record, "reply_prefix"),
        expressive=_texts(record, "expressive"),
        counterpart=_texts(record, "counterpart"),
        topic=_optional_text(record, "topic"),
    )
    if pair.clean == pair.corrupted:
        raise EmosteerError("clean and corrupted are the same text")
    return pair


def _prompt(record: dict[str, Any]) -> Prompt:
    if "text" in record and "messages" not in record:
        messages: tuple[Message, ...] = ({"role": "user", "content": _text(record, "text")},)
    else:
        messages = _messages(record)
    return Prompt(
        id=_text(record, "id"),
        text=messages[-1]["content"],
        category=_optional_text(record, "category"),
        messages=messages,
        **_going_on(record),
    )


def _going_on(record: dict[str, Any]) -> dict[str, Any]:
    """How a prompt's dialogue goes on after the first reply: by the user's turns, or a partner."""
    turns, partner = (record.get(key) or None for key in ("turns", "partner"))
    if turns is not None and partner is not None:
        raise EmosteerError("'turns' say what the user answers, and a 'partner' answers by itself: give one of them")
    if turns is not None:
        return {"turns": _texts(record, "turns")}
    if partner is None:
        return {}
    if not isinstance(partner, dict):
        raise EmosteerError(f"'partner' needs a 'system' text and a number of 'turns', found {partner!r}")
    number = partner.get("turns")
    if isinstance(number, bool) or not isinstance(number, int) or not 2 <= number <= MOST_TURNS:
        raise EmosteerError(f"the 'turns' of a 'partner' are the model's replies, 2 to {MOST_TURNS}, found {number!r}")
    return {"partner": Partner(_text(partner, "system"), number)}


def _messages(record: dict[str, Any]) -> tuple[Message, ...]:
    turns = record.get("messages")
    if not isinstance(turns, list | tuple) or not turns:
        raise EmosteerError("needs 'text' (one user turn) or 'messages' (a list of turns)")
    for turn in turns:
        if not isinstance(turn, dict) or turn.get("role") not in ("system", "user", "assistant"):
            raise EmosteerError("each of 'messages' needs a 'role' of system, user or assistant")
        _text(turn, "content")
    if turns[-1]["role"] != "user":
        raise EmosteerError("the last of 'messages' must be the user's: the reply follows it")
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in turns)


def _neutral_text(record: dict[str, Any]) -> NeutralText:
    return NeutralText(id=_text(record, "id"), text=_text(record, "text"))


def _text(record: dict[str, Any], key: str) -> str:
    if key not in record:
        raise EmosteerError(f"missing key {key!r} (has {', '.join(map(repr, record)) or 'none'})")
    value = record[key]
    if not isinstance(value, str) or not value.strip():
        raise EmosteerError(f"{key!r} must be a text that is not empty, found {value!r}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise EmosteerError(f"{key!r} holds a lone surrogate, which is no text: {value!r}")
    return value


def _optional_text(record: dict[str, Any], key: str) -> str:
    return "" if record.get(key) in (None, "") else _text(record, key)


def _texts(record: dict[str, Any], key: str) -> tuple[str, ...]:
    values = record.get(key)
    if not isinstance(values, list | tuple) or not values:
        raise EmosteerError(f"{key!r} must be a list of texts, found {values!r}")
    return tuple(_text({key: value}, key) for value in values)


_PARSERS: dict[type[Any], Callable[[dict[str, Any]], Any]] = {
    ContrastivePair: _contrastive_pair,
    DiagnosticPair: _diagnostic_pair,
    Prompt: _prompt,
    NeutralText: _neutral_text,
}
