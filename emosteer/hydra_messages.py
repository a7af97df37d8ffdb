"""What Hydra and OmegaConf say in several lines, and of their internals, told in one line of ours: key, value, and the way out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException, ValidationError

from emosteer.checks import SECRET, near, secret_refused
from emosteer.config import Config

PLUGINS = {"optuna": "optuna", "joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit"}
"""Options that a package brings, and emosteer's extra that installs it."""

OWN_CONFIGS = re.compile(r"emosteer[./]conf\b")
CONFIG_PATH = "--config-path leaves out emosteer's own configurations: --config-dir=DIR adds yours to them"
GLOBAL_FILE = "a file that sets keys of several groups begins with the line # @package _global_"

EXPECTED = {
    "Integer": "a whole number",
    "Float": "a number",
    "Boolean": "true or false",
    "String": "a text",
}
"""What a type is called outside."""

REASONS = {
    r"[Mm]issing mandatory value: (\S+)": "a value is missing; give {0}=...",
    r"is not a valid bool": "give true or false",
    r"does not support deletion": "cannot be deleted; give it a value instead",
    r"is not Optional$": "give a value other than null",
    r"is not a ListConfig, list or tuple": "give a list, such as [a,b]",
    r"Merge error: (\w+) is not a subclass": "a {0} where keys with their values are expected",
    r"Interpolation key '(.*)' not found": "${{{0}}} refers to no key; emosteer --cfg all shows every key",
    r"Unsupported interpolation type (.*)": "${{{0}:...}} is no resolver; give a value",
    r"Recursive interpolation detected": "its interpolation comes back to itself; give a value",
    r"Environment variable '(.*)' not found": "the environment variable {0} is not set; export it, or give a value",
}
"""OmegaConf's reasons, as patterns, and what is told of them."""


def told_by_hydra(error: HydraException) -> str:
    """The line for what Hydra raised; it may still hold what a terminal would act on."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _unknown_option(error)
    if isinstance(error, OverrideParseException):
        return _unparsed(error)
    return _composition(error)


def told_by_omegaconf(error: OmegaConfBaseException) -> str:
    """The line for what OmegaConf raised; it may still hold what a terminal would act on."""
    key, value = getattr(error, "full_key", None), getattr(error, "value", None)
    subject = f"{key}={value}" if isinstance(error, ValidationError) and value is not None else key
    reason = _translated(str(error).splitlines()[0])
    return f"{subject}: {reason}" if subject else reason


def known_keys(kind: type = Config, prefix: str = "") -> list[str]:
    """Every key of the schema, dotted."""
    found = []
    for field in fields(kind):
        found.append(f"{prefix}{field.name}")
        made = field.default_factory() if field.default_factory is not MISSING else None
        if is_dataclass(made):
            found += known_keys(type(made), f"{prefix}{field.name}.")
    return found


def _unknown_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if option in PLUGINS:
        return f"{group}={option}: its package is missing; run: pip install 'emosteer[{PLUGINS[option]}]'"
    options = sorted(error.options or ())
    return f"{group}={option}: no such option{near(option, options)}; choose one of {', '.join(options)}"


def _unparsed(error: OverrideParseException) -> str:
    if "=" not in error.override:
        return f"{error.override}: no override; give key=value (emosteer --help lists keys and options)"
    reason = error.message.splitlines()[0].removeprefix("LexerNoViableAltException: ").partition(" expecting {")[0]
    why = "" if reason.startswith("Error parsing override") or reason == error.override else f" ({reason})"
    return f"{error.override}: cannot be read{why}; quote what holds special characters: 'key=\"value\"'"


def _composition(error: HydraException) -> str:
    cause = error.__cause__ or error.__context__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else ""
    if (told := _wrong_override(first, cause) or _misplaced_sweep(first)) is not None:
        return told
    if (inside := re.match(r"In '(.+)': \w+ raised while composing config", first)) is not None and len(lines) > 1:
        return _in_file(inside[1], lines[1:])
    if isinstance(error, MissingConfigException):
        return _unknown_config(lines)
    if isinstance(cause, OmegaConfBaseException):
        return "; ".join(filter(None, [first, told_by_omegaconf(cause)]))
    return "; ".join(lines)


def _wrong_override(first: str, cause: BaseException | None) -> str | None:
    if (key := re.search(r"Could not override '([^']+)'", first)) is not None:
        return _unknown_key(str(getattr(cause, "full_key", None) or key[1]))
    if (deleted := re.search(r"Could not delete from config\. '([^']+)'", first)) is not None:
        return f"~{deleted[1]}: no such key{near(deleted[1], known_keys())}; emosteer --help lists all"
    if (twice := re.match(r"Multiple values for (\S+)\.", first)) is not None:
        return f"+{twice[1]}: there is one already; leave out the +"
    if (override := re.match(r"Error merging override (.+)", first)) is not None and isinstance(cause, OmegaConfBaseException):
        return f"{override[1]}: {_translated(str(cause).splitlines()[0])}"
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


def _in_file(file: str, lines: Sequence[str]) -> str:
    """What is wrong in a configuration file that was read: Hydra's lines say it, one of them with the key."""
    keys = [line.removeprefix("full_key:").strip() for line in lines if line.startswith("full_key:")]
    key, reason = keys[0] if keys else "", lines[0].partition("full_key:")[0].strip()
    if reason.startswith("Key "):
        return f"{file}.yaml: {_unknown_key(key, GLOBAL_FILE)}"
    return f"{file}.yaml: {f'{key}: ' if key else ''}{_translated(reason)}"


def _unknown_config(lines: Sequence[str]) -> str:
    first = lines[0].rstrip(".")
    if first.startswith("Primary config directory not found"):
        return f"{first}: {lines[1].lower()}; {CONFIG_PATH}"
    if first.startswith("In ") and not OWN_CONFIGS.search(" ".join(lines)):
        return f"{first}; {CONFIG_PATH}"
    return f"{first.replace('. Check that', ': check that')} (emosteer --info searchpath shows where it is looked for)"


def _unknown_key(key: str, remedy: str = "") -> str:
    name = key.partition("@")[0]
    if SECRET.search(name.rpartition(".")[2]):
        return secret_refused(name)
    if name in known_keys():
        return f"{key}: cannot be overridden so; emosteer --help shows how to choose an option of {name}"
    remedy = remedy or f"+{name}=... adds one of your own"
    return f"{name}: no such key{near(name, known_keys())}; emosteer --help lists all ({remedy})"


def _translated(reason: str) -> str:
    for part, told in REASONS.items():
        if (found := re.search(part, reason)) is not None:
            return told.format(*found.groups())
    if reason.startswith("Cannot convert ") and " to string" in reason:
        return f"give {EXPECTED['String']}"
    wanted = re.search(r"could not be converted to (\w+)", reason)
    return f"give {EXPECTED[wanted[1]]}" if wanted and wanted[1] in EXPECTED else reason.partition(" expecting {")[0]
