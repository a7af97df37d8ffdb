"""What is left of an effect without replies that game the lexicon, and with negated words handled the other way."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from made_up_sweep import SCORERS, made_up_cell
from scipy import stats

from emosteer.caveats import nrc_options, primary_caveats
from emosteer.records.cell import Cell
from emosteer.records.store import Store, StoredReply
from emosteer.scored import Scored
from emosteer.scoring.nrc import caveats, nrc
from emosteer.statistics import paired_effects

SAID = ["It is a chair.", "The table is here.", "I am not happy now.", "A plain day.", "We walked on.", "Nothing to see."] * 2
STEERED = [
    "Love love love love all day.",  # flagged
    "I am happy and full of love today.",
    "I am not happy at all.",  # negated
    "What joy this day is to me.",
    "We laughed with a happy heart.",
    "No love was lost on us.",  # negated
] * 2
N_FLAGGED, N_NEGATED, N_NEGATED_BASELINE = 2, 4, 2
STATISTICS = {"n_resamples": 99, "confidence": 0.95}


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    return made_up_cell(Store(tmp_path), n_prompts=len(SAID))


def scored(cell: Cell, texts: list[str], **options: Any) -> Scored:
    replies = [StoredReply(f"p{i}", 0, text, (), True) for i, text in enumerate(texts)]
    return Scored(cell, {}, replies, {**nrc(texts, **options), **caveats(texts)})


def columns(cell: Cell, primary: str | None = "joy", **options: Any) -> dict[str, Any]:
    own, baseline = scored(cell, STEERED, **options), scored(cell.baseline(), SAID, **options)
    of = primary or "joy"
    (effect,) = paired_effects([own.metrics[of]], [baseline.metrics[of]], seed=7, **STATISTICS)
    return primary_caveats(own, baseline, primary, effect if primary else None, options, 7, STATISTICS)


def test_the_effect_without_flagged_replies(cell: Cell) -> None:
    found = columns(cell)
    steered, unsteered = nrc(STEERED)["joy"], nrc(SAID)["joy"]
    kept = [i for i in range(len(SAID)) if not STEERED[i].startswith("Love")]
    differences = [steered[i] - unsteered[i] for i in kept]

    assert (found["n_flagged"], found["n_flagged_baseline"]) == (N_FLAGGED, 0)
    assert found["primary_unflagged_n"] == len(kept) == 10
    assert found["primary_unflagged_delta"] == pytest.approx(sum(differences) / len(differences))
    assert found["primary_unflagged_p"] == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert found["primary_unflagged_ci_low"] < found["primary_unflagged_delta"] < found["primary_unflagged_ci_high"]


@pytest.mark.parametrize("negation", [False, True])
def test_negation_the_other_way_is_what_the_scorer_says_with_the_other_option(cell: Cell, negation: bool) -> None:
    found = columns(cell, negation=negation)
    differences = [a - b for a, b in zip(*(nrc(texts, negation=not negation)["joy"] for texts in (STEERED, SAID)), strict=True)]

    assert (found["n_negated"], found["n_negated_baseline"]) == (N_NEGATED, N_NEGATED_BASELINE)
    assert found["primary_negation_delta"] == pytest.approx(sum(differences) / len(differences))
    assert found["primary_negation_p"] == pytest.approx(stats.wilcoxon(differences).pvalue)


def test_where_nothing_is_flagged_or_negated_the_effect_is_the_primary_one(cell: Cell) -> None:
    plain = [text for text in STEERED if "joy" in text or "full" in text]
    own, baseline = scored(cell, plain), scored(cell.baseline(), ["A plain day."] * len(plain))
    (effect,) = paired_effects([own.metrics["joy"]], [baseline.metrics["joy"]], seed=7, **STATISTICS)
    found = primary_caveats(own, baseline, "joy", effect, {}, 7, STATISTICS)

    assert (found["n_flagged"], found["n_negated"], found["n_negated_baseline"]) == (0, 0, 0)
    for which in ("unflagged", "negation"):
        for key in ("delta", "ci_low", "ci_high", "p"):
            assert found[f"primary_{which}_{key}"] == getattr(effect, key)


def test_what_cannot_be_told_is_no_zero(cell: Cell) -> None:
    own, baseline = scored(cell, STEERED), scored(cell.baseline(), SAID)
    (effect,) = paired_effects([own.metrics["joy"]], [baseline.metrics["joy"]], seed=7, **STATISTICS)
    unasked = primary_caveats(own, baseline, "joy", effect, None, 7, STATISTICS)
    assert unasked["n_negated"] is None
    assert math.isnan(unasked["primary_negation_delta"])

    del own.metrics["one_word"], baseline.metrics["negated"]
    found = primary_caveats(own, baseline, "joy", effect, {}, 7, STATISTICS)
    assert found["n_flagged"] is None
    assert found["n_negated"] is None
    assert all(value is None or math.isnan(value) for name, value in found.items() if name.startswith("primary_"))

    control = columns(cell, None)
    assert control["n_flagged"] == N_FLAGGED
    assert list(control) == list(found)
    assert math.isnan(control["primary_unflagged_delta"])


def test_the_options_of_the_nrc_scorer_are_found_under_any_name() -> None:
    assert nrc_options(SCORERS) == {"lemmatise": True}
    assert nrc_options({"mine": {"_target_": "emosteer.scoring.nrc.nrc", "negation": True}}) == {"negation": True}
    assert nrc_options({"words": {"_target_": "emosteer.scoring.fluency.words"}}) is None
