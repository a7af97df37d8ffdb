"""What attribution explains: each metric by hand, and its scores by what must hold of any."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import nine_cases
from scipy import stats
from tiny_models import WIDTH, random_vector, tiny_model, tokenizer_of, true_parts
from torch import Tensor

from emosteer.attribution import Case, attribute
from emosteer.attribution.exact import patch_exactly
from emosteer.attribution.metrics import Measure, hits, nearness, projection, single_tokens, whole_words, word_sets
from emosteer.errors import EmosteerError
from emosteer.model.language_model import LanguageModel

WORDS = word_sets((20, 40), (60, 80, 100))
HITS = hits((20, 40, 60))
ALONG = projection(3 * random_vector(5))
MEASURES = {"words": WORDS, "hits": HITS, "projection": ALONG, "kl": nearness}


def cases_of(measure: Measure, model: LanguageModel) -> list[Case]:
    return [measure(model, case) for case in nine_cases()]


def last_of(model: LanguageModel, ids: tuple[int, ...]) -> tuple[np.ndarray, Tensor]:
    """The next token's probabilities, and the last block's output at the last position."""
    seen: list[Tensor] = []
    handle = true_parts("llama", 3)["residual"].register_forward_hook(lambda _m, _a, output: seen.append(output[0, -1]))
    with torch.no_grad():
        logits = model.model(torch.tensor([ids])).logits[0, -1]
    handle.remove()
    return logits.double().softmax(-1).numpy(), seen[0]


def by_hand(name: str, model: LanguageModel, case: Case, ids: tuple[int, ...]) -> float:
    p, state = last_of(model, ids)
    clean, _ = last_of(model, case.clean)
    return {
        "words": lambda: float(np.log(p[[20, 40]].sum() / p[[60, 80, 100]].sum())),
        "hits": lambda: float(100 * p[[20, 40, 60]].sum()),
        "projection": lambda: float(state @ random_vector(5)),
        "kl": lambda: -float(stats.entropy(clean, p)),
    }[name]()


@pytest.mark.parametrize("name", MEASURES)
def test_metrics_by_hand(name: str) -> None:
    model = tiny_model("llama")
    cases = cases_of(MEASURES[name], model)
    found = attribute(model, cases)
    for row, case in enumerate(cases):
        assert float(found.metric_clean[row]) == pytest.approx(by_hand(name, model, case, case.clean), abs=1e-4)
        assert float(found.metric_corrupted[row]) == pytest.approx(by_hand(name, model, case, case.corrupted), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "direction", "steps", "share"),
    [*((name, "denoising", 100, 0.12) for name in MEASURES), *((name, "noising", 100, 0.25) for name in ("hits", "projection"))],
)
def test_scores_of_the_embeddings_add_up_to_the_whole_difference(name: str, direction: str, steps: int, share: float) -> None:
    """Integrated gradients are complete (Sundararajan et al. 2017), whatever the metric; and to patch all is the other run."""
    model = tiny_model("llama")
    cases = cases_of(MEASURES[name], model)
    found = attribute(model, cases, steps, direction=direction)
    whole = found.metric_clean - found.metric_corrupted
    assert found.embeddings_by_position is not None
    assert float((found.embeddings_by_position.nansum(1) - whole).norm() / whole.norm()) < share
    own = [case.swapped() for case in cases] if direction == "noising" else cases
    torch.testing.assert_close(patch_exactly(model, own, "before", "all")[:, 0], whole, atol=1e-4, rtol=1e-3)


def test_the_clean_run_is_where_the_divergence_is_least() -> None:
    model = tiny_model("llama")
    cases = cases_of(nearness, model)
    found = attribute(model, cases)
    torch.testing.assert_close(found.metric_clean, torch.zeros(9), atol=1e-5, rtol=0)
    assert bool((found.metric_corrupted < -1e-3).all())
    with pytest.raises(EmosteerError, match=r"attribution.metric=kl .* choose attribution.direction=denoising"):
        attribute(model, cases, direction="noising")


def test_a_projection_is_on_a_direction_of_length_1_at_the_last_block() -> None:
    model, case = tiny_model("llama"), nine_cases()[0]
    once, thrice = ([projection(factor * random_vector(2))(model, replace(case, id=str(i))) for i in range(9)] for factor in (1, 3))
    torch.testing.assert_close(attribute(model, once).metric_clean, attribute(model, thrice).metric_clean)
    for direction in (torch.zeros(WIDTH), torch.full((WIDTH,), torch.nan)):
        with pytest.raises(EmosteerError, match="finite and has a length"):
            projection(direction)


def test_empty_sets_are_refused() -> None:
    for sets in (((), (1,)), ((1,), ()), ((1, 2), (2,))):
        with pytest.raises(EmosteerError, match="tokens on both sides"):
            word_sets(*sets)
    with pytest.raises(EmosteerError, match="at least one token"):
        hits(())


def test_words_of_one_token() -> None:
    model, tokenizer = tiny_model("llama"), tokenizer_of()
    words = whole_words(model)
    assert {"the", "and"} <= set(words)
    for word, token in words.items():
        assert tokenizer(f" {word}", add_special_tokens=False).input_ids == [token]
    assert single_tokens(model, ["the", "unbelievable", "and"]) == ([words["the"], words["and"]], ["unbelievable"])
