"""The repository's Markdown as its tests read it: files, commands and links in it, and what Hydra makes of the commands."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from markdown_it import MarkdownIt
from markdown_it.token import Token
from omegaconf import DictConfig

from emosteer.config import register

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "emosteer" / "data" / "DATASHEET.md"])
COMMAND = re.compile(r"\s*(?:\w+=\S+ )*(emosteer(?:-sweep)?(?: |$))")
PLACEHOLDER = re.compile(r"\.\.\.|[<>]|\b[A-Z_]{3,}\b")
"""What a command has that shows a form and is none to type."""

MOST_JOBS = 6


@dataclass(frozen=True)
class Command:
    """A command that a page shows: its words, without variables set before it and comments behind it."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def tokens(page: Path) -> Iterator[Token]:
    """All Markdown tokens of a page, those inside lines of text too."""
    for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
        yield token
        yield from token.children or ()


def commands(page: Path) -> list[Command]:
    """Every command of ours in blocks and in the text of a page, in order, each once."""
    found = [words for token in tokens(page) for line in _lines(token) if (words := _command(line))]
    return [Command(page.relative_to(ROOT).as_posix(), words) for words in dict.fromkeys(found)]


def write_example_files(page: Path, directory: Path) -> None:
    """Write the files that a page shows: blocks with a file's name behind their language."""
    for token in tokens(page):
        if token.type == "fence" and len(words := token.info.split()) == 2:
            path = directory / words[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(token.content, encoding="utf-8")


def links(page: Path) -> list[str]:
    """Where links and images of a page point, those to the web left out."""
    targets = (str(token.attrs.get("href") or token.attrs.get("src") or "") for token in tokens(page))
    return [target for target in targets if target and not target.startswith(("http://", "https://", "mailto:"))]


def anchors(page: Path) -> set[str]:
    """What a link can name in a page: its headings, as GitHub and MyST write them."""
    every = list(tokens(page))
    headings = [inline.content for opening, inline in itertools.pairwise(every) if opening.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def jobs(command: Command, *more: str) -> list[DictConfig]:
    """What Hydra composes for a command and `more` overrides, without its own part.

    Of a sweep as many jobs as show every value of every axis; of many such jobs the first and the last.
    """
    register()
    given = get_args_parser().parse_args([*command.words[1:], *more])
    name = given.config_name or "config"
    # The same search path as --config-dir makes.
    own = [f"hydra.searchpath=[file://{Path(given.config_dir).absolute()}]"] if given.config_dir else []
    with initialize_config_module("emosteer.conf", version_base="1.3"):
        if not given.multirun:
            return [compose(name, own + given.overrides)]
        axes = list(_axes(name, own, given.overrides))
        shown = axes if len(axes) <= MOST_JOBS else [*axes[: MOST_JOBS // 2], *axes[-MOST_JOBS // 2 :]]
        return [compose(name, own + overrides) for overrides in shown]


def _axes(name: str, own: list[str], overrides: list[str]) -> Iterator[list[str]]:
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    plain = [one.input_line for one in parser.parse_overrides(overrides) if not one.is_sweep_override()]
    sweeper = compose(name, own + plain, return_hydra_config=True).hydra.sweeper
    if not sweeper._target_.endswith(("GridSweeper", "BasicSweeper")):
        yield plain  # one that searches draws the values itself
        return
    declared = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    seen: set[str] = set()
    for job in BasicSweeper.split_arguments(parser.parse_overrides(declared + overrides), max_batch_size=None)[0]:
        if not seen.issuperset(job):
            seen.update(job)
            yield job


def _lines(token: Token) -> list[str]:
    if token.type not in ("fence", "code_block", "code_inline"):
        return []
    return token.content.replace("\\\n", " ").splitlines()


def _command(line: str) -> tuple[str, ...]:
    if not (match := COMMAND.match(line)):
        return ()
    words = shlex.split(line[match.start(1) :], comments=True)
    return () if any(map(PLACEHOLDER.search, words)) else tuple(words)
