"""The guard's forecast against sequences whose crossing is known."""

import math

import numpy as np
import pytest

from dyneq.train.guard_trend import FEWEST, Forecast, forecast


def test_a_line_crosses_where_algebra_says() -> None:
    at = [0, 25, 50, 75, 100]
    told = forecast(at, [0.9 + 4e-4 * t for t in at], 1.0)
    assert told.rises is True
    assert told.updates == pytest.approx((1.0 - 0.94) / 4e-4, rel=1e-12)
    assert told.earliest == pytest.approx(told.updates, rel=1e-9)  # without noise the band is the line
    assert told.latest == pytest.approx(told.updates, rel=1e-9)


def test_unevenly_spaced_looks_are_fitted_in_their_time() -> None:
    at = [0, 5, 50, 75, 80]
    told = forecast(at, [0.5 + 2e-3 * t for t in at], 1.0)
    assert told.updates == pytest.approx(250 - 80, rel=1e-12)


def test_one_wild_look_does_not_move_the_forecast_of_many() -> None:
    at = list(range(0, 250, 25))
    values = [0.8 + 5e-4 * t for t in at]
    values[4] = 0.99
    told = forecast(at, values, 1.0)
    assert told.rises is True
    assert told.updates == pytest.approx(400 - 225, rel=1e-9)  # more than half of the pairs lie on the line
    squares = np.polynomial.Polynomial.fit(at, values, 1)
    assert abs(float((squares - 1.0).roots()[0]) - 400) > 5  # which least squares would have moved


@pytest.mark.parametrize("seed", range(3))
def test_the_band_covers_the_slope_as_often_as_it_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    at, slope, inside, trials = np.arange(8) * 25.0, 1e-3, 0, 400
    for _ in range(trials):
        told = forecast(at.tolist(), (slope * at + rng.normal(0, 0.05, 8)).tolist(), 1e9)
        assert told.earliest is not None
        assert told.latest is not None
        # far from the level a crossing is gap/slope, so the band of crossings is that of slopes
        inside += told.earliest <= 1e9 / slope * (1 + 1e-6) and told.latest >= 1e9 / slope * (1 - 1e-6)
    # 90 %, less three standard errors of so many trials; discrete ranks make the true coverage larger, not smaller
    assert inside / trials >= 0.9 - 3 * math.sqrt(0.9 * 0.1 / trials)


def test_noise_around_a_constant_is_undetermined_most_of_the_time() -> None:
    rng = np.random.default_rng(0)
    at = [0, 25, 50, 75]
    found = [forecast(at, (0.95 + rng.normal(0, 0.01, 4)).tolist(), 2.0) for _ in range(480)]
    rising = sum(told.rises is True for told in found)
    # four values rise from one to the next in 1 of 24 orders
    assert rising == pytest.approx(480 / 24, abs=3 * math.sqrt(480 / 24))
    assert all((told.updates is None) == (told.rises is None) for told in found)


@pytest.mark.parametrize("values", [[0.9] * 5, [0.9, 0.89, 0.87, 0.85, 0.8]])
def test_what_does_not_rise_never_crosses(values: list[float]) -> None:
    told = forecast([0, 1, 2, 3, 4], values, 1.0)
    assert (told.updates, told.rises, told.number()) == (math.inf, False, "none")


def test_what_is_there_needs_no_trend() -> None:
    assert forecast([0], [1.0], 1.0) == Forecast(0.0, 0.0, 0.0, None)
    assert forecast([0, 1, 2, 3], [0.9, 1.0, 1.1, 1.2], 1.0).rises is True
    assert forecast([0, 1, 2, 3], [1.4, 1.3, 1.2, 1.1], 1.0).rises is False


def test_too_few_values_and_a_last_one_that_is_none_are_undetermined() -> None:
    assert forecast([], [], 1.0).updates is None
    assert forecast(range(FEWEST - 1), [0.1, 0.2, 0.3], 1.0).updates is None
    assert forecast(range(5), [0.1, 0.2, 0.3, 0.4, math.nan], 1.0).number() == "undetermined"
    assert forecast(range(5), [0.1, math.nan, 0.3, 0.4, 0.5], 1.0).updates == pytest.approx(5.0, rel=1e-12)
    assert forecast(range(4), [0.1, math.nan, 0.3, 0.4], 1.0).updates is None
    assert forecast(range(4), [0.1, 0.2, 0.3, math.inf], 1.0).updates is None
    with pytest.raises(ValueError, match="as many times"):
        forecast([1], [1, 2], 1.0)
