"""The whole road through the real entry point, once, and a number that must not move."""

import json
import subprocess
import sys

import numpy as np
import pytest

GOLDEN_LOSSES = [0.525122, 0.366571]
GOLDEN_OUTPUTS = [0.245949, 0.225413, 0.539132, 0.286476]
GOLDEN_SCORE_NORMS = [6.1971, 2.4591, 0.7456, 0.156]


def journey(directory, *words):
    command = [sys.executable, "-m", "journey", "experiment=smoke", *words]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("smoke")
    done = journey(directory)
    assert done.returncode == 0, done.stderr
    return directory, done


def test_report_is_complete_and_named_last(finished):
    directory, done = finished
    assert done.stdout.rstrip().endswith("reports/smoke/: result.json, lds.md, lds_by_step.png, journeys.png")
    for name in ("lds_by_step.png", "journeys.png"):
        assert (directory / "reports/smoke" / name).read_bytes().startswith(b"\x89PNG")
    result = json.loads((directory / "reports/smoke/result.json").read_text())
    assert list(result["lds"]) == ["journey", "trak", "pixel", "random"]
    for lds in (*result["lds"].values(), result["ceiling"]):
        assert len(lds["step"]["mean"]) == len(lds["step"]["ci95"]) == len(result["steps"]) == 3
        assert all(-1 <= low <= high <= 1 for low, high in lds["step"]["ci95"])
    assert [(pair["a"], pair["b"]) for pair in result["paired"]] == [("journey", m) for m in ("trak", "pixel", "random")]
    assert set(result["seconds"]) == {"train", "sample", "measure", "featurize", "score", "total"}
    assert not (directory / "outputs").exists(), "Hydra leaves no directory"


def test_golden_numbers(finished):
    """Losses of the full model, outputs of a retrained one by target, norms of the scores by damping.

    Other processors differ by rounding only, which training amplifies.
    """
    artifacts = finished[0] / "artifacts"
    metrics = next(artifacts.glob("models/digits-ddpm_tiny-s0-*/metrics.jsonl"))
    losses = [json.loads(line)["loss"] for line in metrics.read_text().splitlines()]
    assert losses == pytest.approx(GOLDEN_LOSSES, rel=1e-3)
    outputs = np.load(next(artifacts.glob("outputs/digits-ddpm_tiny-m0-s0-*/outputs.npy"))).mean((0, 2))
    assert outputs.tolist() == pytest.approx(GOLDEN_OUTPUTS, rel=1e-3)
    scores = np.load(next(artifacts.glob("scores/*-journey-*/scores.npy")))
    assert np.sqrt(np.square(scores).sum((1, 2, 3))).tolist() == pytest.approx(GOLDEN_SCORE_NORMS, rel=1e-2)


def test_second_run_makes_nothing_and_says_the_same(finished):
    directory, first = finished
    before = {p: p.stat().st_mtime_ns for p in (directory / "artifacts").rglob("*")}
    again = journey(directory)
    assert again.returncode == 0, again.stderr
    assert {p: p.stat().st_mtime_ns for p in (directory / "artifacts").rglob("*")} == before
    assert again.stdout[again.stdout.index("smoke: LDS") :] == first.stdout[first.stdout.index("smoke: LDS") :]


def test_plan_says_what_is_cached_and_what_is_not(finished):
    directory, _ = finished
    plan = journey(directory, "task=plan", "evaluation.num_subsets=8").stdout
    train = next(line for line in plan.splitlines() if "train" in line)
    assert [cell.strip() for cell in train.split("│")[2:5]] == ["9", "7", "2"]


def test_a_corrupted_artifact_is_one_line(finished):
    directory, _ = finished
    scores = next((directory / "artifacts/evaluations").glob("*/result.json"))
    text = scores.read_text()
    scores.write_text(text.replace("digits", "digitz"))
    done = journey(directory)
    scores.write_text(text)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "result.json: corrupted" in done.stderr
