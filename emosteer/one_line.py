"""Errors as a person reads them: one line that names the key, the value and the way out.

Hydra's and OmegaConf's own messages take several lines and speak of their internals; what they know is told here in ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigKeyError, InterpolationKeyError, OmegaConfBaseException, ValidationError

from emosteer.checks import SECRET, near, secret_refused
from emosteer.config import Config
from emosteer.errors import EmosteerError

PLUGINS = {"optuna": "optuna", "joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit"}
"""Options that a package brings, and emosteer's extra that installs it."""

FLAGS = {
    "Only one of --": ": leave out -m, for example",
    "The --resolve flag": "",
    "Expecting one subcommand": ", for example: emosteer -sc install=bash",
    "No completion plugin": "",
    "File .* does not exist!": " --experimental-rerun takes the config.pickle of Hydra's PickleJobInfoCallback",
}
"""What Hydra says of its flags, as patterns, and the way out where it names none."""

OWN_CONFIGS = re.compile(r"emosteer[./]conf\b")
CONFIG_PATH = "--config-path leaves out emosteer's own configurations: --config-dir=DIR adds yours to them"

EXPECTED = {
    "Integer": "a whole number",
    "Float": "a number",
    "bool": "true or false",
    "String": "a text",
}
"""What a type is called outside."""


def one_line(error: BaseException) -> str | None:
    """The line for a user, or None for an error that is not the user's to mend."""
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
    if type(error) is ValueError:
        text = " ".join(str(error).split())
        return next((f"{text}{remedy}" for pattern, remedy in FLAGS.items() if re.match(pattern, text)), None)
    if isinstance(error, OSError):
        return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
    return None


def _unknown_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if option in PLUGINS:
        return f"{group}={option}: its package is missing; run: pip install 'emosteer[{PLUGINS[option]}]'"
    options = sorted(error.options or ())
    return f"{group}={option}: no such option{near(option, options)}; choose one of {', '.join(options)}"


def _unparsed(error: OverrideParseException) -> str:
    reason = error.message.splitlines()[0].removeprefix("LexerNoViableAltException: ")
    return f"{error.override}: cannot be read ({reason}); quote what holds special characters: 'key=\"value\"'"


def _composition(error: HydraException) -> str:
    cause = error.__cause__ or error.__context__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else ""
    if (key := re.search(r"Could not override '([^']+)'", first)) is not None:
        return _unknown_key(key[1])
    if (override := re.match(r"Error merging override (.+)", first)) is not None and isinstance(cause, OmegaConfBaseException):
        return f"{override[1]}: {_reason(cause)}"
    if (ambiguous := re.match(r"Ambiguous value for argument '(.+)'", first)) is not None:
        key_name, _, values = ambiguous[1].partition("=")
        return f"{ambiguous[1]}: several values are a sweep: add -m; or give one list: '{key_name}=[{values}]'"
    if (sweep := re.match(r"Sweep parameters '(.+)' requires --multirun", first)) is not None:
        return f"{sweep[1]}: several values are a sweep: add -m"
    if first.endswith("INTERVAL_SWEEP"):
        return "an interval is for sweepers that search: give a list or a range, or add hydra/sweeper=optuna"
    if isinstance(error, MissingConfigException):
        return _unknown_config(lines)
    if isinstance(cause, ConfigKeyError) and (file := re.match(r"In '(.+)': ", first)) is not None:
        return _unknown_key_of_file(file[1], str(cause.full_key))
    if isinstance(cause, OmegaConfBaseException):
        return "; ".join(filter(None, [first, _value(cause)]))
    return "; ".join(lines)


def _unknown_config(lines: Sequence[str]) -> str:
    first = lines[0].rstrip(".")
    if first.startswith("Primary config directory not found"):
        return f"{first}: {lines[1].lower()}; {CONFIG_PATH}"
    if first.startswith("In ") and not OWN_CONFIGS.search(" ".join(lines)):
        return f"{first}; {CONFIG_PATH}"
    return f"{first.replace('. Check that', ': check that')} (emosteer --info searchpath shows where it is looked for)"


def _value(error: OmegaConfBaseException) -> str:
    key, value = getattr(error, "full_key", None), getattr(error, "value", None)
    subject = f"{key}={value}" if isinstance(error, ValidationError) and value is not None else key
    return f"{subject}: {_reason(error)}" if subject else _reason(error)


def _reason(error: OmegaConfBaseException) -> str:
    reason = str(error).splitlines()[0]
    if (missing := re.search(r"Missing mandatory value: (\S+)", reason)) is not None:
        return f"a value is missing; give {missing[1]}=..."
    if isinstance(error, InterpolationKeyError):
        return f"{reason}; emosteer --cfg all shows every key"
    wanted = re.search(r"could not be converted to (\w+)|is not a valid (\w+)", reason)
    kind = wanted[1] or wanted[2] if wanted else ""
    return f"give {EXPECTED[kind]}" if kind in EXPECTED else reason


def _unknown_key(key: str) -> str:
    name = key.partition("@")[0]
    if SECRET.search(name.rpartition(".")[2]):
        return secret_refused(name)
    return f"{name}: no such key{near(name, known_keys())}; emosteer --help lists all (+{name}=... adds one of your own)"


def _unknown_key_of_file(file: str, key: str) -> str:
    return (
        f"{file}.yaml: {key}: no such key{near(key, known_keys())}; emosteer --help lists all "
        f"(a file that sets keys of several groups begins with the line # @package _global_)"
    )


def known_keys(kind: type = Config, prefix: str = "") -> list[str]:
    """Every key of the schema, dotted."""
    found = []
    for field in fields(kind):
        found.append(f"{prefix}{field.name}")
        made = field.default_factory() if field.default_factory is not MISSING else None
        if is_dataclass(made):
            found += known_keys(type(made), f"{prefix}{field.name}.")
    return found
