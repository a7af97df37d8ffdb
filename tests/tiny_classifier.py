"""A tiny random classifier of texts, saved as a hub would have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_models import tokenizer_of

LABELS = ["Joy", "sadness", "Mixed / other"]


def save_classifier(path: Path, seed: int = 0, **config: Any) -> Path:
    torch.manual_seed(seed)
    # With random weights of the usual size all replies would be alike.
    tokenizer = tokenizer_of(chat=False, pad=True)
    made = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id, id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)}, initializer_range=0.5, **config,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(made)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
