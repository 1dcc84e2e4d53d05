"""Every test vector of the method, to six significant digits.

HEADWAY_STATS_VECTORS names another file of the same format to run instead.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headway import stats

SHIPPED = Path(__file__).resolve().parents[2] / "data" / "vectors.json"
FILE = Path(os.environ.get("HEADWAY_STATS_VECTORS") or SHIPPED)
VECTORS: list[dict[str, Any]] = json.loads(FILE.read_text())

# The vectors' names of arguments, where they are not ours.
NAMES = {
    "U": "score",
    "I": "information",
    "W": "weighted_sum",
    "strata_nA_kA_nB_kB": "strata",
    "counts_nA_kA_nB_kB_pi": "blocks",
    "events_xA_xB_pi": "blocks",
    "counts": "blocks",
    "minutes_k_n": "minutes",
    "grid": "ratios",
}


def renamed(given: dict[str, Any]) -> dict[str, Any]:
    return {NAMES.get(name, name): value for name, value in given.items()}


def plainly(function: Callable[..., Any], **names: str) -> Callable[..., Any]:
    return lambda given: function(**renamed({names.get(name, name): value for name, value in given.items()}))


def ratio_variance(given: dict[str, Any]) -> dict[str, Any]:
    sums = stats.RatioStatistics(**given.pop("stats"))
    estimate = stats.ratio_variance(sums, **given)
    return {"ratio": estimate.ratio, "var": estimate.variance}


def stratified_confidence_sequence(given: dict[str, Any]) -> dict[str, Any]:
    estimate = stats.stratified_confidence_sequence(**renamed(given))
    return {"I": estimate.information, "W": estimate.weighted_sum, "cs": estimate.interval}


def cuped_adjustment(given: dict[str, Any]) -> Any:
    stable = stats.CovariateSums(n=given.pop("nA"), **given.pop("A"))
    candidate = stats.CovariateSums(n=given.pop("nB"), **given.pop("B"))
    return stats.cuped_adjustment(stable, candidate, **given)


def log_histogram_bin(given: dict[str, Any]) -> Any:
    values = given.pop("x")
    if isinstance(values, list):
        return [stats.log_histogram_bin(value, **given) for value in values]
    return stats.log_histogram_bin(values, **given)


FUNCTIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "ratio_variance": ratio_variance,
    "normal_mixture_log_e": plainly(stats.normal_mixture_log_e),
    "normal_mixture_boundary": plainly(stats.normal_mixture_boundary),
    "information_to_decide": plainly(stats.information_to_decide),
    "stratified_confidence_sequence": stratified_confidence_sequence,
    "confidence_sequence": plainly(stats.confidence_sequence),
    "reverse_information_projection": plainly(stats.reverse_information_projection),
    "two_sample_log_e": plainly(stats.two_sample_log_e),
    "event_ratio_log_e": plainly(stats.event_ratio_log_e),
    "event_ratio_confidence_sequence": plainly(stats.event_ratio_confidence_sequence),
    "betting_log_e": plainly(stats.betting_log_e, grid="fractions"),
    "quantile_rank_bounds": plainly(stats.quantile_rank_bounds),
    "sample_ratio_log_e": plainly(stats.sample_ratio_log_e),
    "cuped_adjustment": cuped_adjustment,
    "change_detector": plainly(stats.change_detector),
    "log_histogram_bin": log_histogram_bin,
}


def compute(function: str, given: dict[str, Any]) -> Any:
    if function not in FUNCTIONS:
        pytest.fail(f"The vectors name a function that is not known: {function}")
    return FUNCTIONS[function](dict(given))


def differences(actual: Any, expected: Any, where: str = "result") -> list[str]:
    """Where a result is not the expected one to six significant digits; numbers may come as "inf", "-inf", "nan"."""
    if isinstance(expected, dict):
        if set(actual) != set(expected):
            return [f"{where}: {sorted(actual)} instead of {sorted(expected)}"]
        return [item for key in expected for item in differences(actual[key], expected[key], f"{where}.{key}")]
    if isinstance(expected, list):
        found = list(actual)
        if len(found) != len(expected):
            return [f"{where}: {len(found)} elements instead of {len(expected)}"]
        pairs = zip(found, expected, strict=True)
        return [item for i, (a, e) in enumerate(pairs) for item in differences(a, e, f"{where}[{i}]")]
    whole = isinstance(expected, int) and isinstance(actual, (int, np.integer))
    same = agree(float(actual), float(expected), whole=whole)
    return [] if same else [f"{where}: {float(actual)!r} instead of {expected!r}"]


def agree(actual: float, expected: float, *, whole: bool) -> bool:
    if math.isnan(expected):
        return math.isnan(actual)
    if whole or math.isinf(expected):
        return actual == expected
    if expected == 0:
        return abs(actual) <= 1e-9
    unit = 10.0 ** (math.floor(math.log10(abs(expected))) - 5)  # one in the sixth digit
    return abs(actual - expected) <= 0.51 * unit


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector['id']}-{vector['function']}")
def test_vector(vector: dict[str, Any]) -> None:
    actual, expected = compute(vector["function"], vector["input"]), vector["output"]
    if vector["function"] == "ratio_variance" and not isinstance(expected, dict):
        actual = actual["var"]  # where there is no ratio to speak of, the vectors give the variance alone
    assert differences(actual, expected) == []


def test_the_vectors_reach_every_function() -> None:
    assert {vector["function"] for vector in json.loads(SHIPPED.read_text())} == set(FUNCTIONS)
    assert set(FUNCTIONS) <= set(stats.__all__)


def test_an_unknown_function_fails() -> None:
    with pytest.raises(pytest.fail.Exception, match="not known: no_such_function"):
        compute("no_such_function", {})


def test_an_unknown_argument_fails() -> None:
    with pytest.raises(TypeError):
        compute("normal_mixture_log_e", {"U": 0, "I": 0, "rho": 1, "sided": "two"})


@pytest.mark.parametrize(
    ("actual", "expected", "same"),
    [
        (0.1234564, 0.123456, True),
        (0.123457, 0.123456, False),
        (-28.72912, -28.7291, True),
        (28.7291, -28.7291, False),
        (1e-12, 0.0, True),
        (1e-7, 0.0, False),
        (85, 84, False),
        (math.inf, "inf", True),
        (-math.inf, "inf", False),
        (math.nan, "nan", True),
        (0.0, "nan", False),
        (math.nan, 0.5, False),
        ([1.0], [1.0, 2.0], False),
        (np.array([1.0, 2.0]), [1.0, 2.0], True),
        ({"a": 1.0}, {"b": 1.0}, False),
    ],
)
def test_six_digits_are_compared(actual: Any, expected: Any, same: bool) -> None:
    assert (differences(actual, expected) == []) is same
