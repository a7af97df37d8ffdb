"""The documentation site: `make docs`. It needs no network, and its output reads offline."""

import sys
from pathlib import Path

import emosteer

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_extensions"))

project = "emosteer"
author = "The emosteer authors"
copyright = "The emosteer authors, Apache-2.0"  # noqa: A001 - Sphinx's name
version = release = emosteer.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "generated", "mathml"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
# Prompts, output and continuation lines of shell examples stay behind when one is copied.
copybutton_exclude = ".linenos, .gp, .go"
highlight_language = "none"

html_theme = "furo"
html_title = f"emosteer {version}"
html_copy_source = False
html_show_sourcelink = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

nitpicky = True
# Signatures name classes of other projects, whose inventories are on the network; and type variables, which have no page.
nitpick_ignore_regex = [
    (r"py:.*", rf"{package}(\..*)?") for package in ("torch", "numpy", "pandas", "omegaconf", "transformers", "hydra")
]
