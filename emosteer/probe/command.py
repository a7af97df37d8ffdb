"""What `probe=true` prints, and keeps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from emosteer.config import Config
from emosteer.errors import EmosteerError
from emosteer.model.language_model import LanguageModel, load
from emosteer.probe.checks import LOW, RIGHT, UNKNOWN, WRONG, Finding, probe
from emosteer.records.publish import publish_json

FILE = "probe.json"
STYLES = {RIGHT: "green", LOW: "yellow", UNKNOWN: "yellow", WRONG: "bold red"}
INDENT = 25


def run(config: Config, overrides: Sequence[str], directory: Path) -> None:
    """Check the configured model; print each finding as it comes, and keep all in a directory.

    Args:
        config: its model and pair are taken.
        overrides: what was typed, for the sweep that is suggested.
        directory: gets `probe.json`.

    Raises:
        EmosteerError: a model that cannot be loaded, or one of which a check came out wrong.
    """
    console = Console(highlight=False, soft_wrap=True)
    began = time.monotonic()
    findings: list[Finding] = []
    with console.status("loading the model") as status:
        model = load(config.model)
        console.print(f"{_heading(model)}; loaded in {time.monotonic() - began:.0f} s")
        for finding in probe(model, config.pair, status.update):
            findings.append(finding)
            console.print(_lines(finding))
    command = suggested(overrides, findings[-1].numbers)
    path = directory / FILE
    publish_json(path, to_json(model, findings, command))
    console.print(f"\n{time.monotonic() - began:.0f} seconds; {path}")
    if wrong := [finding.name for finding in findings if finding.verdict == WRONG]:
        raise EmosteerError(
            f"{', '.join(wrong)}: what emosteer measures on {model.name} can't be trusted; please open an issue with {path}"
        )
    console.print(f"A sweep to begin with:\n  {command}" if command else "No strength is known at which this model stays readable.")


def to_json(model: LanguageModel, findings: Sequence[Finding], command: str) -> dict[str, Any]:
    """What `probe.json` holds."""
    facts = {"name": model.name, "blocks": model.n_blocks, "width": model.width, "dtype": _dtype(model), "device": str(model.device)}
    return {"model": facts, "findings": [asdict(finding) for finding in findings], "suggested": command}


def suggested(overrides: Sequence[str], axes: dict[str, Any]) -> str:
    """The command of a sweep over the axes that `strength` found, with what a probe's command chose; "" without axes."""
    if not axes.get("coefficients"):
        return ""
    kept = [part for part in overrides if part.split("=")[0].lstrip("+") not in ("probe", "layer", "coefficient")]
    swept = {"layer": axes["layers"], "coefficient": axes["coefficients"]}
    return " ".join(["emosteer -m", *kept, *(f"{key}={','.join(map(str, values))}" for key, values in swept.items())])


def _heading(model: LanguageModel) -> str:
    context = f", context {model.context:,}" if model.context else ""
    return f"{model.name}: {model.model.num_parameters() / 1e6:,.0f} million parameters{context}, {_dtype(model)} on {model.device}"


def _dtype(model: LanguageModel) -> str:
    return str(model.dtype).removeprefix("torch.")


def _lines(finding: Finding) -> Text:
    first, *rest = finding.text.splitlines()
    text = Text(f"{finding.name:12}").append(f"{finding.verdict:{INDENT - 12}}", style=STYLES[finding.verdict]).append(first)
    for line in rest:
        text.append(f"\n{'':{INDENT}}{line}")
    return text
