"""Emotion vectors on disk: safetensors with `block.<L>` [width] for every block and `residual_norm` [block], all float32.

The layout of the store's vector files, which this reads as well. The site stands in the file's own metadata, or, for a
file of the store, in the JSON beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from emosteer.config import SITES
from emosteer.errors import EmosteerError
from emosteer.records.publish import publish_file, read_json
from emosteer.vectors import EmotionVector, checked

NORMS = "residual_norm"


def save_vector(vector: EmotionVector, path: str | Path, facts: Mapping[str, str] | None = None) -> None:
    """Write a vector to a safetensors file, whole or not at all; its directory is made, an older file replaced.

    Args:
        vector: what is written.
        path: of the file.
        facts: more to write into the file's metadata.

    Raises:
        EmosteerError: a vector that is not finite or has no length at some block, or a place that cannot be written.
    """
    blocks = {f"block.{layer}": direction.float().contiguous() for layer, direction in enumerate(checked(vector).directions)}
    metadata = {**(facts or {}), "site": vector.site, "sign": "positive minus negative"}
    publish_file(Path(path).expanduser(), save({**blocks, NORMS: vector.residual_norm.float()}, metadata))


def load_vector(path: str | Path) -> EmotionVector:
    """Read a vector that `save_vector` or a sweep wrote.

    Raises:
        EmosteerError: no such file, another layout, or values that no model can be steered by (not finite, no length).
    """
    path = Path(path).expanduser()
    tensors, metadata = _read(path)
    if NORMS not in tensors:
        raise EmosteerError(f"{path}: no tensor {NORMS!r}; it holds {', '.join(sorted(tensors)) or 'nothing'}")
    norms = tensors.pop(NORMS).float()
    expected = [f"block.{layer}" for layer in range(norms.numel())]
    if norms.dim() != 1 or set(tensors) != set(expected) or not expected:
        raise EmosteerError(f"{path}: expected {NORMS} [blocks] and one tensor block.<L> [width] for each block")
    if len({tensor.shape for tensor in tensors.values()}) > 1 or tensors[expected[0]].dim() != 1:
        raise EmosteerError(f"{path}: the blocks' directions have different shapes: expected [width] at each")
    if not (torch.isfinite(norms) & (norms > 0)).all():
        raise EmosteerError(f"{path}: a residual norm is not finite or not above 0")
    site = metadata.get("site") or _site_beside(path)
    if site not in SITES:
        raise EmosteerError(f"{path}: site={site}: expected one of {', '.join(SITES)}")
    try:
        return checked(EmotionVector(torch.stack([tensors[name].float() for name in expected]), norms, site))
    except EmosteerError as error:
        raise EmosteerError(f"{path}: {error}") from None


def made_on(path: str | Path) -> str | None:
    """The fingerprint of the model that a vector was made on, where its file says so.

    Raises:
        EmosteerError: no such file, or no safetensors file.
    """
    _, metadata = _read(Path(path).expanduser())
    if "model_fingerprint" in metadata:  # of an export
        return metadata["model_fingerprint"]
    try:
        stored = json.loads(metadata.get("emosteer", "{}"))  # of the store
        return str(stored["model"]["fingerprint"])
    except (ValueError, KeyError, TypeError):
        return None


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise EmosteerError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise EmosteerError(f"{path}: not a safetensors file ({error})") from None


def _site_beside(path: Path) -> str:
    """What the store's JSON beside a vector says; the residual stream where there is none."""
    try:
        facts = read_json(path.with_suffix(".json"))
    except (OSError, ValueError) as error:
        raise EmosteerError(f"{path.with_suffix('.json')}: not readable, and says the vector's site ({error})") from None
    return str(facts["site"]) if isinstance(facts, dict) and "site" in facts else "residual"
