"""Errors as a person reads them: one line that names the key, the value and the way out.

Hydra's and OmegaConf's own messages take several lines and speak of their internals; what they know is told here in ours.
"""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException, ValidationError

from emosteer.checks import SECRET, secret_refused
from emosteer.config import Config
from emosteer.errors import EmosteerError

PLUGINS = {"optuna": "optuna", "joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit"}
"""Options that a package brings, and emosteer's extra that installs it."""

EXPECTED = {
    "Integer": "a whole number",
    "Float": "a number",
    "Boolean": "true or false",
    "String": "a text",
}
"""What a type is called outside."""


REASONS = {
    r"is not a valid bool": "give true or false",
    r"does not support deletion": "cannot be deleted; give it a value instead",
    r"is not Optional$": "give a value other than null",
    r"is not a ListConfig, list or tuple": "give a list, such as [a,b]",
    r"Merge error: (\w+) is not a subclass": "a {0} where keys with their values are expected",
    r"Interpolation key '(.*)' not found": "${{{0}}} refers to no key; give a value, or the name of a key",
    r"Unsupported interpolation type (.*)": "${{{0}:...}} is no resolver; give a value",
    r"Recursive interpolation detected": "its interpolation comes back to itself; give a value",
    r"Environment variable '(.*)' not found": "the environment variable {0} is not set; export it, or give a value",
}
"""OmegaConf's reasons, and what is told of them."""

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
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _unknown_option(error)
    if isinstance(error, OverrideParseException):
        return _unparsed(error)
    if isinstance(error, HydraException):
        return _composition(error)
    if isinstance(error, OmegaConfBaseException):
        return _value(error)
    return _built_in(error)


def _built_in(error: BaseException) -> str | None:
    """Of Python's own errors, the few that are the user's to mend."""
    if (file := _configuration_file(error)) is not None:
        return _broken_file(error, file)
    if isinstance(error, RecursionError) and _passed(error, "hydra/_internal/defaults_list.py"):
        return "a defaults list comes back to its own file: take it out of there"
    if isinstance(error, RecursionError) and _passed(error, "omegaconf/"):
        return "a value is nested too deeply to be read: give it flat"
    if isinstance(error, ValueError) and str(error).startswith("Config group override must be a string"):
        return "a group (model, pair, generation, ...) takes the name of one of its options, not a number: emosteer --help lists them"
    if isinstance(error, ValueError) and str(error).startswith("Exceeds the limit"):
        return "a number has more digits than Python reads: give one of fewer than 4,300"
    if isinstance(error, ValueError) and str(error).startswith(("Only one of --", "The --resolve flag")):
        return f"{error}: leave out -m, for example"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
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


def _in_file(file: str, lines: Sequence[str]) -> str:
    """What is wrong in a configuration file that was read: Hydra's lines say it, one of them with the key."""
    keys = [line.removeprefix("full_key:").strip() for line in lines if line.startswith("full_key:")]
    key, reason = keys[0] if keys else "", lines[0].partition("full_key:")[0].strip()
    if reason.startswith("Key "):
        return f"{file}.yaml: {_unknown_key(key)}"
    return f"{file}.yaml: {f'{key}: ' if key else ''}{_translated(reason)}"


def _unknown_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if option in PLUGINS:
        return f"{group}={option}: its package is missing; run: pip install 'emosteer[{PLUGINS[option]}]'"
    options = sorted(error.options or ())
    return f"{group}={option}: no such option{_near(option, options)}; choose one of {', '.join(options)}"


def _unparsed(error: OverrideParseException) -> str:
    reason = error.message.splitlines()[0].removeprefix("LexerNoViableAltException: ").partition(" expecting {")[0]
    why = "" if reason.startswith("Error parsing override") or reason == error.override else f" ({reason})"
    return f"{error.override}: cannot be read{why}; quote what holds special characters: 'key=\"value\"'"


