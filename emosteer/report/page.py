"""Puts `report.html` together: one file without a network, in which nothing that a model or a user wrote can run.

Texts enter the page in two ways: escaped by the template, or compressed as JSON, which the script puts into the page as text alone.
The Content-Security-Policy lets two scripts run, ours and plotly's, each by the hash of its text, and forbids every connection.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from emosteer.caveats import nrc_options
from emosteer.records.publish import publish_file
from emosteer.records.sweep import Sweep
from emosteer.report.agreed import agreed
from emosteer.report.answers import RULES, answers
from emosteer.report.by_turn import by_turn, turn_numbers
from emosteer.report.grid import grid
from emosteer.report.locus import loci
from emosteer.report.making import making
from emosteer.report.predicted import predicted
from emosteer.report.replies import MOST_REPLIES, replies
from emosteer.report.words import visible
from emosteer.tables import Tables

HERE = Path(__file__).parent
COMPRESSION = 6


def write_report(sweep: Sweep, tables: Tables) -> None:
    """Put `report.html` into a sweep's directory."""
    publish_file(sweep.paths.report, render(sweep, tables))


def render(sweep: Sweep, tables: Tables, most_replies: int = MOST_REPLIES) -> bytes:
    """The page, in UTF-8.

    Args:
        sweep: which one; a half-done one too.
        tables: what it comes to.
        most_replies: so many replies are put into the page; it says what is left out.
    """
    kept = replies(tables, _lemmatises(sweep), most_replies)
    attributions = loci(sweep.store, tables)
    found = answers(tables)
    script, style, library = _own("page.js"), _own("page.css"), _plotly()[0]
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(
            name=sweep.name,
            answers=found,
            rules=RULES,
            making=making(sweep, tables),
            dialogues=by_turn(tables, found),
            attributions=attributions,
            predicted=predicted(tables),
            agreed=agreed(tables),
            cut=kept["cut"],
            plotly=version("plotly"),
            policy=_policy(script, library),
            script=script,
            style=style,
            library=_plotly()[1],
            grid=_packed(grid(tables)),
            turns=_packed(turn_numbers(tables)),
            loci=_packed(attributions),
            replies=_packed(kept),
        )
    )
    return page.encode("utf-8", "replace")


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["visible"] = visible
    return environment


def _own(name: str) -> str:
    """A file of ours, as it will stand between its tags."""
    return "\n" + (HERE / name).read_text(encoding="utf-8").strip() + "\n"


@lru_cache(maxsize=1)
def _plotly() -> tuple[str, str]:
    """The script of plotly, and the same compressed. Found, not imported: the script is all that is wanted of the package."""
    spec = find_spec("plotly")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the report's charts are drawn by plotly, which is missing: pip install plotly")
    text = Path(spec.submodule_search_locations[0], "package_data", "plotly.min.js").read_text(encoding="utf-8")
    return text, _compressed(text)


def _policy(*scripts: str) -> str:
    """What the browser lets the page do: run these scripts, style itself, show pictures that it made."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts)
    # plotly sets styles on its elements; a style cannot reach anything, since nothing may be loaded.
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )


def _packed(data: Any) -> str:
    return _compressed(json.dumps(data, separators=(",", ":"), allow_nan=False))


def _compressed(text: str) -> str:
    """Text by gzip in base 64, which has no character that means anything to a browser; the same text gives the same bytes."""
    return base64.b64encode(gzip.compress(text.encode(), COMPRESSION, mtime=0)).decode()


def _lemmatises(sweep: Sweep) -> bool:
    """Whether the sweep's scorer of NRC emotions looks up lemmas."""
    return bool((nrc_options(sweep.settings()["scorers"]) or {}).get("lemmatise", True))
