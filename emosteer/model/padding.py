"""Rows of unequal length in one batch: padded on the left, with the masks and positions that make padding invisible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PaddedBatch:
    """Left-padded rows. All tensors are [row, position]."""

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    """Counted from a row's first real token: a bare forward would count from the padding."""

    @property
    def lengths(self) -> Tensor:
        """Real tokens of each row [row]."""
        return self.attention_mask.sum(1)

    def inputs(self) -> dict[str, Tensor]:
        """The keyword arguments of a bare forward."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
        }


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device | str = "cpu") -> PaddedBatch:
    """Put rows of token ids into one batch, their ends aligned."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad_token_id] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return PaddedBatch(ids, mask, positions(mask))


def pad_right(rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Token ids and mask [row, position] of rows whose beginnings are aligned: no token of theirs looks at the padding."""
    width = max(map(len, rows))
    ids = torch.tensor([list(row) + [pad_token_id] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask


def positions(attention_mask: Tensor) -> Tensor:
    """Position ids [row, position] of a mask: 0 at the first real token (and on padding, where nothing looks)."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)
