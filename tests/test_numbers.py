"""Every number with an interval in a document or a configuration is in a committed result."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
NUMBER = r"[+−-]?\d+(?:,\d{3})*(?:\.\d+)?"
WITH_INTERVAL = re.compile(rf"({NUMBER})%? \[({NUMBER})%?, ({NUMBER})%?\]")
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for pattern in ("README.md", "docs/*.md", "experiments/**/README.md", "conf/**/*.yaml")
    for path in ROOT.glob(pattern)
    if WITH_INTERVAL.search(path.read_text())
)


def intervals(value) -> list[tuple[float, float, float]]:
    """Return every (value, low, high) inside JSON."""
    if isinstance(value, list):
        return [triple for item in value for triple in intervals(item)]
    if not isinstance(value, dict):
        return []
    found = intervals(list(value.values()))
    triple = tuple(value.get(key) for key in ("value", "low", "high"))
    if all(isinstance(number, int | float) for number in triple):
        found.append(triple)
    return found


@pytest.fixture(scope="module")
def committed() -> dict[str, np.ndarray]:
    """Return the intervals [n, 3] of the results of each folder of experiments/, and of itself."""
    results: dict[str, list] = {}
    for path in sorted(ROOT.glob("experiments/**/*.json")):
        results.setdefault(path.parent.name, []).extend(intervals(json.loads(path.read_text())))
    return {name: np.array(triples, float).reshape(-1, 3) for name, triples in results.items()}


def is_rounded(texts: tuple[str, ...], triples: np.ndarray) -> bool:
    """Return whether a triple, its percentage, or either's negative is rounded to the texts."""
    printed = np.array([float(text.replace("−", "-").replace(",", "")) for text in texts])
    half = np.array([0.5 * 10.0 ** -len(text.partition(".")[2]) for text in texts]) + 1e-9
    variants = [triples, -triples[:, [0, 2, 1]]]
    variants += [100 * variant for variant in variants]
    return any((np.abs(variant - printed) <= half).all(1).any() for variant in variants)


def test_a_number_that_no_result_has_is_noticed():
    triples = np.array([[0.107, 0.022, 0.186]])
    assert is_rounded(("+10.7", "2.2", "18.6"), triples)
    assert is_rounded(("−11", "−19", "−2"), triples)
    assert not is_rounded(("+10.7", "2.2", "18.7"), triples)
    assert len(DOCUMENTS) > 20, "the pattern finds the documents' numbers"


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_interval_is_in_a_committed_result(document, committed):
    """A README of an experiment quotes results of its folder and of folders that it names."""
    text = (ROOT / document).read_text()
    folder = document.parent.name if document.parts[0] == "experiments" else ""
    named = [name for name in committed if re.search(rf"\b{name}\b", text) or name == folder]
    triples = np.concatenate([committed[name] for name in named if folder] or [*committed.values()])
    missing = [
        f"line {number}: {match[0]}"
        for number, line in enumerate(text.splitlines(), 1)
        for match in WITH_INTERVAL.finditer(line)
        if not is_rounded(match.groups(), triples)
    ]
    assert not missing, f"{document}: {missing}"
