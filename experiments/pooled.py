"""Pool a paired difference of methods over data sets by a random-effects meta-analysis.

    python experiments/pooled.py      # writes pooled.json and pooled.md beside this file

What is pooled is the primary statistic: the difference of the query-centred LDS of linear scores,
mean over the paired steps. A result of the former protocol does not have it, is listed as missing
and is not pooled.

y_i, v_i  the difference of result i, and the square of its standard error    [k]
τ²        variance of the true differences between data sets, by restricted maximum likelihood
w_i       1 / (v_i + τ²)

The pooled difference is μ = Σ w y / Σ w. Its interval is Hartung and Knapp's (2001), with Student's
t of k − 1 degrees of freedom and the variance

    max(1, Σ w (y − μ)² / (k − 1)) / Σ w,

which is not below that of known τ² (Röver et al. 2015). The prediction interval, of the true
difference on another data set, has k − 2 degrees of freedom (Higgins et al. 2009). I² is the share
of τ² in τ² + s², s² being the typical v (Higgins and Thompson 2002); Q is Cochran's statistic.
As with other means, fewer than MIN_OBSERVATIONS results have no interval.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from pandas import DataFrame
from scipy import stats

from journey.evaluation.lds.datamodeling import PRIMARY
from journey.evaluation.rows import (
    Row,
    format_interval,
    make_row,
    markdown_table,
    negated,
    select,
)
from journey.evaluation.statistics import MIN_OBSERVATIONS

HERE = Path(__file__).parent

FOLDERS = ("digits", "methods", "finetune", "mnist5k", "twemoji")

FILES = ("result.json", "bundle.json")
"""The first one of a folder that has the primary statistic is read; otherwise the first."""

DIFFERENCES = (("journey", "trak"), ("ekfac", "journey"), ("pixel", "journey"))
"""a − b."""

TOLERANCE = 1e-12  # of τ², relative to the typical v


@dataclass(frozen=True)
class Pooled:
    """A random-effects meta-analysis.

    Attributes:
        value: The pooled difference μ.
        error: Its standard error.
        tau2: τ².
        i2: I², in 0…1.
        q: Cochran's Q.
        p: Probability of such a Q or a larger one if all true differences were equal.
        low: Lower end of the 95% interval; None for fewer than MIN_OBSERVATIONS differences.
        high: Its upper end.
        prediction_low: Lower end of the 95% prediction interval, likewise.
        prediction_high: Its upper end.
    """

    value: float
    error: float
    tau2: float
    i2: float
    q: float
    p: float
    low: float | None = None
    high: float | None = None
    prediction_low: float | None = None
    prediction_high: float | None = None


def pool(y: np.ndarray, v: np.ndarray) -> Pooled:
    """Return the random-effects meta-analysis of k ≥ 2 differences and their variances. [k] each"""
    k, fixed = len(y), 1 / v
    q = float((fixed * np.square(y - fixed @ y / fixed.sum())).sum())
    typical = (k - 1) * fixed.sum() / (fixed.sum() ** 2 - np.square(fixed).sum())

    # The likelihood's derivative is zero at τ² (Viechtbauer 2005, Equation 6).
    tau2, before = float(max(0, y.var(ddof=1) - v.mean())), np.inf
    while abs(tau2 - before) > TOLERANCE * typical:
        before, w = tau2, 1 / (v + tau2)
        residual = np.square(y - w @ y / w.sum()) - v
        tau2 = max(0.0, float(np.square(w) @ residual / np.square(w).sum() + 1 / w.sum()))

    w = 1 / (v + tau2)
    value = float(w @ y / w.sum())
    spread = float(w @ np.square(y - value) / (k - 1))
    error = float(np.sqrt(max(1, spread) / w.sum()))
    p, i2 = float(stats.chi2.sf(q, k - 1)), float(tau2 / (tau2 + typical))
    pooled = Pooled(value, error, tau2, i2, q, p)
    if k < MIN_OBSERVATIONS:
        return pooled
    half = float(stats.t.ppf(0.975, k - 1)) * error
    half_prediction = float(stats.t.ppf(0.975, k - 2) * np.sqrt(tau2 + error**2))
    return replace(
        pooled,
        low=value - half,
        high=value + half,
        prediction_low=value - half_prediction,
        prediction_high=value + half_prediction,
    )


def difference(result: dict, method: str, against: str) -> Row | None:
    """Return the query-centred difference of two methods, or None if the result lacks it."""
    conditions = {"quantity": f"{PRIMARY['quantity']}_difference", "target": "paired_steps"}
    conditions["score_transform"] = PRIMARY["score_transform"]
    rows = select(result["rows"], **conditions, method=method, against=against)
    rows += map(negated, select(result["rows"], **conditions, method=against, against=method))
    return rows[0] if rows else None


def standard_error(row: Row, result: dict) -> float:
    """Return the standard error from the 95% interval, which is Student's with min(Q, M) − 1."""
    df = min(result["num_queries"], result["num_subsets"]) - 1
    return (float(row["high"]) - float(row["low"])) / 2 / float(stats.t.ppf(0.975, df))


