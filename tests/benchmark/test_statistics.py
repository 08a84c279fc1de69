"""Means, ratios and differences of a few repeats: known answers, and the edges where there is nothing to know."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from itwinai.benchmark.statistics.confidence_intervals import Estimate, difference, holm, mean_of, ratio_of
from itwinai.errors import ConfigurationError

T_2 = 4.302652729911275
"""Two-sided 95 % quantile of Student's t with two degrees of freedom, from tables; below with four."""
T_4 = 2.7764451051977987

NOISY = [1.02, 0.97, 1.05, 1.01]
NOISIER = [1.4, 2.0, 1.1]


def exponentials(*logarithms: float) -> list[float]:
    return [math.exp(one) for one in logarithms]


def test_mean_has_the_interval_of_student() -> None:
    estimate = mean_of([1.0, 2.0, 3.0])
    half = T_2 / math.sqrt(3)
    assert (estimate.mean, estimate.n) == (2.0, 3)
    assert (estimate.low, estimate.high) == pytest.approx((2 - half, 2 + half), rel=1e-8)


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert mean_of([4.0]) == Estimate(4.0, None, None, 1)
    with pytest.raises(ConfigurationError, match="no values"):
        mean_of([])


def test_equal_values_have_an_interval_without_width() -> None:
    assert mean_of([0.1, 0.1, 0.1]) == Estimate(0.1, 0.1, 0.1, 3)


def test_mean_of_what_is_not_a_number_is_none() -> None:
    estimate = mean_of([1.0, math.nan])
    assert math.isnan(estimate.mean)
    assert estimate.low is not None and math.isnan(estimate.low)


def test_another_unit_changes_all_ends() -> None:
    assert Estimate(2.0, 1.0, 3.0, 5).times(10) == Estimate(20.0, 10.0, 30.0, 5)
    assert Estimate(2.0, None, None, 1).times(10) == Estimate(20.0, None, None, 1)


def test_ratio_is_of_geometric_means() -> None:
    estimate = ratio_of(exponentials(0.1, 0.2, 0.3), exponentials(0.0, 0.1, 0.2))
    half = T_4 * math.sqrt(2 * 0.01 / 3)
    assert estimate.mean == pytest.approx(math.exp(0.1))
    assert (estimate.low, estimate.high) == pytest.approx((math.exp(0.1 - half), math.exp(0.1 + half)), rel=1e-8)
    assert estimate.n == 3


def test_ratio_has_the_degrees_of_freedom_of_welch_and_satterthwaite() -> None:
    estimate = ratio_of(NOISY, NOISIER)
    logarithms = [[math.log(value) for value in values] for values in (NOISY, NOISIER)]
    expected = stats.ttest_ind(*logarithms, equal_var=False).confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((math.exp(expected.low), math.exp(expected.high)), rel=1e-8)
    assert estimate.n == 3


def test_ratio_is_the_inverse_of_the_other_way_round() -> None:
    there, back = ratio_of(NOISY, NOISIER), ratio_of(NOISIER, NOISY)
    assert there.low is not None and there.high is not None
    assert (back.mean, back.low, back.high) == pytest.approx((1 / there.mean, 1 / there.high, 1 / there.low))


def test_ratio_where_one_side_does_not_vary() -> None:
    half = T_2 * math.sqrt(0.01 / 3)
    estimate = ratio_of(exponentials(0.1, 0.2, 0.3), [1.0, 1.0, 1.0])
    assert (estimate.low, estimate.high) == pytest.approx((math.exp(0.2 - half), math.exp(0.2 + half)), rel=1e-8)
    assert ratio_of([2.0, 2.0], [1.0, 1.0]) == Estimate(2.0, 2.0, 2.0, 2)


def test_ratio_with_a_single_value_has_no_interval() -> None:
    estimate = ratio_of([2.0], [1.0, 1.1])
    assert estimate.mean == pytest.approx(2 / math.sqrt(1.1))
    assert (estimate.low, estimate.high, estimate.n) == (None, None, 1)


@pytest.mark.parametrize("wrong", [[], [0.0, 1.0], [-1.0], [math.inf], [math.nan]])
def test_ratio_takes_positive_values_only(wrong: list[float]) -> None:
    with pytest.raises(ConfigurationError, match="positive"):
        ratio_of(wrong, [1.0])
    with pytest.raises(ConfigurationError, match="positive"):
        difference([1.0, 2.0], wrong)


def test_difference_is_the_p_value_of_welch_on_logarithms() -> None:
    expected = stats.ttest_ind([math.log(one) for one in NOISY], [math.log(one) for one in NOISIER], equal_var=False)
    assert difference(NOISY, NOISIER) == pytest.approx(expected.pvalue, rel=1e-8)
    assert difference(NOISIER, NOISY) == pytest.approx(expected.pvalue, rel=1e-8)


def test_difference_without_noise_is_certain_either_way() -> None:
    for value in (0.1, 0.3, 0.7, 1.1):  # sums of equal numbers are not equal to their products
        assert difference([value] * 3, [value] * 7) == 1.0
    assert difference([0.1, 0.1, 0.1], [0.2, 0.2]) == 0.0


def test_difference_of_one_value_is_not_known() -> None:
    assert difference([1.0], [2.0, 2.1]) is None
    assert difference([1.0, 1.1], [2.0]) is None


def test_holm_known_answer() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_stays_a_probability_and_in_order() -> None:
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
