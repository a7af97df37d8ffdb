"""The documentation site: `make docs`. It needs no network, and its output reads offline."""

import sys
from pathlib import Path
from typing import Any

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

import emosteer

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "emosteer"
author = "The emosteer authors"
copyright = "The emosteer authors, Apache-2.0"  # noqa: A001 - Sphinx's name
version = release = emosteer.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "generated", "mathml"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
highlight_language = "none"
# `--json` is no dash.
smartquotes = False

html_theme = "furo"
html_title = f"emosteer {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False

default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True

nitpicky = True
nitpick_ignore_regex = [
    # Other projects: their inventories are on the network.
    (r"py:.*", r"(collections|pathlib|typing|torch|numpy|pandas|transformers|PreTrained\w+|ArrayLike|FloatArray|Tensor)\b.*"),
    # Aliases and type variables, which Sphinx looks for among the classes.
    (r"py:class", r"(.*\.)?(Flags|Generation|Item|_Scorer|Scores|Seed|Message|Method|Text)"),
    # Named without its module where a signature cannot be evaluated.
    (r"py:class", r"ModelConfig|Engine"),
]


def google_sections(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Read docstrings in Google's style; not those of attributes, where napoleon takes what stands before a colon for a type."""
    if what not in ("attribute", "property", "data"):
        lines[:] = GoogleDocstring(lines, Config(napoleon_use_rtype=False), app, what, name, obj, options).lines()


def setup(app: Sphinx) -> None:
    """What no setting does."""
    app.connect("autodoc-process-docstring", google_sections)
    # A shell's lexer takes `key=value` for an assignment, the first of a line only.
    app.add_lexer("shell", TextLexer)
