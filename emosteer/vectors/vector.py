"""An emotion vector: a direction per decoder block, and how long a push along it is.

It is kept raw in float32, with the model's residual norms beside it, so that any reader can scale it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from emosteer.errors import EmosteerError


@dataclass(frozen=True)
class EmotionVector:
    """One direction per block, as measured: positive minus negative, not normalised."""

    directions: Tensor
    """[block, width] float32, on the CPU."""
    residual_norm: Tensor
    """[block] float32: the usual length of the residual stream after each block."""
    site: str = "residual"
    """Whose output the directions were read from, and are added to: residual, attention or mlp."""

    def __repr__(self) -> str:
        return f"<EmotionVector of {self.directions.shape[0]} blocks, width {self.directions.shape[1]}, site {self.site}>"

    def added(self, layer: int, coefficient: float, unit: str) -> Tensor:
        """What steering adds at a block [width]: `coefficient` residual norms long, or that many raw vectors."""
        direction = self.directions[layer]
        if unit == "raw":
            return coefficient * direction
        return coefficient * self.residual_norm[layer] * direction / direction.norm()

    def raw_coefficient(self, layer: int, coefficient: float, unit: str) -> float:
        """The multiple of the raw vector that `coefficient` in `unit` stands for."""
        if unit == "raw":
            return coefficient
        return float(coefficient * self.residual_norm[layer] / self.directions[layer].norm())

    def fraction(self, layer: int, coefficient: float, unit: str) -> float:
        """The added vector's length in residual norms that `coefficient` in `unit` stands for."""
        if unit == "fraction":
            return coefficient
        return float(coefficient * self.directions[layer].norm() / self.residual_norm[layer])


def checked(vector: EmotionVector, n_blocks: int | None = None, width: int | None = None) -> EmotionVector:
    """The vector itself, where it can steer a model of `n_blocks` blocks and that width (None: of any).

    Raises:
        EmosteerError: another shape, a norm that is no positive number, or a direction that is not finite or has no length.
    """
    directions, norms = vector.directions, vector.residual_norm
    expected = (n_blocks or directions.shape[0], width or directions.shape[-1])
    if directions.shape != expected or norms.shape != expected[:1]:
        raise EmosteerError(
            f"the emotion vector is {list(directions.shape)} with {norms.numel()} residual norms: the model needs {list(expected)}"
        )
    if bad := _bad(norms):
        raise EmosteerError(f"the residual norm is no positive number at blocks {bad}; look at the neutral texts")
    if bad := _bad(directions.norm(dim=1)):
        raise EmosteerError(f"the emotion vector is not finite or has no length at blocks {bad}; look at the pairs' texts")
    return vector


def _bad(lengths: Tensor) -> list[int]:
    return [int(b) for b in torch.nonzero(~torch.isfinite(lengths) | (lengths <= 0)).flatten()]


def random_direction(seed: int, index: int, n_blocks: int, width: int) -> Tensor:
    """Directions [block, width] of unit length, uniform over the sphere, drawn by a hash of seed, index and block.

    The same on every machine and device; a block's direction does not depend on how many blocks there are.
    """
    rows = []
    for block in range(n_blocks):
        key = hashlib.sha256(f"random direction {seed} {index} {block}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
        rows.append(torch.randn(width, generator=generator, dtype=torch.float64))
    directions = torch.stack(rows)
    return (directions / directions.norm(dim=1, keepdim=True)).float()