def _composition(error: HydraException) -> str:
    cause = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else ""
    if (told := _wrong_override(first, cause) or _misplaced_sweep(first)) is not None:
        return told
    if (inside := re.match(r"In '(.+)': \w+ raised while composing config", first)) is not None and len(lines) > 1:
        return _in_file(inside[1], lines[1:])
    if isinstance(error, MissingConfigException) and first.startswith("Cannot find primary config"):
        return first.replace(". Check that", ": check that")
    if isinstance(cause, OmegaConfBaseException):
        return "; ".join(filter(None, [first, _value(cause)]))
    return "; ".join(lines)


def _wrong_override(first: str, cause: BaseException | None) -> str | None:
    if (key := re.search(r"Could not override '([^']+)'", first)) is not None:
        return _unknown_key(str(getattr(cause, "full_key", None) or key[1]))
    if (deleted := re.search(r"Could not delete from config\. '([^']+)'", first)) is not None:
        return f"~{deleted[1]}: no such key{_near(deleted[1], known_keys())}; emosteer --help lists all"
    if (twice := re.match(r"Multiple values for (\S+)\.", first)) is not None:
        return f"+{twice[1]}: there is one already; leave out the +"
    if (override := re.match(r"Error merging override (.+)", first)) is not None and isinstance(cause, OmegaConfBaseException):
        return f"{override[1]}: {_reason(cause)}"
    return None


def _misplaced_sweep(first: str) -> str | None:
    if (ambiguous := re.match(r"Ambiguous value for argument '(.+)'", first)) is not None:
        key_name, _, values = ambiguous[1].partition("=")
        return f"{ambiguous[1]}: several values are a sweep: add -m; or give one list: '{key_name}=[{values}]'"
    if (sweep := re.match(r"Sweep parameters '(.+)' requires --multirun", first)) is not None:
        return f"{sweep[1]}: several values are a sweep: add -m"
    if first.endswith("INTERVAL_SWEEP"):
        return "an interval is for sweepers that search: give a list or a range, or add hydra/sweeper=optuna"
    return None


def _value(error: OmegaConfBaseException) -> str:
    key, value = getattr(error, "full_key", None), getattr(error, "value", None)
    subject = f"{key}={value}" if isinstance(error, ValidationError) and value is not None else key
    return f"{subject}: {_reason(error)}" if subject else _reason(error)


def _reason(error: OmegaConfBaseException) -> str:
    return _translated(str(error).splitlines()[0])


def _translated(reason: str) -> str:
    if (missing := re.search(r"[Mm]issing mandatory value: (\S+)", reason)) is not None:
        return f"a value is missing; give {missing[1]}=..."
    for part, told in REASONS.items():
        if (found := re.search(part, reason)) is not None:
            return told.format(*found.groups())
    if reason.startswith("Cannot convert ") and " to string" in reason:
        return f"give {EXPECTED['String']}"
    wanted = re.search(r"could not be converted to (\w+)", reason)
    return f"give {EXPECTED[wanted[1]]}" if wanted and wanted[1] in EXPECTED else reason.partition(" expecting {")[0]


def _unknown_key(key: str) -> str:
    name = key.partition("@")[0]
    if SECRET.search(name.rpartition(".")[2]):
        return secret_refused(name)
    if name in known_keys():
        return f"{key}: cannot be overridden so; emosteer --help shows how to choose an option of {name}"
    return f"{name}: no such key{_near(name, known_keys())}; emosteer --help lists all (+{name}=... adds one of your own)"


def _near(given: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def known_keys(kind: type = Config, prefix: str = "") -> list[str]:
    """Every key of the schema, dotted."""
    found = []
    for field in fields(kind):
        found.append(f"{prefix}{field.name}")
        made = field.default_factory() if field.default_factory is not MISSING else None
        if is_dataclass(made):
            found += known_keys(type(made), f"{prefix}{field.name}.")
    return found
