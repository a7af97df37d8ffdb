"""Cases made of random tokens, and a model that is linear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from tiny_models import BLOCKS, random_tokens, tokenizer_of
from torch import Tensor, nn

from emosteer.attribution import Case
from emosteer.config import ModelConfig
from emosteer.model.anatomy import dissect
from emosteer.model.dialogue import Dialogue
from emosteer.model.language_model import LanguageModel


def aligned_case(number: int, length: int, words: int = 3) -> Case:
    """Two prompts of a length that differ in one or two tokens, neither the first nor the last."""
    (tokens,) = random_tokens(length, seed=number)
    others = random_tokens(2, seed=500 + number)[0]
    corrupted = list(tokens)
    corrupted[2] = others[0]
    if number % 2:
        corrupted[length - 3] = others[1]
    picked = dict.fromkeys(random_tokens(20, seed=900 + number)[0])
    ids = list(picked)[: 2 * words]
    return Case(f"case{number}", tokens, tuple(corrupted), tuple(ids[:words]), tuple(ids[words:]))


def with_head(cases: Sequence[Case], length: int = 7) -> list[Case]:
    """The cases, all of whose prompts begin with the same tokens, as templates make them."""
    (head,) = random_tokens(length, seed=950)
    return [replace(case, clean=head + case.clean, corrupted=head + case.corrupted) for case in cases]


def unaligned_case(number: int) -> Case:
    return replace(aligned_case(number, 9), corrupted=random_tokens(12, seed=number)[0])


def nine_cases(words: int = 3) -> list[Case]:
    return [aligned_case(number, 6 + number % 4, words) for number in range(9)]


class LinearAttention(nn.Module):
    """Every position reads the mean of itself and those before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, width)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        causal = torch.tril(torch.ones(states.shape[1], states.shape[1])) * mask[:, None, :]
        weights = causal / causal.sum(-1, keepdim=True).clamp(min=1)
        return self.out(weights @ states)


class LinearBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.mlp = LinearAttention(width), nn.Linear(width, width)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        states = states + self.attention(states, mask)
        return states + self.mlp(states)


class LinearDecoder(nn.Module):
    """A decoder whose logits are linear in its embeddings."""

    device, dtype, generation_config = torch.device("cpu"), torch.float32, None

    def __init__(self, width: int = 12, vocabulary: int = 341) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(LinearBlock(width) for _ in range(BLOCKS))
        self.head = nn.Linear(width, vocabulary)
        self.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_options: Any) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = self.embedding(input_ids)
        for block in self.blocks:
            states = block(states, mask.float())
        return SimpleNamespace(logits=self.head(states))


class HandingOnDecoder(LinearDecoder):
    """One whose output reads every block, and not only the last."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
        outputs: list[Tensor] = []
        handles = [block.register_forward_hook(lambda _m, _a, output: outputs.append(output)) for block in self.blocks]
        super().forward(input_ids, attention_mask, **options)
        for handle in handles:
            handle.remove()
        return SimpleNamespace(logits=self.head(sum(outputs)))


def linear_model(kind: type[LinearDecoder] = LinearDecoder) -> LanguageModel:
    """Where the first-order estimate is the truth."""
    decoder = kind()
    anatomy = dissect(decoder, ModelConfig(), torch.tensor(random_tokens(5)))
    return LanguageModel("linear", decoder, Dialogue(tokenizer_of()), anatomy, frozenset(), 0)  # type: ignore[arg-type]
