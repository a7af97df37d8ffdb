"""A transformers text classifier as a scorer: what it makes of each reply, label by label.

Off unless a configuration names it. Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emosteer.config import ModelConfig
from emosteer.errors import EmosteerError
from emosteer.model.source import ModelSource, find, hub_file
from emosteer.scoring.scorer import Context, NotComputed, Scores, answered, versioned
from emosteer.scoring.text import split_words

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DIGITS = 4
"""Padding alone moves a probability by about 1e-7, which a rank test would take for a difference."""
BATCHES_KEPT = 8
MULTI_LABEL = "multi_label_classification"
PREFIX = "classifier"
NO_WORDS = "a reply without words has no emotion to classify"


def pinned(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the fingerprint of the model that they name, so that scores of another one lie apart.

    Raises:
        EmosteerError: there is no such model, it is no classifier of texts, or it has no names for its labels.
    """
    given = dict(options)
    for name, least in (("batch_size", 1), ("max_length", 2)):
        value = given.get(name, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise EmosteerError(f"{name}={value}: give a whole number of at least {least}")
    if not re.fullmatch(r"\w+", str(given.get("prefix", PREFIX))):
        raise EmosteerError(f"prefix={given['prefix']}: give letters, digits and _")
    source = _source(given.get("path"), given.get("revision"))
    _labels(source, given.get("prefix", PREFIX))
    if given.get("fingerprint") not in (None, source.fingerprint):
        raise EmosteerError(f"path={given['path']} is not the classifier that was submitted: {source.fingerprint} by now")
    # A branch of a hub may move on while the sweep waits: what runs is the commit that was found.
    commit = {"revision": source.revision} if source.revision else {}
    return {**given, **commit, "fingerprint": source.fingerprint}


@versioned(1, per_reply=True, pin=pinned)
def classifier(
    replies: Sequence[str],
    *,
    context: Context,
    path: str,
    revision: str | None = None,
    prefix: str = PREFIX,
    batch_size: int = 32,
    max_length: int = 512,
    fingerprint: str = "",
) -> Scores:
    """The probability of each label of a text classification model: `classifier_<label>`, 0 to 1, to four decimals.

    Where the model's configuration says `multi_label_classification`, each label's own (a logistic function of its logit); else
    those of one label among all (softmax), which add up to 1. The label is in lower case, with `_` for what is no letter or digit.
    Tokens beyond `max_length`, or beyond what the model takes, are not read. NaN for a reply without words.

    Runs in float32 on the device of the model that replied. Equal replies are read once, and what was said of a text is kept in the
    store. Weights are safetensors; code that comes with a model is never run.

    Args:
        replies: the texts.
        context: the device, and what was said before.
        path: hub id or directory.
        revision: branch, tag or commit of a hub id.
        prefix: how the metrics' names begin: another one for a second classifier.
        batch_size: replies read at once.
        max_length: tokens of a reply that are read.
        fingerprint: of the weights; filled in when the sweep is given, so that another model of that name is refused.

    Raises:
        EmosteerError: the model cannot be loaded, or is not that of `fingerprint`.
    """
    source = _source(path, revision)
    if fingerprint and source.fingerprint != fingerprint:
        raise EmosteerError(f"the classifier {path} is not the one that was submitted: {source.fingerprint} instead of {fingerprint}")
    labels = _labels(source, prefix)
    key = {
        "function": f"{__name__}.classifier",
        "version": 1,
        "model": source.fingerprint,
        "prefix": prefix,
        "max_length": max_length,
    }

    def ask(texts: Sequence[str]) -> list[dict[str, float]]:
        model, tokenizer = _loaded(source, str(context.engine.model.device))
        batches = [texts[at : at + batch_size] for at in range(0, len(texts), batch_size)]
        rows = [row for batch in batches for row in _probabilities(model, tokenizer, batch, max_length)]
        return [dict(zip(labels, row, strict=True)) for row in rows]

    # Of like length together, so that little is padding; kept every few batches, since each time costs a file.
    readable = sorted({reply for reply in replies if split_words(reply)}, key=lambda text: (len(text), text))
    found = answered(context, key, readable, BATCHES_KEPT * batch_size, ask)
    nothing = dict.fromkeys(labels, NotComputed(NO_WORDS))
    return {label: [found.get(reply, nothing)[label] for reply in replies] for label in labels}


def _source(path: Any, revision: str | None) -> ModelSource:
    if not isinstance(path, str) or not path.strip():
        raise EmosteerError(f"path={path}: give the hub id or the directory of a text classification model")
    try:
        return find(ModelConfig(name=path, path=path, revision=revision))
    except EmosteerError as error:
        told = str(error)
        raise EmosteerError(told.removeprefix("model.") if told.startswith("model.path=") else f"path={path}: {told}") from None


@lru_cache(maxsize=8)
def _labels(source: ModelSource, prefix: str) -> tuple[str, ...]:
    """The metrics' names, in the order of the model's outputs."""
    directory = Path(source.location)
    file = directory / "config.json" if source.revision is None else hub_file(source.location, "config.json", source.revision)
    config = json.loads(file.read_text(encoding="utf-8"))
    kinds = config.get("architectures") or []
    if not any(str(kind).endswith("ForSequenceClassification") for kind in kinds):
        raise EmosteerError(
            f"path={source.location} is {', '.join(map(str, kinds)) or 'of no named architecture'}: give a model with a head that "
            "classifies texts (...ForSequenceClassification)"
        )
    names = config.get("id2label")
    if not isinstance(names, dict) or not names:
        raise EmosteerError(f"path={source.location}: its config.json does not name its labels (id2label)")
    try:
        ordered = [str(names[str(number)]) for number in range(len(names))]
    except KeyError as error:
        raise EmosteerError(f"path={source.location}: id2label in its config.json has no label {error.args[0]}") from None
    labels = tuple(f"{prefix}_{re.sub(r'[^a-z0-9]+', '_', name.casefold()).strip('_')}" for name in ordered)
    if len(set(labels)) < len(labels):
        raise EmosteerError(f"path={source.location}: its labels {', '.join(ordered)} give equal names of metrics")
    if source.revision is None and not any(directory.glob("*.safetensors")):
        raise EmosteerError(f"path={source.location}: its weights are no safetensors; save the model again as such")
    return labels


@lru_cache(maxsize=2)
def _loaded(source: ModelSource, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    where: dict[str, Any] = {"revision": source.revision} if source.revision else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, trust_remote_code=False, **where)
        model, told = AutoModelForSequenceClassification.from_pretrained(
            source.location,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            **where,
        )
    except Exception as error:  # transformers raises what it likes
        raise EmosteerError(f"the classifier {source.location} cannot be loaded: {error}") from error
    if missing := sorted(told["missing_keys"]):
        raise EmosteerError(f"the classifier {source.location} lacks weights, such as {missing[0]}: its answers would be random")
    return model.to(device).eval(), tokenizer


def _probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> list[list[float]]:
    import torch

    positions = int(getattr(model.config, "max_position_embeddings", None) or max_length)
    limit = min(max_length, int(tokenizer.model_max_length), positions)
    # One alone needs no padding, and a tokenizer may have none.
    read = tokenizer(list(texts), truncation=True, max_length=limit, padding=len(texts) > 1, return_tensors="pt").to(model.device)
    with torch.inference_mode():
        logits = model(**read).logits.float()
    given = logits.sigmoid() if model.config.problem_type == MULTI_LABEL else logits.softmax(-1)
    return [[round(float(value), DIGITS) for value in row] for row in given]
