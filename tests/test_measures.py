"""The metrics that `attribution.metric` names, on a real vocabulary."""

from __future__ import annotations

import pytest
import torch

from emosteer.attribution import prepare
from emosteer.attribution.case import metric
from emosteer.attribution.runs import Run, measured
from emosteer.datasets import SHIPPED, load_contrastive_pairs, load_diagnostic_pairs
from emosteer.errors import EmosteerError
from emosteer.measures import explained, nrc_score, nrc_words
from emosteer.model.language_model import LanguageModel
from emosteer.model.padding import pad_left
from emosteer.scoring.nrc import nrc, words_of

pytestmark = pytest.mark.real_model


def words_in(model: LanguageModel, tokens: tuple[int, ...]) -> list[str]:
    texts = model.dialogue.tokenizer.batch_decode([[token] for token in tokens])
    assert all(text.startswith(" ") for text in texts)
    return [text[1:] for text in texts]


def test_nrc_words_are_single_tokens_of_one_emotion_alone(smollm2: LanguageModel) -> None:
    what = nrc_words(smollm2, "joy", "sadness")
    pairs = load_diagnostic_pairs(SHIPPED / "diagnostics" / "joy_sadness.jsonl")[:8]
    case = prepare(smollm2, pairs, what.measure)[0]
    joy, sadness = words_in(smollm2, case.expressive), words_in(smollm2, case.counterpart)
    assert len(joy) > 50
    assert set(joy) <= set(words_of("joy")) - set(words_of("sadness"))
    assert set(sadness) <= set(words_of("sadness")) - set(words_of("joy"))
    n_left_out = len(set(words_of("joy")) - set(words_of("sadness"))) - len(joy)
    assert f"{len(joy)} words of joy ({n_left_out} of several tokens left out)" in what.text


def test_the_surrogate_counts_what_the_scorer_counts(smollm2: LanguageModel) -> None:
    what = nrc_score(smollm2, "joy")
    pairs = load_diagnostic_pairs(SHIPPED / "diagnostics" / "joy_sadness.jsonl")[:8]
    case = prepare(smollm2, pairs, what.measure)[0]
    counted = words_in(smollm2, case.expressive)
    assert nrc(counted)["joy"] == [100.0] * len(counted)
    assert {"loved", "happy", "Happy"} <= set(counted)
    texts = tokenizer_texts(smollm2)
    words = {token: text[1:] for token, text in enumerate(texts) if text[:1] == " " and text[1:].isalpha() and text.isascii()}
    scores = torch.zeros(len(texts))
    scores[list(words)] = torch.tensor(nrc(list(words.values()))["joy"])
    with torch.no_grad():
        logits = smollm2.model(torch.tensor([case.clean])).logits[:, -1]
    # What a reply of one token, drawn from these probabilities, scores in the mean.
    assert float(metric(logits, [case])) == pytest.approx(float(logits[0].softmax(-1)[: len(scores)] @ scores), rel=1e-3)


def tokenizer_texts(model: LanguageModel) -> list[str]:
    tokenizer = model.dialogue.tokenizer
    return tokenizer.batch_decode([[token] for token in range(len(tokenizer))])


@pytest.mark.slow
def test_every_metric_is_higher_on_emotional_prompts(smollm2: LanguageModel) -> None:
    pairs = load_diagnostic_pairs(SHIPPED / "diagnostics" / "joy_sadness.jsonl")[:8]
    texts = load_contrastive_pairs(SHIPPED / "pairs" / "joy_sadness.jsonl")[:4]
    for name in ("words", "nrc_words", "nrc_score", "projection", "kl"):
        what = explained(name, smollm2, "joy", "sadness", "joy", texts)
        cases = prepare(smollm2, pairs, what.measure)
        values = {}
        for side in ("clean", "corrupted"):
            rows = pad_left([getattr(case, side) for case in cases], smollm2.pad_token_id, smollm2.device)
            with torch.no_grad():
                values[side] = measured(smollm2, Run(rows.input_ids, rows.attention_mask, None), cases).mean()
        assert values["clean"] > values["corrupted"], name


def test_a_category_without_words_of_one_token_is_refused(smollm2: LanguageModel) -> None:
    with pytest.raises(EmosteerError, match=r"no token of SmolLM2.* is a word of no such emotion"):
        nrc_score(smollm2, "no such emotion")
