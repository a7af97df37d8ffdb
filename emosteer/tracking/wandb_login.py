"""What the user has told wandb already: by environment variables, `wandb login`, `wandb offline`. Read without importing wandb."""

from __future__ import annotations

import configparser
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from emosteer.errors import EmosteerError

AUTO, OFFLINE, ONLINE, DISABLED = "auto", "offline", "online", "disabled"
MODES = (AUTO, OFFLINE, ONLINE)
WANDB_MODES = {"offline": OFFLINE, "dryrun": OFFLINE, "disabled": DISABLED}
"""Modes of wandb's own that make emosteer do less than it was told."""
DEFAULT_SERVER = "https://api.wandb.ai"
KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
CONNECTION = (
    *KEYS,
    "WANDB_BASE_URL",
    "WANDB_APP_URL",
    "WANDB_CONFIG_DIR",
    "WANDB_CACHE_DIR",
    "WANDB_DATA_DIR",
    "WANDB_CREDENTIALS_FILE",
    "WANDB_HTTP_TIMEOUT",
    "WANDB_HTTP_PROXY",
    "WANDB_HTTPS_PROXY",
    "WANDB_INSECURE_DISABLE_SSL",
    "WANDB_ERROR_REPORTING",
)
"""Variables that say how to reach a server. All others shape a run (`WANDB_RUN_ID`, `WANDB_RESUME`, ...): ours have their shape."""


def resolve_mode(mode: str, environ: Mapping[str, str] = os.environ) -> str:
    """auto, offline, online or disabled: `tracking.mode`, unless wandb's own settings ask for less.

    Raises:
        EmosteerError: for a mode that is unknown.
    """
    if mode not in MODES:
        raise EmosteerError(f"tracking.mode={mode}: choose one of {', '.join(MODES)}")
    theirs = environ.get("WANDB_MODE") or _settings(environ).get("mode", "")
    return WANDB_MODES.get(theirs, mode)


def resolve(key: str, value: str | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """A `tracking` key, else wandb's own variable (`WANDB_PROJECT`, `WANDB_ENTITY`), else wandb's settings file."""
    return value or environ.get(f"WANDB_{key.upper()}") or _settings(environ).get(key)


def server(environ: Mapping[str, str] = os.environ) -> str:
    """The address of the server in use."""
    return environ.get("WANDB_BASE_URL") or _settings(environ).get("base_url") or DEFAULT_SERVER


def is_logged_in(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a key is configured for the server in use, in the environment or in netrc."""
    if any(environ.get(key) for key in KEYS):
        return True
    home = Path(environ.get("HOME") or Path.home())
    candidates = [Path(environ["NETRC"]).expanduser()] if environ.get("NETRC") else [home / ".netrc", home / "_netrc"]
    for path in candidates:
        try:
            found = netrc.netrc(path).authenticators(urlsplit(server(environ)).netloc)
        except (OSError, netrc.NetrcParseError):
            continue
        if found and found[2]:
            return True
    return False


def writer_environment(scratch: Path, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a process that writes offline runs: nothing of the user's wandb, and no way to a network."""
    kept = {key: value for key, value in environ.items() if not key.startswith("WANDB_")}
    # TMPDIR too: wandb moves its files into a run from there, with the group that they had.
    folders = {name: str(scratch) for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "TMPDIR")}
    return kept | folders | {"WANDB_MODE": OFFLINE, "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}


def upload_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of `wandb sync`: the user's connection, and nothing that would reshape the runs."""
    return {key: value for key, value in environ.items() if not key.startswith("WANDB_") or key in CONNECTION}


def _settings(environ: Mapping[str, str]) -> dict[str, str]:
    """What `wandb offline`, `wandb init` and `wandb login --host` have written."""
    folder = environ.get("WANDB_CONFIG_DIR") or Path(environ.get("HOME") or Path.home()) / ".config" / "wandb"
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(Path(folder).expanduser() / "settings", encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return {}
    return dict(parser["default"]) if parser.has_section("default") else {}
