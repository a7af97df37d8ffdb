"""Pages that are made of the code when the site is built, so that they cannot disagree with it.

A page says where: a line `<!-- generated: NAME -->` is replaced by what the function of that name returns, in Markdown.
"""

import re

from command_line import knobs, sweep_commands
from configuration import configuration, slurm_options
from public_api import public_api
from sphinx.application import Sphinx

MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
MAKERS = {
    "configuration": configuration,
    "knobs": knobs,
    "public_api": public_api,
    "slurm_options": slurm_options,
    "sweep_commands": sweep_commands,
}


def fill_in(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace the marks of a page; an unknown name raises KeyError."""
    source[0] = MARK.sub(lambda mark: MAKERS[mark[1]](), source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Have pages filled in as they are read."""
    app.connect("source-read", fill_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
