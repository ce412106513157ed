"""The meta-analysis of results: closed forms, a published example, and the committed table."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture
def pooled(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import pooled

    yield pooled
    sys.modules.pop("pooled")


def test_equal_variances_give_students_interval(pooled):
    """τ² is then the variance of the differences minus v, and the interval that of their mean."""
    y, v = np.array([0.31, -0.12, 0.55, 0.07, 0.42]), 0.003
    result = pooled.pool(y, np.full(5, v))
    assert result.value == pytest.approx(y.mean())
    assert result.tau2 == pytest.approx(y.var(ddof=1) - v)
    assert (result.low, result.high) == pytest.approx(
        stats.t.interval(0.95, 4, y.mean(), stats.sem(y))
    )
    half = stats.t.ppf(0.975, 3) * np.sqrt(result.tau2 + y.var(ddof=1) / 5)
    assert result.prediction_high == pytest.approx(y.mean() + half)
    assert result.i2 == pytest.approx(1 - v / y.var(ddof=1))
    assert result.q == pytest.approx(4 * y.var(ddof=1) / v)


def test_differences_that_agree_have_no_heterogeneity_and_no_narrower_interval(pooled):
    v = np.array([0.01, 0.02, 0.04, 0.05])
    result = pooled.pool(np.full(4, 0.2), v)
    assert (result.tau2, result.i2, result.p) == (0, 0, 1)
    assert result.error == pytest.approx((1 / v).sum() ** -0.5), "Hartung and Knapp's would be 0"


def test_a_published_example(pooled):
    """Thirteen trials of the BCG vaccine (Colditz et al. 1994), as metafor's documentation has it.

    Log relative risks of tuberculosis; τ² by restricted maximum likelihood.
    """
    table = [
        (4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619),
        (33, 5036, 47, 5761), (180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892),
        (29, 7470, 45, 7232), (17, 1699, 65, 1600), (186, 50448, 141, 27197), (5, 2493, 3, 2338),
        (27, 16886, 29, 17825),
    ]  # fmt: skip
    a, b, c, d = np.array(table, float).T
    y, v = np.log(a / (a + b)) - np.log(c / (c + d)), 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)
    result = pooled.pool(y, v)
    assert result.tau2 == pytest.approx(0.3132, abs=5e-5)
    assert result.value == pytest.approx(-0.7145, abs=5e-5)
    assert result.error == pytest.approx(0.1808, abs=5e-5)
    assert (result.low, result.high) == pytest.approx((-1.1084, -0.3206), abs=5e-5)
    assert result.i2 == pytest.approx(0.9222, abs=5e-5)
    assert result.q == pytest.approx(152.23, abs=5e-3)


def test_few_results_have_no_interval(pooled):
    result = pooled.pool(np.array([0.1, 0.3]), np.array([0.01, 0.01]))
    assert result.low is result.high is result.prediction_low is None
    assert result.value == pytest.approx(0.2)


def result_of(difference, **others):
    """A result of five queries and eight subsets, with a difference ekfac − journey or none."""
    row = {"quantity": "query_centred_difference", "score_transform": "linear"}
    row |= {"method": "ekfac", "against": "journey", "target": "paired_steps"}
    rows = []
    if difference is not None:
        half = stats.t.ppf(0.975, 4) * 0.1
        rows = [{**row, "value": difference, "low": difference - half, "high": difference + half}]
    sizes = {"num_queries": 5, "num_subsets": 8, "num_seeds": 1, "paired_steps": [400]}
    settings = {"settings": {"evaluation": {}}, "candidates": {"journey": [{}, {}]}}
    return {**sizes, **settings, "rows": rows, **others}


def test_only_results_with_the_primary_statistic_are_pooled(pooled):
    results = {"new": result_of(0.3, primary={}), "newer": result_of(0.1, primary={})}
    results["former"] = result_of(None)
    analysis = pooled.meta_analysis(results, "journey", "ekfac")
    assert [row["value"] for row in analysis["rows"]] == [-0.3, -0.1], "the other direction"
    assert [row["error"] for row in analysis["rows"]] == pytest.approx([0.1, 0.1])
    assert analysis["k"] == 2
    assert analysis["pooled"]["value"] == pytest.approx(-0.2)
    assert [row["folder"] for row in analysis["missing"]] == ["former"]
    assert analysis["missing"][0]["protocol"].startswith("former")
    text = pooled.markdown([analysis])
    assert "| journey − ekfac | −30.0 [−57.8, −2.2] | −10.0 [−37.8, +17.8] | missing |" in text
    single = pooled.meta_analysis({"new": results["new"]}, "journey", "ekfac")
    assert (single["k"], single["pooled"]) == (1, {})


def test_the_committed_table_is_that_of_the_results(pooled):
    analyses = json.loads((EXPERIMENTS / "pooled.json").read_text())
    assert analyses == json.loads(json.dumps(pooled.pooled_results())), (
        "python experiments/pooled.py"
    )
    assert (EXPERIMENTS / "pooled.md").read_text() == pooled.markdown(analyses)
