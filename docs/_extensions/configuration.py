"""The configuration reference: every key of the schema and every option of every group, as Markdown."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from sphinx.pycode import ModuleAnalyzer

import emosteer.config
from emosteer.config import Config, register
from emosteer.slurm.options import SlurmOptions

CONF = Path(emosteer.config.__file__).parent / "conf"
COMMAND = re.compile(r"\bemosteer (?=(-m )?\S+=).*")


@dataclasses.dataclass(frozen=True)
class Key:
    """One key, as a user writes it."""

    name: str
    type: str
    description: str


def configuration() -> str:
    """The whole reference: the keys of a cell, then group by group."""
    defaults, schemas = default_configuration(), groups()
    sections = ["## The cell and its sweep", _table(keys(Config), defaults)]
    for group in [*schemas, *(group for group in option_groups() if group not in schemas)]:
        sections.append(f"## {group}")
        if schema := schemas.get(group):
            sections += [_first_paragraph(schema), _table(keys(schema, f"{group}."), defaults)]
        sections += _options(group)
    return "\n\n".join(sections)


def slurm_options() -> str:
    """The keys of `hydra/launcher=slurm`."""
    defaults = OmegaConf.create({"hydra": {"launcher": OmegaConf.structured(SlurmOptions)}})
    return _table(keys(SlurmOptions, "hydra.launcher."), defaults)


def default_configuration() -> DictConfig:
    """What `emosteer` without arguments composes."""
    register()
    with initialize_config_module("emosteer.conf", version_base="1.3"):
        return compose("config")


def groups() -> dict[str, type]:
    """Group -> its dataclass, in the order of `Config`."""
    schema = Config()
    values = {f.name: getattr(schema, f.name) for f in dataclasses.fields(schema)}
    return {name: type(value) for name, value in values.items() if dataclasses.is_dataclass(value)}


def option_groups() -> list[str]:
    """Groups with options to choose from: the folders of emosteer/conf, but for those of Hydra's own groups."""
    return sorted(folder.name for folder in CONF.iterdir() if any(folder.glob("*.yaml")))


def keys(schema: type, prefix: str = "") -> Iterator[Key]:
    """The keys of a dataclass; of `Config` those that are no group with a dataclass of its own."""
    for f in dataclasses.fields(schema):
        if schema is not Config or f.name not in groups():
            yield Key(f"{prefix}{f.name}", str(f.type), _descriptions().get((schema.__name__, f.name), ""))


@cache
def _descriptions() -> dict[tuple[str, str], str]:
    """(class, attribute) -> the docstring that stands below the attribute, in emosteer/config.py and emosteer/slurm/options.py."""
    modules = (emosteer.config.__name__, SlurmOptions.__module__)
    documented = [ModuleAnalyzer.for_module(module).find_attr_docs().items() for module in modules]
    return {attribute: " ".join(lines).strip() for found in documented for attribute, lines in found}


def _first_paragraph(schema: type) -> str:
    return str(schema.__doc__).split("\n\n")[0]


def _table(rows: Iterable[Key], defaults: DictConfig) -> str:
    lines = ["| key | type | default | what it is |", "|---|---|---|---|"]
    for key in rows:
        # Not resolved: a default such as ${pair.target} says more than what it comes to.
        default = OmegaConf.to_container(defaults, resolve=False)
        for part in key.name.split("."):
            default = default[part]  # type: ignore[index, call-overload]
        columns = (_code(key.name), _code(key.type.replace("| None", "or null")), _code(_shown(default)), _cell(key.description))
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def _options(group: str) -> list[str]:
    """A table where all options are short lists of plain values; else their files, as they are."""
    files = {path.stem: path.read_text(encoding="utf-8") for path in sorted((CONF / group).glob("*.yaml"))}
    values = {name: OmegaConf.to_container(OmegaConf.create(text)) for name, text in files.items()}
    if any(isinstance(value, dict) for option in values.values() for value in option.values()):  # type: ignore[union-attr]
        return [f"`{group}={name}`:\n\n```yaml\n{text.strip()}\n```" for name, text in files.items()]
    lines = ["| option | what it is | what it sets |", "|---|---|---|"]
    for name, option in values.items():
        comment = " ".join(line.lstrip("# ") for line in files[name].splitlines() if line.startswith("#"))
        settings = ", ".join(_code(f"{key}: {_shown(value)}") for key, value in option.items())  # type: ignore[union-attr]
        lines.append(f"| `{group}={name}` | {_cell(COMMAND.sub(lambda command: _code(command[0]), comment))} | {settings} |")
    return ["\n".join(lines)]


def _shown(value: Any) -> str:
    """As YAML writes it, in one line; a dictionary of scorers is shown below its table."""
    if isinstance(value, dict):
        return "see below" if value else "{}"
    return OmegaConf.to_yaml(OmegaConf.create([value])).strip().removeprefix("- ") if value != [] else "[]"


def _code(text: str) -> str:
    return f"`{_cell(text)}`"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
