"""Where in a model an emotional expression is decided: attribution patching, and exact patching to check it."""

from emosteer.attribution.case import Case, prepare
from emosteer.attribution.gradient import attribute
from emosteer.attribution.scores import Attribution

__all__ = ["Attribution", "Case", "attribute", "prepare"]
