"""Runs opened in Python: results, figures, and errors that name what is missing."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, small_run

import journey
from journey.engine.checks import ConfigError
from journey.engine.store import Store
from journey.experiment import load_experiment
from journey.pipeline.images import ImageSet
from journey.run import MissingResultError, Run

GUIDE = (Path(__file__).parents[1] / "docs/python.md").read_text()


@pytest.fixture(scope="module")
def run(tiny):
    return journey.load(*TINY, f"artifacts={tiny[0]}/artifacts")


def test_scores_are_those_of_the_artifact(run, tiny):
    scores = run.scores("journey")
    assert scores.shape == (2 * 4, 60)
    assert scores.index.unique("step").tolist() == [600, 200]
    first = next((tiny[0] / "artifacts/scores").glob("*gram-loss-step*/scores.npy"))
    stored = np.load(first).reshape(5, 8, 60)
    assert any((scores.to_numpy() == candidate).all() for candidate in stored)
    assert run.scores("trak").index.unique("step").tolist() == ["final_sample"]


def test_ids_and_classes_of_any_characters_are_in_frames(tmp_path):
    settings, store = small_run(), Store(tmp_path)
    opened = Run(settings, load_experiment(settings, store), store, "")
    pixels, labels = np.zeros((2, 1, 8, 8), np.uint8), np.arange(2)
    images = ImageSet(pixels, labels, None, ("half \udc80", "b\n"), ("\ud800", "x"))
    vars(opened).update(images=images, _scores=lambda name: np.ones((2, 4, 2)))
    assert opened.scores("journey").columns.tolist() == ["half  ", "b "]
    assert opened.proponents("journey", 0, 600)["label"].tolist() == [" ", "x"]


def test_proponents_are_a_table_in_the_order_of_scores(run):
    best = run.proponents("journey", query=3, step=200, k=7)
    scores = run.scores("journey").loc[(200, 3)]
    assert (
        best["id"].tolist() == scores.sort_values(ascending=False, kind="stable").index[:7].tolist()
    )
    assert best["score"].tolist() == scores[best["id"]].tolist()
    assert best["image"][1].shape == (8, 8)
    worst = run.opponents("journey", query=3, step=200, k=1)
    assert worst["score"][1] == scores.min()


def test_lds_and_every_row_are_frames(run):
    lds = run.lds()
    assert set(lds["method"]) == {"journey", "trak", "pixel", "random", "noise_samples"}
    assert (lds["low"] <= lds["value"]).all()
    assert len(run.rows()) == len(run.result["rows"])
    assert set(run.rows(quantity="difference")["against"]) == {"trak", "pixel", "random"}


def test_a_trajectory_is_a_figure(run):
    figure = run.show(query=2)
    assert "journey" in figure.get_suptitle()
    assert len([axes for axes in figure.axes if axes.images]) == 2 * 7
    assert list(run.figures()) == ["lds_by_step.png"]


def test_a_missing_artifact_is_named_with_its_command(tmp_path):
    run = journey.load(*TINY, f"artifacts={tmp_path}", "method=[journey,pixel]")
    for read, message in (
        (
            run.lds,
            r"evaluations/\S+ does not exist; "
            r"compute it by: journey experiment=smoke .*'method=\[journey,pixel\]'$",
        ),
        (lambda: run.scores("pixel"), r"scores/\S+ .* task=attribute$"),
        (lambda: run.images, r"images/\S+ .* task=train$"),
    ):
        with pytest.raises(MissingResultError, match=message):
            read()
    assert list(tmp_path.iterdir()) == [], "nothing is computed"


def test_settings_are_checked_as_by_the_command(run):
    with pytest.raises(ConfigError, match="seed=-1: must be"):
        journey.load(*TINY, "seed=-1")
    with pytest.raises(ConfigError, match="method=nothing: must be one of journey, trak"):
        run.scores("nothing")
    with pytest.raises(ConfigError, match="step=5: must be one of 600, 200"):
        run.proponents("journey", query=0, step=5)


def test_the_examples_of_the_guide_run(tiny, monkeypatch):
    """On the smallest experiment, which has fewer steps and queries."""
    monkeypatch.chdir(tiny[0])
    words = ", ".join(map(repr, TINY))
    code = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)[-1]
    assert "journey.load" in code
    code = code.replace('"experiment=digits"', words).replace("step=400", "step=200")
    exec(code, {"journey": journey})
