"""Errors as a person reads them: one line that names the key, the value and the way out."""

from __future__ import annotations

import re
import traceback

import yaml
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from emosteer.errors import EmosteerError
from emosteer.hydra_messages import told_by_hydra, told_by_omegaconf

VALUE_ERRORS = {
    "Only one of --": "{}: leave out -m, for example",
    "The --resolve flag": "{}",
    "Expecting one subcommand": "{}, for example: emosteer -sc install=bash",
    "No completion plugin": "{}",
    "File .* does not exist!": "{} --experimental-rerun takes the config.pickle of Hydra's PickleJobInfoCallback",
    "Config group override must be a string": "a group takes the name of an option, not a number: emosteer --help lists them",
    "Exceeds the limit .* for integer string": "a number has more digits than Python reads: give one of fewer than 4,300",
}
"""What Hydra and Python say in a ValueError of what the user typed, as patterns, and what is told of it."""

LONGEST = 300
"""Characters of a line."""


def one_line(error: BaseException) -> str | None:
    """The line for a user, or None for an error that is not the user's to mend."""
    line = _told(error)
    return None if line is None else printable(line)


def printable(text: str) -> str:
    """A text as one line that a terminal shows as it is: what would move its cursor is escaped, and the middle of much left out."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    half = LONGEST // 2 - 3
    return line if len(line) <= LONGEST else f"{line[:half]} ... {line[-half:]}"


def _told(error: BaseException) -> str | None:
    if isinstance(error, EmosteerError):
        return str(error)
    if isinstance(error, HydraException):
        return told_by_hydra(error)
    if isinstance(error, OmegaConfBaseException):
        return told_by_omegaconf(error)
    if (file := _configuration_file(error)) is not None:
        return _broken_file(error, file)
    if isinstance(error, RecursionError) and _passed(error, "hydra/_internal/defaults_list.py"):
        return "a defaults list comes back to its own file: take it out of there"
    if isinstance(error, RecursionError) and _passed(error, "omegaconf/"):
        return "a value is nested too deeply to be read: give it flat"
    if type(error) is ValueError:
        text = " ".join(str(error).split())
        return next((told.format(text) for pattern, told in VALUE_ERRORS.items() if re.match(pattern, text)), None)
    if isinstance(error, OSError):
        return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
    return None


def _passed(error: BaseException, path: str) -> bool:
    """Whether an error came out of a source file, or one of a directory."""
    return any(path in frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))


def _configuration_file(error: BaseException) -> str | None:
    """The user's configuration file that Hydra was reading; neither it nor YAML always says which."""
    if not isinstance(error, yaml.YAMLError | UnicodeDecodeError):
        return None
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    files = [frame.f_locals.get("full_path") for frame in frames if frame.f_code.co_filename.endswith("config_source.py")]
    return str(files[-1]) if files else None


def _broken_file(error: BaseException, file: str) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"{file}: not UTF-8 (byte {error.start}); save the file as UTF-8"
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or getattr(error, "reason", "unreadable")
    where = f":{mark.line + 1}" if mark else ""
    return f"{file}{where}: not YAML that emosteer reads ({problem}); mend it there"
