"""What emosteer raises when the user can mend it."""


class EmosteerError(ValueError):
    """A wrong value or file. The message names the thing, the value, and the way out, in one line where it can."""


class Unwritable(OSError, EmosteerError):  # noqa: N818 - what it says of the disk
    """A disk that is full, read-only or away: no fault of the cell that was at work, and never recorded as its failure."""


class Damaged(EmosteerError):  # noqa: N818 - what it says of the file
    """A file of ours that is no longer what was written. It has been put aside by the time that this is raised."""


class MachineFault(EmosteerError):  # noqa: N818 - whose fault it is
    """A machine that cannot go on: a GPU that is gone, a model that it alone cannot load. No fault of the cell that was at work."""
