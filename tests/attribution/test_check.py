"""What an attribution says of its own agreement with exact patching."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from cases import BLOCKS, linear_model, nine_cases, unaligned_case, with_head
from tiny_models import HEADS, tiny_model

from emosteer.attribution import Attribution, attribute
from emosteer.attribution.check import Agreement, check
from emosteer.attribution.exact import patch_exactly


def agreement(attributed: list[float], exact: list[float]) -> Agreement:
    return Agreement("mlp", "last", tuple((n,) for n in range(len(exact))), tuple(attributed), tuple(exact), 8)


def test_numbers_of_an_agreement() -> None:
    attributed, exact = [0.9, -0.2, 0.4, 0.1, -0.5], [1.1, 0.1, 0.3, 0.2, -0.9]
    found = agreement(attributed, exact)
    assert found.pearson == pytest.approx(np.corrcoef(attributed, exact)[0, 1])
    ranks = [np.argsort(np.argsort(values)) for values in (attributed, exact)]
    assert found.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found.same_sign == 0.8
    assert not found.is_low
    assert str(found) == f"mlp, last: r {found.pearson:.2f}, rho {found.spearman:.2f}, signs 80%"


def test_what_cannot_be_computed_is_said() -> None:
    assert agreement([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]).pearson is None
    assert agreement([1.0, 2.0], [1.0, 2.0]).spearman is None
    assert "rho not computed" in str(agreement([1.0, 2.0], [1.0, 2.0]))
    assert agreement([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]).to_json()["pearson"] is None


def test_low_is_a_weak_correlation_or_many_wrong_signs() -> None:
    assert agreement([1.0, -2.0, 3.0, 2.0], [-1.0, 2.0, 1.0, 3.0]).is_low
    assert agreement([10.0, 9.0, 1.0, 1.5], [5.0, 4.0, -2.0, -2.5]).is_low  # r is 1, nearly
    assert not agreement([10.0, 9.0, 1.0, 1.5], [15.0, 14.0, 2.0, 2.5]).is_low


def test_a_linear_model_agrees_and_a_wrong_attribution_does_not() -> None:
    model, cases = linear_model(), nine_cases(words=1)
    found = attribute(model, cases)
    for one in check(model, cases, found, 2):
        assert one.attributed == pytest.approx(one.exact, abs=1e-4)
        assert (one.pearson, one.same_sign, one.is_low) == (pytest.approx(1.0, abs=1e-3), 1.0, False)
    wrong = dataclasses.replace(found, last={site: -scores for site, scores in found.last.items()})
    assert [one.is_low for one in check(model, cases, wrong, 2)] == [True, True, False, False]


def weakened(found: Attribution) -> Attribution:
    """With block 2 and its head 1 the strongest."""
    of_blocks, of_heads = torch.tensor([1e-6, 10.0, -1e6, 1e-3]), torch.tensor([1.0, 1e6, 1.0, 1.0])

    def scaled(scores: torch.Tensor) -> torch.Tensor:
        return scores * of_blocks if scores.dim() == 2 else scores * of_blocks[:, None] * of_heads

    return dataclasses.replace(
        found,
        last={site: scaled(scores) for site, scores in found.last.items()},
        everywhere={site: scaled(scores) for site, scores in found.everywhere.items()},
    )


def test_the_strongest_and_random_ones_are_patched_on_a_sample_of_aligned_pairs() -> None:
    model, cases = tiny_model("llama"), [unaligned_case(20), *with_head(nine_cases())]
    found = weakened(attribute(model, cases))
    told: list[tuple[int, int]] = []
    once = check(model, cases, found, 1, lambda done, total: told.append((done, total)))
    assert [(one.site, one.position) for one in once] == [
        (site, at) for at in ("last", "all") for site in ("attention", "mlp", "head")
    ]
    assert once == check(model, cases, found, 1)
    assert told[-1] == (6 * 8, 6 * 8)
    assert len({one.components[1] for one in once}) > 2  # drawn anew for each
    for one in once:
        assert one.n_pairs == 8
        assert one.components[0] == ((2, 1) if one.site == "head" else (2,))
        assert one.components[1] != one.components[0]
        # One of the nine is left out; which, the means tell.
        exact = patch_exactly(model, cases[1:], one.site, one.position)
        scores = found.last[one.site][1:] if one.position == "last" else found.everywhere[one.site]
        exact, scores = (torch.stack([values[:, *index] for index in one.components], dim=1) for values in (exact, scores))
        rows = [[row for row in range(9) if row != out] for out in range(9)]
        fits = [
            torch.allclose(exact[own].mean(0), torch.tensor(one.exact), atol=1e-4)
            and torch.allclose(scores[own].mean(0), torch.tensor(one.attributed), rtol=1e-4)
            for own in rows
        ]
        assert sum(fits) == 1


def test_more_than_there_are_is_all_of_them_and_none_is_none() -> None:
    model, cases = tiny_model("llama"), nine_cases()
    found = attribute(model, cases)
    assert all(
        len(set(one.components)) == (BLOCKS * HEADS if one.site == "head" else BLOCKS) for one in check(model, cases, found, 100)
    )
    assert check(model, cases, found, 0) == []