def protocol(result: dict) -> str:
    """Return how a result was computed, in words."""
    statistic = "query-centred, linear" if "primary" in result else "former: plain, chosen"
    fixed = "journey" in result["settings"]["evaluation"].get("candidates", {})
    choice = "chosen" if len(result["candidates"]["journey"]) > 1 and not fixed else "fixed"
    sizes = [result[key] for key in ("num_queries", "num_subsets", "num_seeds")]
    steps = ", ".join(map(str, result["paired_steps"]))
    text = "{}; λ {}; {} queries; {} subsets × {} seeds; t = {}"
    return text.format(statistic, choice, *sizes, steps)


def meta_analysis(results: dict[str, dict], method: str, against: str) -> dict:
    """Return the differences a − b of all results that have it, the others, and what is pooled."""
    rows, missing, y, v = [], [], [], []
    for folder, result in results.items():
        conditions = {"folder": folder, "protocol": protocol(result)}
        row = difference(result, method, against)
        if row is None:
            missing.append(conditions)
            continue
        error = standard_error(row, result)
        rows.append({**make_row(conditions, row["value"], row["low"], row["high"]), "error": error})
        y.append(float(row["value"]))
        v.append(error**2)
    pooled = {}
    if len(rows) > 1:
        numbers = asdict(pool(np.array(y), np.array(v))).items()
        # The last digits depend on the machine.
        pooled = {name: float(f"{number:.10g}") for name, number in numbers if number is not None}
    analysis = {"method": method, "against": against, "k": len(rows), "pooled": pooled}
    return {**analysis, "rows": rows, "missing": missing}


def markdown(analyses: list[dict]) -> str:
    """Return the tables of all differences, LDS × 100."""
    lines, totals, protocols = [], [], {}
    for analysis in analyses:
        name, pooled = f"{analysis['method']} − {analysis['against']}", analysis["pooled"]
        cells = {"a − b": name}
        for row in [*analysis["rows"], *analysis["missing"]]:
            text = format_interval(row, 1, times=100, sign="+") if "value" in row else "missing"
            cells[row["folder"]] = text
            protocols[row["folder"]] = row["protocol"]
        lines.append(cells)
        total = {"a − b": name, "k": str(analysis["k"])}
        if pooled:
            total["pooled"] = format_interval(pooled, 1, times=100, sign="+")
            total["prediction"] = "–"
            if "prediction_low" in pooled:
                ends = {"low": pooled["prediction_low"], "high": pooled["prediction_high"]}
                total["prediction"] = format_interval({**pooled, **ends}, 1, times=100, sign="+")
            total["τ"] = f"{100 * pooled['tau2'] ** 0.5:.1f}"
            total["I², %"] = f"{100 * pooled['i2']:.0f}"
            total["Q (p)"] = f"{pooled['q']:.1f} ({pooled['p']:.2f})"
        totals.append(total)
    described = [{"result": folder, "protocol": text} for folder, text in protocols.items()]
    tables = (DataFrame(part).fillna("") for part in (lines, totals, described))
    return HEADING + "\n\n".join(map(markdown_table, tables)) + "\n" + NOTES


HEADING = """# Pooled over data sets

Paired differences of the query-centred LDS × 100 of linear scores [95%], mean over the paired
steps. `python experiments/pooled.py` writes this page and `pooled.json`.

"""

NOTES = f"""
k: number of results that are pooled. A result of the former protocol lacks the statistic: it is
missing, and not pooled. `digits` and `methods` are samples of 1,000 of the same 1,797 images,
548 of which are in both, so they are less independent than two data sets; k counts both.

Random effects: τ (standard deviation of the true differences, LDS × 100) by restricted maximum
likelihood, intervals by Hartung and Knapp; the prediction interval is of the true difference on
another data set. Fewer than {MIN_OBSERVATIONS} results have neither interval.
"""


def main() -> None:
    """Write pooled.json and pooled.md."""
    analyses = pooled_results()
    (HERE / "pooled.json").write_text(json.dumps(analyses, indent=1) + "\n")
    (HERE / "pooled.md").write_text(markdown(analyses))


def pooled_results() -> list[dict]:
    """Return the meta-analyses of the committed results."""
    results = {}
    for folder in FOLDERS:
        paths = [HERE / folder / name for name in FILES if (HERE / folder / name).exists()]
        candidates = [json.loads(path.read_text()) for path in paths]
        candidates.sort(key=lambda result: "primary" not in result)
        results[folder] = candidates[0]
    return [meta_analysis(results, *pair) for pair in DIFFERENCES]


if __name__ == "__main__":
    main()
