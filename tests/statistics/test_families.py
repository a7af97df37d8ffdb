"""Families of tests against statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from emosteer.statistics import false_discovery_rate, holm


def test_false_discovery_rate_is_statsmodels_fdr_bh():
    p = np.random.default_rng(10).beta(0.4, 2, 60).round(3)
    np.testing.assert_allclose(false_discovery_rate(p), multipletests(p, method="fdr_bh")[1], rtol=1e-12)


def test_undefined_p_are_no_tests():
    p = np.array([[0.01, np.nan, 0.04], [0.03, 0.5, np.nan]])
    before = p.copy()
    q = false_discovery_rate(p)
    tested = ~np.isnan(p)
    assert q.shape == p.shape
    np.testing.assert_allclose(q[tested], multipletests(p[tested], method="fdr_bh")[1], rtol=1e-12)
    assert np.isnan(q[~tested]).all()
    np.testing.assert_array_equal(p, before)


def test_false_discovery_rate_of_one_of_none_and_of_nonsense():
    assert false_discovery_rate([0.03]) == pytest.approx([0.03])
    assert false_discovery_rate([]).size == 0
    assert np.isnan(false_discovery_rate([np.nan])).all()
    with pytest.raises(ValueError, match="0 and 1"):
        false_discovery_rate([0.2, 1.2])


def test_holm_is_statsmodels_holm_with_ties_and_undefined_ones():
    p = np.random.default_rng(11).beta(0.4, 2, 60).round(3)
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12)

    gaps = np.insert(p, [0, 20, 60], np.nan)
    before = gaps.copy()
    adjusted = holm(gaps)
    np.testing.assert_array_equal(np.isnan(adjusted), np.isnan(gaps))
    np.testing.assert_array_equal(adjusted[~np.isnan(gaps)], holm(p))
    np.testing.assert_array_equal(gaps, before)


def test_holm_by_hand_of_none_and_of_nonsense():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.5]) == pytest.approx([1, 1])
    assert holm([]).size == 0
    assert np.isnan(holm([np.nan])).all()
    with pytest.raises(ValueError, match="0 and 1"):
        holm([0.2, 1.2])
