"""What the two commands say of themselves, as Markdown."""

from __future__ import annotations

import re

import typer
from configuration import CONF
from omegaconf import OmegaConf
from typer.cli import get_docs_for_click

from emosteer.sweep_cli import app

AS_IT_IS = re.compile(r"\x08\n(.*?)\n\n", re.DOTALL)
"""A paragraph whose lines stay as they are, as click marks it."""


def knobs() -> str:
    """The beginning of `emosteer --help`."""
    help_page = OmegaConf.load(CONF / "hydra" / "help" / "emosteer.yaml")
    return f"```text\n{help_page.header.strip()}\n```"


def sweep_commands() -> str:
    """What `emosteer-sweep --help` says, then every command with its arguments and options, a section each."""
    command, name = typer.main.get_command(app), "emosteer-sweep"
    page = str(get_docs_for_click(obj=command, ctx=typer.Context(command, info_name=name), name=name))
    introduction, _, _ = page.partition("**Commands**")
    # Without its title, which the page has already, and without the list of the sections that follow.
    return AS_IT_IS.sub(r"```text\n\1\n```\n\n", introduction.partition("\n")[2] + page[page.index("\n## ") :]).strip()
