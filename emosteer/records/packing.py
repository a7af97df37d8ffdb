"""How a manifest holds thousands of tasks that are nearly alike: one of them whole, of the others what differs.

Every worker reads it, and so does every `status`: with 10,000 cells it is 11 MB instead of 118.

A task as plain data is `cell` (`Cell.to_json`), `overrides`, and `files` by name. Packed, `cell` has the keys whose values are not
those of `base`, and `files` is the JSON text of the dictionary, deflated (RFC 1951) with that of `base` for a dictionary, in base 85:
what is like the base's costs a few bytes. Manifests of before have no `base`, and their tasks are whole.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from emosteer.errors import Damaged
from emosteer.records.publish import parse_json

RAW = -15
"""zlib's word for deflated data without a header, in windows of 32 kB."""

Plain = dict[str, Any]


class PackedFiles(Mapping[str, str]):
    """Files by name, unpacked when somebody asks: a worker that publishes their cell."""

    def __init__(self, packed: str, base: bytes) -> None:
        self._packed, self._base = packed, base

    def __getitem__(self, name: str) -> str:
        return self._files[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    @cached_property
    def _files(self) -> dict[str, str]:
        try:
            return dict(parse_json(_inflated(base64.b85decode(self._packed), self._base).decode()))
        except (ValueError, TypeError, zlib.error) as error:
            raise Damaged(
                f"a command's manifest is damaged: a cell's files do not unpack ({error}); give the command again"
            ) from None


def pack(tasks: Mapping[str, Plain]) -> Plain:
    """What a manifest holds of tasks: `base` and `tasks`.

    Args:
        tasks: as plain data, by cell id; all cells have the same keys.
    """
    base: Plain = max(tasks.values(), key=lambda task: len(task["files"]), default={"cell": {}, "files": {}})
    base_files = _text(base["files"])
    packed = {
        cell_id: {
            "cell": {key: value for key, value in task["cell"].items() if key not in base["cell"] or base["cell"][key] != value},
            "overrides": task["overrides"],
            "files": base64.b85encode(_deflated(_text(task["files"]), base_files)).decode() if task["files"] else "",
        }
        for cell_id, task in tasks.items()
    }
    return {"base": {"cell": base["cell"], "files": base["files"]}, "tasks": packed}


def unpack(manifest: Plain) -> dict[str, Plain]:
    """The tasks of a manifest, packed or not, as plain data by cell id; their files unpack when they are read.

    Raises:
        KeyError, TypeError, AttributeError: it is no manifest.
    """
    tasks: dict[str, Plain] = manifest["tasks"]
    if "base" not in manifest:
        return tasks
    base = manifest["base"]
    base_files = _text(base["files"])
    return {
        cell_id: {
            "cell": {**base["cell"], **task["cell"]},
            "overrides": task["overrides"],
            "files": PackedFiles(task["files"], base_files) if task["files"] else {},
        }
        for cell_id, task in tasks.items()
    }


def _text(files: Mapping[str, str]) -> bytes:
    return json.dumps(dict(files), ensure_ascii=False).encode()


def _deflated(data: bytes, dictionary: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, RAW, zdict=dictionary)
    return packer.compress(data) + packer.flush()


def _inflated(data: bytes, dictionary: bytes) -> bytes:
    unpacker = zlib.decompressobj(RAW, zdict=dictionary)
    return unpacker.decompress(data) + unpacker.flush()
