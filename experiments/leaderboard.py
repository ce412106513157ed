"""Print LEADERBOARD.md from the committed submissions; tests/report/test_submission.py compares.

python experiments/leaderboard.py > experiments/LEADERBOARD.md
python experiments/leaderboard.py --own      first evaluate our methods, whose scores the bundle has
"""

import json
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import yaml

from journey.engine.files import write_json
from journey.evaluation.rows import format_interval, markdown_text, select
from journey.report.submission import submission

HERE = Path(__file__).parent
BUNDLE = HERE / "methods/methods-bundle.tar.gz"
HELD_OUT = HERE / "methods/methods-held-out.tar.gz"
SUBMISSIONS = HERE / "submissions"
SETTINGS = ("target", "num_checkpoints", "num_samples", "projection", "projection_dim", "damping")
PAPERS = {
    "journey": "arXiv:2312.06205",
    "trak": "arXiv:2303.14186, of the final sample",
    "ekfac": "arXiv:2308.03296, of the step",
    "pixel": "cosine of x̂0_t and training images",
    "random": "a control",
}
HEAD = """# Leaderboard of per-step attribution

Written by `python experiments/leaderboard.py` from the folder `submissions`.
[docs/benchmark.md](../docs/benchmark.md) explains how to enter.
Query-centred LDS × 100 [95%] of linear scores; *steps* are t = {steps}.
"""


def table() -> str:
    """Return the text of LEADERBOARD.md: a table for each benchmark, the best method first."""
    benchmarks: dict[str, list[dict]] = {}
    for path in sorted(SUBMISSIONS.glob("*.json")):
        entry = json.loads(path.read_text())
        benchmarks.setdefault(f"{entry['benchmark']} {entry['bundle_sha256']}", []).append(entry)
    text = ""
    for entries in benchmarks.values():
        first = entries[0]
        steps = ", ".join(map(str, first["paired_steps"]))
        text += HEAD.format(steps=steps) if not text else ""
        counts = " and ".join(f"{n} {part}" for part, n in first["num_subsets"].items())
        text += f"\n## {first['benchmark']}\n\nSubsets: {counts.replace('_', '-')}.\n\n"
        text += "| method | steps, held-out | steps, public | trajectory, held-out "
        text += "| final sample, held-out | who | paper |\n" + "|---" * 7 + "|\n"
        for entry in sorted(entries, key=_held_out_value, reverse=True):
            card = {key: markdown_text(str(value)) for key, value in entry["card"].items()}
            cells = [card["method"], _cell(entry, "held_out", "paired_steps")]
            cells += [_cell(entry, "public", "paired_steps")]
            cells += [_cell(entry, "held_out", target) for target in ("trajectory", "final_sample")]
            text += f"| {' | '.join([*cells, card['who'], card['paper']])} |\n"
        ceiling = {"quantity": "query_centred_ceiling", "method": "noise_samples"}
        cells = [_cell(first, "held_out", "paired_steps", **ceiling)]
        cells += [_cell(first, "public", "paired_steps", **ceiling)]
        for target in ("trajectory", "final_sample"):
            cells.append(_cell(first, "held_out", target, **ceiling))
        text += f"| ceiling, these models | {' | '.join(cells)} | | |\n"
    return text


def _held_out_value(entry: dict) -> float:
    rows = entry["rows"].get("held_out", [])
    found = select(rows, quantity="query_centred", target="paired_steps")
    return found[0]["value"] if found else -1.0


def _cell(entry: dict, part: str, target: str, **conditions: str) -> str:
    conditions = conditions or {"quantity": "query_centred"}
    found = select(entry["rows"].get(part, []), target=target, **conditions)
    return format_interval(found[0], 0, times=100) if found else ""


def evaluate_own() -> None:
    """Write the submissions of the methods whose scores are in the bundle."""
    result = json.loads((HERE / "methods/bundle.json").read_text())
    with tempfile.TemporaryDirectory() as scratch, tarfile.open(BUNDLE) as archive:
        archive.extractall(scratch, filter="data")
        folder = Path(scratch) / "methods-bundle"
        axes = json.loads((folder / "axes.json").read_text())
        for name, paper in PAPERS.items():
            scores = np.load(folder / result["cache_keys"]["scores"][name] / "scores.npy")[0]
            arrays = {"scores": scores, **axes}
            if len(scores) == 1:
                arrays["scores"] = scores[0]
                del arrays["steps"]
            np.savez(folder / "mine.npz", **arrays)
            card = {"method": name, "paper": paper, "who": "the authors of journey"}
            of_method = result["methods"][name]
            card["settings"] = {key: str(of_method[key]) for key in SETTINGS if key in of_method}
            card["in_units_of_output"] = name not in ("pixel", "random")
            (folder / "card.yaml").write_text(yaml.safe_dump(card))
            entry = submission(BUNDLE, folder / "mine.npz", folder / "card.yaml", HELD_OUT)
            write_json(SUBMISSIONS / f"{entry['benchmark']}-{name}.json", entry)


if __name__ == "__main__":
    if "--own" in sys.argv[1:]:
        evaluate_own()
    print(table(), end="")
