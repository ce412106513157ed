"""The numbers of documents about cost are those of committed JSON."""

import itertools
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e[−-]\d+)?")
COSTS = json.loads((ROOT / "benchmarks/costs.json").read_text())
PAGE = (ROOT / "docs/costs.md").read_text()
ABLATIONS = (ROOT / "experiments/ablations/README.md").read_text()


def numbers(value) -> set[float]:
    """Return the numbers of JSON, those inside its texts and those of a text."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return {number for item in value for number in numbers(item)}
    if isinstance(value, str):
        texts = NUMBER.findall(value)
        return {float(text.replace(",", "").replace("−", "-")) for text in texts}
    return {float(value)} if isinstance(value, int | float) else set()


def table_rows(text: str) -> list[str]:
    """Return the lines of tables without their headings."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rules = [i for i, line in enumerate(lines) if set(line) <= set("|- ")]
    headings = {i for rule in rules for i in (rule - 1, rule)}
    return [line for i, line in enumerate(lines) if i not in headings]


def test_numbers_are_read_with_their_signs_of_thousands_and_exponents():
    assert numbers("2,800 images, 1.5e−8 and 0.96–1.03 of 128") == {2800, 1.5e-8, 0.96, 1.03, 128}
    assert numbers({"a": [1, {"b": "rank 8"}], "c": None}) == {1, 8}
    assert table_rows("| a | b |\n|---|---|\n| 1 | 2 |\n\ntext\n") == ["| 1 | 2 |"]


def test_every_measurement_has_its_conditions():
    for record in COSTS:
        assert {"benchmark", "command", "machine", "case"} < set(record)
        if record["benchmark"].endswith(".py"):
            assert (ROOT / "benchmarks" / record["benchmark"]).exists()
            assert record["benchmark"] in record["command"]


@pytest.mark.parametrize("row", table_rows(PAGE), ids=lambda row: row[2:24])
def test_every_row_of_the_page_is_one_measurement(row):
    """Or one of each benchmark that it names."""
    named = {record["benchmark"] for record in COSTS if f"`{record['benchmark']}" in row}
    choices = [[r for r in COSTS if r["benchmark"] == name] for name in named] or [COSTS]
    measured = [numbers(list(records)) for records in itertools.product(*choices)]
    assert any(numbers(row) <= known for known in measured), row


def test_no_other_number_of_the_page_is_unmeasured():
    text = re.sub(r"^\|.*$|`[^`]*`", "", PAGE, flags=re.MULTILINE)
    assert numbers(text) <= numbers(COSTS)


def test_the_table_of_lds_and_seconds_is_that_of_its_result():
    """LDS × 100 at the steps / over the trajectory, and mostly seconds, in whatever order."""
    result = json.loads((ROOT / "experiments/ablations/time_to_lds.json").read_text())
    known = set()
    for row in result["rows"]:
        lds = [round(100 * row[target]["value"], 2) for target in ("paired_steps", "trajectory")]
        known |= {(*lds, None), (*lds, float(row["seconds"]))}
    table = ABLATIONS.partition("## LDS per second")[2]
    cells = re.findall(r"([\d.]+) / ([\d.]+)(?:, ([\d.]+) s| \| ([\d.]+) \|)?", table)
    assert len(cells) > 10
    for steps, trajectory, seconds, other in cells:
        measured = float(seconds or other) if seconds or other else None
        assert (float(steps), float(trajectory), measured) in known
