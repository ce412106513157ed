"""Emergence of the parts of portraits beside loops, and scores whose recall is known."""

import json

import numpy as np
import pytest
from conftest import journey_trak, small_run
from rich.console import Console

from journey.attribution.baselines import Pixel, Random
from journey.data.images import train_images
from journey.data.parts import FAMILIES, Parts, is_unseen, portrait_parts, read_parts
from journey.engine.checks import ConfigError
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.evaluation.emergence import Emergence, Features, analysis
from journey.evaluation.ranking import top_images
from journey.evaluation.rows import select
from journey.experiment import load_experiment
from journey.pipeline.settings import Sampler, Sampling, Target, Training

STEPS = [600, 300, 100]
PARTS = Emergence(num_continuations=4, top_k=10, num_bootstrap=100, features=Features.parts)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The result of a small run, its spec and the workspace with its artifacts."""
    run = small_run(
        dataset=Parts(num_train=60, size=16),
        sampling=Sampling(Sampler.ddpm, 50, num_queries=5, steps=STEPS),
        training=Training(num_steps=20, batch_size=16, warmup_steps=4),
        evaluation=PARTS,
        method={
            "journey": journey_trak(),
            "trak": journey_trak(target=Target.final_sample),
            "pixel": Pixel(),
            "random": Random(),
        },
    )
    store = Store(tmp_path_factory.mktemp("store"))
    workspace = Workspace(store, run.compute, run.tracking, "test")
    spec = load_experiment(run, store).evaluation(run.evaluation, run.all_methods)
    return json.loads((get(spec, workspace).path / "result.json").read_text()), spec, workspace


def read(pictures):
    """Return the parts [n, 6] of pictures in −1…1, read one by one."""
    return np.array([read_parts((picture[None].clip(-1, 1) + 1) / 2)[0][0] for picture in pictures])


def queries_of(evaluated):
    _, spec, workspace = evaluated
    return read(get(spec.trajectories, workspace).array("final.npy"))  # [Q, 6]


def test_probabilities_are_those_of_a_loop_over_continuations(evaluated):
    result, spec, workspace = evaluated
    own = queries_of(evaluated)
    for s, t in enumerate(STEPS):
        final = get(spec.inputs.continuations[s], workspace).array("final.npy")[0]
        hits = [read(final[q, 1:]) == own[q] for q in range(5)]  # the first repeats the trajectory
        for i, family in enumerate(FAMILIES):
            (row,) = select(result["rows"], quantity="probability", method=family, step=t)
            assert row["value"] == pytest.approx(np.mean([hit[:, i] for hit in hits]))


def test_precision_recall_and_excess_are_those_of_loops(evaluated):
    result, spec, workspace = evaluated
    own = queries_of(evaluated)
    train = portrait_parts("dataset", train_images(spec.trajectories.checkpoint.images, workspace))
    scores = get(spec.scores["journey"], workspace).array("scores.npy")[1]  # of two λ
    for s, t in enumerate(STEPS):
        for i, family in enumerate(FAMILIES):
            precision, recall, permuted = [], [], []
            for q in range(5):
                top = train[np.argsort(-scores[s, q], kind="stable")[:10], i]
                precision.append((top == own[q, i]).mean())
                having = (train[:, i] == own[q, i]).sum()
                recall.append((top == own[q, i]).sum() / having if having else 0)
                permuted.append(np.mean([(top == own[p, i]).mean() for p in range(5) if p != q]))
            expected = {"class_share": np.mean(precision), "recall": np.mean(recall)}
            expected["excess"] = np.mean(precision) - np.mean(permuted)
            for quantity, value in expected.items():
                conditions = {"method": "journey", "classifier": family, "step": t}
                (row,) = select(result["rows"], quantity=quantity, **conditions)
                assert row["value"] == pytest.approx(value)


def test_parts_are_read_without_error_and_every_method_is_evaluated(evaluated):
    result, _, _ = evaluated
    accuracy = select(result["rows"], quantity="accuracy")
    assert [row["method"] for row in accuracy] == list(FAMILIES)
    assert {row["value"] for row in accuracy} == {1.0}
    shares = select(result["rows"], quantity="class_share", classifier="hat")
    assert {row["method"] for row in shares} == {"journey", "trak", "pixel", "random"}
    assert "trak" not in result["queries"]["attribution_step"], "it has one score for all steps"
    assert result["queries"]["unseen"] == [is_unseen(query) for query in queries_of(evaluated)]
    heads = result["queries"]["class"]["head"]
    assert heads == [FAMILIES["head"][query[3]] for query in queries_of(evaluated)]
    (record,) = select(result["per_query"], method="random", classifier="hat")
    assert np.shape(record["class_share"]) == (3, 5)


def test_figures_and_tables_show_the_result(evaluated):
    result = evaluated[0] | {"experiment": "test", "variants": []}
    figures = PARTS.figures(result)
    assert list(figures) == ["emergence.png", "parts.png"]
    axes = figures["parts.png"].axes
    assert [panel.get_title() for panel in axes[:6]] == list(FAMILIES)
    console = Console(record=True, width=200)
    console.print(*PARTS.tables(result))
    assert "permuted queries" in console.export_text()
    assert next(iter(PARTS.curves(result))) == "P(part of the final sample | x_t)"


@pytest.mark.parametrize("knows", [True, False])
def test_the_recall_of_scores_that_know_the_part_is_known(knows):
    random = np.random.default_rng(0)
    train, labels = np.arange(400) % 8, np.arange(24) % 8  # 50 images of each
    scores = random.standard_normal((2, 24, 400))
    if knows:
        scores += 100 * (train == labels[:, None])
    bootstrap = analysis.Bootstrap(24, 300, seed=0)
    steps, unseen = np.array([600, 300]), np.arange(24) < 6
    rows = analysis.ranking_rows(
        top_images(scores, 20), train, labels, bootstrap, steps, {"method": "a"}, unseen
    )
    (share, recall, excess) = (
        select(rows, quantity=name, step=300)[0] for name in ("class_share", "recall", "excess")
    )
    (mean,) = select(rows, quantity="excess", target="mean_of_steps")
    if knows:
        assert share["value"] == 1
        assert recall["value"] == pytest.approx(20 / 50)
        # Two of 23 other queries have the same part.
        assert excess["value"] == mean["value"] == pytest.approx(21 / 23)
        for target in ("seen", "unseen"):
            (row,) = select(rows, quantity="excess", target=target)
            assert row["value"] == pytest.approx(21 / 23)
    else:
        assert share["value"] == pytest.approx(1 / 8, abs=0.05)
        assert mean["low"] < 0 < mean["high"]


def test_other_images_than_portraits_are_refused(digits):
    message = r"^evaluation\.features=parts: must be classes unless dataset=parts"
    with pytest.raises(ConfigError, match=message):
        PARTS.check_data("evaluation", None, digits)
