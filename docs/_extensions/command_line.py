"""What the two commands say of themselves, as Markdown."""

from __future__ import annotations

import typer
from configuration import CONF
from omegaconf import OmegaConf
from typer.cli import get_docs_for_click

from emosteer.sweep_cli import app


def knobs() -> str:
    """The beginning of `emosteer --help`."""
    help_page = OmegaConf.load(CONF / "hydra" / "help" / "emosteer.yaml")
    return f"```text\n{help_page.header.strip()}\n```"


def sweep_commands() -> str:
    """Every command of `emosteer-sweep` with its arguments and options, a section each."""
    command, name = typer.main.get_command(app), "emosteer-sweep"
    page = str(get_docs_for_click(obj=command, ctx=typer.Context(command, info_name=name), name=name))
    # What stands before the first command repeats the page's own beginning.
    return page[page.index("\n## ") :].strip()
