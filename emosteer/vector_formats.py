"""Emotion vectors in the forms of other software: llama.cpp's control vectors, and the objects of steering-vectors and repeng.

Each holds what steering adds at the given blocks, at its full length, so that a scale (llama.cpp), multiplier (steering-vectors) or
`coeff` (repeng) of 1 stands for `coefficient`, of 0.5 for half of it, and of -1 for the same away from the target. All three add it
to the output of decoder block L, counted from 0, as emosteer does; they know no other intervention.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from emosteer.errors import EmosteerError
from emosteer.model.source import resolve_layers
from emosteer.records.publish import publish_file
from emosteer.vectors import EmotionVector, checked

CONTROL_VECTOR = "controlvector"
"""What a GGUF file calls itself that holds one."""
LAYER_TYPES = {"residual": "decoder_block", "attention": "self_attn", "mlp": "mlp"}
"""Site -> what steering-vectors calls it."""
HOW_TO_GET = {
    "steering_vectors": "pip install --no-deps steering-vectors (its pin on transformers is older than it needs)",
    "repeng": "pip install --no-deps repeng gguf 'numpy<2'",
}

Layers = int | float | Iterable[int | float]


def save_gguf(
    vector: EmotionVector,
    path: str | Path,
    *,
    layer: Layers,
    coefficient: float = 0.2,
    coefficient_unit: str = "fraction",
    model: str = "",
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write a control vector that llama.cpp (`--control-vector FILE`) and repeng (`ControlVector.import_gguf`) read.

    Tensors are `direction.<L>` [width] float32 for each steered block L. llama.cpp adds them, times its scale, at every position, of
    the prompt, too, as `scope=all` does here.

    Args:
        vector: of the residual stream.
        path: of the file; its directory is made, an older file replaced.
        layer: a block (0-based), several at once, or a fraction of the depth.
        coefficient: what a scale of 1 stands for.
        coefficient_unit: `fraction` of the block's residual norm, or `raw` vectors.
        model: its name, as a hint for people and repeng.
        facts: more to write beside it, under the key `emosteer.<name>`.

    Raises:
        EmosteerError: block 0, at which llama.cpp adds nothing; another site; a block out of range; a place that cannot be written.
    """
    added = _added(vector, layer, coefficient, coefficient_unit)
    if reason := not_for_gguf(vector.site, added):
        raise EmosteerError(reason)
    gguf: Any = import_module("gguf")
    with tempfile.TemporaryDirectory() as directory:
        draft = Path(directory) / "draft.gguf"
        writer = gguf.GGUFWriter(draft, CONTROL_VECTOR)
        writer.add_string(f"{CONTROL_VECTOR}.model_hint", model)
        writer.add_uint32(f"{CONTROL_VECTOR}.layer_count", len(added))
        for key, value in (facts or {}).items():
            writer.add_string(f"emosteer.{key}", value)
        for block, direction in added.items():
            writer.add_tensor(f"direction.{block}", direction.float().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        publish_file(Path(path).expanduser(), draft.read_bytes())


def not_for_gguf(site: str, layers: Iterable[int]) -> str:
    """Why llama.cpp can't steer there; nothing where it can."""
    if site != "residual":
        return f"site={site}: llama.cpp adds control vectors to the residual stream only"
    if 0 in layers:
        return "layer=0: llama.cpp adds control vectors from block 1 up; steer another block"
    return ""


def to_steering_vectors(vector: EmotionVector, *, layer: Layers, coefficient: float = 0.2, coefficient_unit: str = "fraction") -> Any:
    """The vector as a `steering_vectors.SteeringVector`, at the given blocks, where that library is installed.

    Its `apply(model, multiplier=1)` then steers as `coefficient` does here with `scope=all`; a `min_token_index` counts in each
    forward, not in the text, so that it leaves out all that is generated with a cache.

    Args:
        vector: of any site.
        layer: a block (0-based), several at once, or a fraction of the depth.
        coefficient: what a multiplier of 1 stands for.
        coefficient_unit: `fraction` of the block's residual norm, or `raw` vectors.

    Raises:
        EmosteerError: the library is not there, or a block is out of range.
    """
    library = _library("steering_vectors")
    return library.SteeringVector(_added(vector, layer, coefficient, coefficient_unit), LAYER_TYPES[vector.site])


def to_repeng(
    vector: EmotionVector, *, layer: Layers, coefficient: float = 0.2, coefficient_unit: str = "fraction", model: str = ""
) -> Any:
    """The vector as a `repeng.ControlVector`, at the given blocks, where that library is installed.

    A `ControlModel(model, [L])` of the same blocks steers with it by `set_control(control, 1)`, as `scope=all` does here.

    Args:
        vector: of the residual stream.
        layer: a block (0-based), several at once, or a fraction of the depth.
        coefficient: what a `coeff` of 1 stands for.
        coefficient_unit: `fraction` of the block's residual norm, or `raw` vectors.
        model: `model_type` of the model's configuration, which repeng compares when vectors are added.

    Raises:
        EmosteerError: the library is not there, another site, or a block is out of range.
    """
    if vector.site != "residual":
        raise EmosteerError(f"site={vector.site}: repeng controls the residual stream only")
    library = _library("repeng")
    added = _added(vector, layer, coefficient, coefficient_unit)
    return library.ControlVector(model, {block: direction.numpy() for block, direction in added.items()})


def _added(vector: EmotionVector, layer: Layers, coefficient: float, unit: str) -> dict[int, Tensor]:
    """Block -> what steering adds there [width], float32."""
    n_blocks = checked(vector).directions.shape[0]
    request = layer if isinstance(layer, str | int | float) else list(layer)
    layers = resolve_layers(request, n_blocks, "the vector's model")
    if layers is None:
        raise EmosteerError("layer=auto: give blocks")
    return {block: vector.added(block, coefficient, unit) for block in layers}


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise EmosteerError(f"{name} is not installed here ({error}): {HOW_TO_GET[name]}") from None
