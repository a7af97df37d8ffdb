"""What emosteer raises when the user can mend it."""


class EmosteerError(ValueError):
    """A wrong value or file. The message names the thing, the value, and the way out, in one line where it can."""


class Interrupted(Exception):  # noqa: N818 - a signal, not an error
    """The user stopped the work; what is published is kept."""
