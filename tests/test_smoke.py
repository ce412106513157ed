"""The smallest experiment through the real entry point, and golden numbers."""

import itertools
import json
import re
import shlex
import shutil

import numpy as np
import pytest
from conftest import TINY, command, python, refused, succeeds

from journey.evaluation.lds.datamodeling import PRIMARY
from journey.evaluation.rows import method_names, select

GOLDEN_LOSSES = [0.525122, 0.366571]
GOLDEN_OUTPUTS = [0.246904, 0.302152, 0.556884, 0.362219]
GOLDEN_SCORE_NORMS = [8.2707, 4.2388, 1.5384, 0.4268, 0.0813]


def journey(directory, *words):
    return command(directory, "experiment=smoke", *words)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run it as users do, in a new process."""
    directory = tmp_path_factory.mktemp("smoke")
    process = python(directory, "-m", "journey", "experiment=smoke")
    succeeds(process)
    return directory, process


def result_of(directory):
    return json.loads((directory / "reports/smoke/result.json").read_text())


def test_the_report_is_complete_and_its_files_are_listed_last(finished):
    directory, process = finished
    assert process.stdout.rstrip().endswith(
        "reports/smoke/: index.html, result.json, lds.md, lds.tex, lds_by_step.png, "
        "trajectories.png, samples.png, training_images.png"
    )
    assert process.stderr == ""
    for name in ("lds_by_step.png", "trajectories.png", "samples.png", "training_images.png"):
        assert (directory / "reports/smoke" / name).read_bytes().startswith(b"\x89PNG")
    result = result_of(directory)
    rows = result["rows"]
    assert method_names(rows, "lds") == ["journey", "trak", "pixel", "random"]
    evaluated = [
        select(rows, quantity="lds", method=name, score_transform="chosen")
        for name in method_names(rows, "lds")
    ]
    for rows_of in (*evaluated, select(rows, quantity="ceiling", method="noise_samples")):
        at_steps = select(rows_of, target="step")
        assert [row["step"] for row in at_steps] == result["steps"] == [600, 300, 100]
        assert all(row["low"] <= row["value"] <= row["high"] for row in rows_of)
        assert {row["target"] for row in rows_of} == {
            "step",
            "paired_steps",
            "trajectory",
            "final_sample",
        }
    pairs = set(itertools.combinations(method_names(rows, "lds"), 2))
    for quantity in ("difference", "query_centred_difference"):
        compared = select(rows, quantity=quantity)
        assert {(row["method"], row["against"]) for row in compared} == pairs
    assert set(result["seconds"]) == {
        "images",
        "train",
        "sample",
        "measure",
        "featurize",
        "score",
        "total",
    }
    assert not (directory / "outputs").exists(), "Hydra leaves no directory"
    assert sorted(p.name for p in directory.iterdir()) == ["artifacts", "reports"]


def test_a_result_records_its_provenance(finished):
    directory, _ = finished
    result = result_of(directory)
    expected = {"num_steps": 60, "batch_size": 32, "warmup_steps": 10}.items()
    assert expected <= result["settings"]["training"].items()
    keys = result["cache_keys"]
    single = [keys["evaluation"], keys["images"], keys["trajectories"]]
    for key in [*single, *keys["checkpoints"], *keys["scores"].values()]:
        assert (directory / "artifacts" / key / "manifest.json").exists()
    assert set(result["versions"]) > {"python", "torch", "diffusers", "numpy"}
    for method, cost in result["cost"].items():
        assert cost["bytes"] > 0, method
        assert (cost["gradients"] > 0) == (method in ("journey", "trak"))


def test_golden_numbers(finished):
    """Check losses of the full model, outputs of a retrained one, and norms of scores by damping.

    Processors differ by rounding only, which training amplifies.
    """
    artifacts = finished[0] / "artifacts"
    metrics = next(artifacts.glob("models/digits200-ddpm8-16-s0-*/metrics.jsonl"))
    losses = [json.loads(line)["loss"] for line in metrics.read_text().splitlines()]
    assert losses == pytest.approx(GOLDEN_LOSSES, rel=1e-3)
    outputs = np.load(next(artifacts.glob("outputs/digits200-ddpm8-16-m0-s0-*/outputs.npy"))).mean(
        (0, 2)
    )
    assert outputs.tolist() == pytest.approx(GOLDEN_OUTPUTS, rel=1e-3)
    scores = np.load(
        artifacts / result_of(finished[0])["cache_keys"]["scores"]["journey"] / "scores.npy"
    )
    assert np.sqrt(np.square(scores).sum((1, 2, 3))).tolist() == pytest.approx(
        GOLDEN_SCORE_NORMS, rel=1e-2
    )


def test_a_second_run_computes_nothing_and_prints_the_same(finished):
    directory, first = finished
    before = {p: p.stat().st_mtime_ns for p in (directory / "artifacts").rglob("*")}
    again = journey(directory)
    assert again.returncode == 0, again.stderr
    assert {p: p.stat().st_mtime_ns for p in (directory / "artifacts").rglob("*")} == before
    assert (
        again.stdout[again.stdout.index("smoke: query-centred LDS") :]
        == first.stdout[first.stdout.index("smoke: query-centred LDS") :]
    )


def test_the_plan_counts_cached_and_missing_artifacts(finished):
    directory, _ = finished
    plan = journey(directory, "task=plan", "retraining.num_subsets=10").stdout
    train = next(line for line in plan.splitlines() if line.startswith("│ train"))
    assert [cell.strip() for cell in train.split("│")[2:5]] == ["11", "9", "2"]


def test_a_corrupted_artifact_is_reported_in_one_line(finished):
    directory, _ = finished
    artifact = next((directory / "artifacts/evaluations").glob("*/result.json"))
    text, times = artifact.read_text(), artifact.stat()
    artifact.write_text(text.replace("journey", "journez"))
    done, verified = journey(directory), journey(directory, "task=verify")
    artifact.write_text(text)
    assert done.returncode == verified.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "result.json: corrupted" in done.stderr
    assert verified.stdout.count("\n") == 1
    assert "result.json: corrupted" in verified.stdout
    assert verified.stderr.startswith("error: artifacts: 1 damaged artifacts")
    assert times.st_size == artifact.stat().st_size
    sound = journey(directory, "task=verify")
    assert (sound.returncode, sound.stdout) == (
        0,
        "artifacts: every artifact matches its manifest\n",
    )


def test_a_sweep_has_a_report_for_every_point_and_a_table_of_all(finished):
    directory, _ = finished
    before = {p.name for p in (directory / "artifacts/models").iterdir()}
    done = command(
        directory, "-m", "experiment=smoke", "evaluation.num_bootstrap=200,300", "reports=sweep"
    )
    assert done.returncode == 0, done.stderr
    sweep = directory / "sweep/smoke/sweep-evaluation.num_bootstrap"
    names = [f"evaluation.num_bootstrap={count}" for count in (200, 300)]
    for name in names:
        result = json.loads((sweep / name / "result.json").read_text())
        assert name.endswith(f"={result['num_bootstrap']}")
    table = [line.split("│") for line in done.stdout.splitlines()][-5:]
    labels = [cells[1].strip() for cells in table if len(cells) > 1]
    assert labels == names
    results = json.loads((sweep / "sweep.json").read_text())
    assert [point["point"] for point in results] == names
    page = (sweep / "index.html").read_text()
    for point in results:
        assert f'<a href="{point["report"]}">{point["point"]}</a>' in page
        assert (sweep / point["report"]).is_file()
    assert [
        line.split(" | ")[0] for line in (sweep / "table.md").read_text().splitlines()[2:4]
    ] == [f"| {name}" for name in names]
    plain = journey(directory, "reports=sweep")
    assert plain.returncode == 0, plain.stderr
    assert (sweep / "index.html").read_text() == page, "a plain run leaves the sweep alone"
    assert {p.name for p in (directory / "artifacts/models").iterdir()} == before, "the same models"


def test_optuna_chooses_the_points_of_a_sweep(tmp_path):
    """Over damping and noise samples: as many points as allowed, each with a report and a line."""
    space = ("method=[journey]", "attribution.num_samples=2,4", "method.journey.damping=[1],[10]")
    done = command(
        tmp_path,
        "-m",
        *TINY,
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.sampler.seed=0",
        *space,
    )
    assert done.returncode == 0, done.stderr
    results = [
        json.loads(path.read_text())
        for path in (tmp_path / "reports/smoke").glob("*/*/result.json")
    ]
    headlines = [select(r["rows"], **PRIMARY, target="paired_steps")[0]["value"] for r in results]
    assert len(results) == 2
    (best,) = re.findall(r"Best value: (\S+)", done.stdout)
    assert float(best) == pytest.approx(max(headlines)), "the larger, the better"
    table = done.stdout[done.stdout.rindex("query_centred (× 100") :]
    assert table.count(" ± ") == 1 + 2, "in the title, and a cell for each point"
    assert "retraining" not in table, "settings that all points share are left out"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["-m", "hydra.sweeper.direction=minimize"],
            "error: hydra.sweeper.direction=minimize: must be left out",
        ),
        (
            ["-m", "task=plan", "seed=0,1"],
            "error: task=plan: must be report with hydra/sweeper=optuna",
        ),
        (
            ["-m", "training.learning_rate=interval(-1,1)"],
            "error: training.learning_rate=-1.0: must be in",
        ),
        ([], "error: hydra/sweeper=optuna=a single run: must be a sweep"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_impossible_search_is_refused_before_it_starts(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    words = (*words[:1], *TINY, "hydra/sweeper=optuna", *words[1:])
    assert refused(monkeypatch, *words).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_with_a_bad_point_runs_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = refused(monkeypatch, "-m", *TINY, "seed=0,-1")
    assert text.startswith("error: seed=-1: must be in 0…")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_evaluates_scores_of_others_beside_ours(finished, tmp_path):
    """As its card says: nothing is trained, and our own results are the same."""
    directory, _ = finished
    done = journey(directory, "task=export")
    assert done.returncode == 0, done.stderr
    shutil.unpack_archive(directory / "reports/smoke-bundle.tar.gz", tmp_path)
    bundle = tmp_path / "smoke-bundle"
    card = (bundle / "README.md").read_text()
    words, _ = re.findall(r"^    journey (.*)$", card, re.MULTILINE)
    ours = result_of(directory)
    scores = np.load(bundle / ours["cache_keys"]["scores"]["pixel"] / "scores.npy")[0]
    np.savez(bundle / "mine.npz", scores=scores, **json.loads((bundle / "axes.json").read_text()))
    masks, outputs = np.load(bundle / "masks.npz"), list((bundle / "outputs").iterdir())
    assert sorted(masks.files) == sorted(path.name for path in outputs)
    assert sorted({int(masks[name].sum()) for name in masks.files}) == [100, 200], (
        "halves, and the full model"
    )

    done = command(bundle, *shlex.split(words), "method.external.in_units_of_output=false")
    assert done.returncode == 0, done.stderr
    rows = result_of(bundle)["rows"]
    for quantity, methods in (
        ("lds", method_names(ours["rows"], "lds")),
        ("ceiling", ["noise_samples"]),
    ):
        for method in methods:
            assert select(rows, quantity=quantity, method=method) == select(
                ours["rows"], quantity=quantity, method=method
            )
    values = [
        [row["value"] for row in select(rows, quantity="lds", method=method)]
        for method in ("external", "pixel")
    ]
    assert values[0] == values[1]
    assert len(list((bundle / "models").iterdir())) == 1, (
        "the checkpoint alone, and nothing is trained"
    )
