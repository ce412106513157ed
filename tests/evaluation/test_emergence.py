"""Emergence on a small real run beside loops, and on scores that do or do not follow emergence."""

import json

import numpy as np
import pytest
from conftest import journey_trak, small_run
from rich.console import Console
from scipy.stats import spearmanr

from journey.attribution.baselines import Encoder, Pixel
from journey.data.images import train_images
from journey.engine.checks import ConfigError
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.evaluation.classifiers import classify_final_samples, train_classifiers
from journey.evaluation.emergence import Emergence
from journey.evaluation.emergence.analysis import (
    CENTRE,
    HALFWAY,
    Bootstrap,
    attribution_steps,
    halfway,
    prediction_rows,
)
from journey.evaluation.ranking import base_rate, class_share, top_images
from journey.evaluation.rows import select
from journey.experiment import load_experiment
from journey.pipeline.images import ImageSet
from journey.pipeline.settings import Sampler, Sampling, Target, Training

STEPS = [600, 300, 100]
EMERGENCE = Emergence(num_continuations=4, encoder=Encoder(side=32), top_k=10, num_bootstrap=100)


def emergence_run(**changes):
    settings = {
        "sampling": Sampling(Sampler.ddpm, 50, num_queries=5, steps=STEPS),
        "training": Training(num_steps=60, batch_size=16, warmup_steps=4),
        "evaluation": EMERGENCE,
        "method": {
            "journey": journey_trak(),
            "trak": journey_trak(target=Target.final_sample),
            "pixel": Pixel(),
        },
    }
    return small_run(**{**settings, **changes})


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The result of a small run, its spec and the workspace with its artifacts."""
    run = emergence_run()
    store = Store(tmp_path_factory.mktemp("store"))
    workspace = Workspace(store, run.compute, run.tracking, "test")
    spec = load_experiment(run, store).evaluation(run.evaluation, run.all_methods)
    return json.loads((get(spec, workspace).path / "result.json").read_text()), spec, workspace


def test_probabilities_and_agreement_are_those_of_a_loop(evaluated):
    result, spec, workspace = evaluated
    embeddings = spec.inputs.embeddings
    classifiers = train_classifiers(embeddings, workspace)
    classes = classify_final_samples(classifiers, embeddings, spec.trajectories, workspace)
    for s, t in enumerate(STEPS):
        continued = get(spec.inputs.continuations[s], workspace)
        final, features = (continued.array(f"{name}.npy")[0] for name in ("final", "features"))
        correct, agreed = {"pixels": [], "features": []}, []
        for q in range(5):
            for j in range(1, 5):  # the first has the noise of the trajectory itself
                labels = {
                    "pixels": classifiers.pixels.predict(final[q, j].reshape(1, -1))[0],
                    "features": classifiers.features.predict(features[q, j][None])[0],
                }
                agreed.append(labels["pixels"] == labels["features"])
                for name in labels:
                    correct[name].append(labels[name] == classes[name][q])
        for name in correct:
            (row,) = select(result["rows"], quantity="probability", method=name, step=t)
            assert row["value"] == pytest.approx(np.mean(correct[name]))
            assert row["low"] <= row["value"] <= row["high"]
        (row,) = select(result["rows"], quantity="agreement", step=t)
        assert row["value"] == pytest.approx(np.mean(agreed))


def test_appearance_is_nearly_determined_at_the_last_step(evaluated):
    for name in ("ink", "slant", "symmetry"):
        rows = select(evaluated[0]["rows"], quantity="explained_variance", method=name)
        assert [row["step"] for row in rows] == STEPS
        assert rows[-1]["value"] > 0.8 > rows[0]["value"]


def test_class_shares_are_those_of_the_middle_candidate_of_methods_that_score_steps(evaluated):
    result, spec, workspace = evaluated
    train = train_images(spec.trajectories.checkpoint.images, workspace)
    rows = select(result["rows"], quantity="class_share")
    assert {row["method"] for row in rows} == {"journey", "pixel"}
    scores = get(spec.scores["journey"], workspace).array("scores.npy")[1]  # of two λ
    classes = [train.class_names.index(name) for name in result["queries"]["class"]["pixels"]]
    for s, t in enumerate(STEPS):
        (row,) = select(rows, method="journey", classifier="pixels", step=t)
        top = [np.argsort(-scores[s, q], kind="stable")[:10] for q in range(5)]
        hits = [train.labels[top[q]] == classes[q] for q in range(5)]
        assert row["value"] == pytest.approx(np.mean(hits))


def test_figures_and_tables_show_the_result(evaluated):
    result = evaluated[0] | {"experiment": "test", "variants": []}
    figures = EMERGENCE.figures(result)
    assert list(figures) == ["emergence.png", "classes.png", "attribution.png"]
    for container in figures["emergence.png"].axes[0].containers:
        name = container.get_label().split(":")[0]
        rows = select(result["rows"], quantity="probability", method=name, target="step")
        shown = container.lines[0].get_ydata().astype(float)
        np.testing.assert_allclose(shown, [row["value"] for row in rows])
    console = Console(record=True, width=200)
    console.print(*EMERGENCE.tables(result))
    assert "symmetry" in console.export_text()


@pytest.mark.parametrize("follows", [True, False])
def test_scores_that_follow_emergence_are_distinguished_from_those_that_do_not(follows):
    """The query's class takes over the top at the step of emergence, or at that of another."""
    random = np.random.default_rng(0)
    steps, emergence = np.arange(900.0, 0, -100), random.uniform(250, 750, 24)
    labels, classes = np.arange(200) % 10, np.arange(24) % 10
    pull = 6 / (1 + np.exp((steps[:, None] - emergence) / 30))  # [S, Q]
    noise = random.normal(size=(9, 24, 200))
    scores = pull[..., None] * (labels == classes[:, None]) + noise
    if not follows:
        emergence = random.permutation(emergence)
    shares = class_share(top_images(scores, 15), labels, classes)
    strongest = attribution_steps(shares, base_rate(labels, classes), steps)
    bootstrap = Bootstrap(24, 300, seed=0)
    rows = prediction_rows("a", {"pixels": emergence}, {"pixels": strongest}, bootstrap)
    assert [row["target"] for row in rows] == [HALFWAY, CENTRE]
    for row in rows:
        expected = spearmanr(emergence, strongest[row["target"]]).statistic
        assert row["value"] == pytest.approx(expected)
        assert (row["low"] > row["null_high"]) == follows
        if follows:
            assert row["value"] > 0.9
            np.testing.assert_allclose(halfway(shares, steps), emergence, atol=130)


def test_queries_without_a_step_of_emergence_are_excluded():
    bootstrap = Bootstrap(6, 100, seed=0)
    a, b = np.array([1.0, 2, 3, 4, np.nan, 5]), np.array([1.0, 2, 3, np.nan, 1, 9])
    (row,) = bootstrap.correlation_rows(a, b, quantity="step_correlation")
    assert (row["value"], row["num_queries"]) == (pytest.approx(1), 4)
    assert bootstrap.correlation_rows(a, np.where(b > 1, b, np.nan)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sampling": Sampling(Sampler.ddim, 50, num_queries=4, steps=STEPS)},
            r"sampling\.sampler=ddim: must be ddpm: with other samplers all continuations",
        ),
        (
            {"sampling": Sampling(Sampler.ddpm, 50, num_queries=4, steps=[600, 300])},
            r"sampling\.steps=\[600, 300\]: must be at least 3 steps",
        ),
        (
            {"evaluation": Emergence(num_continuations=3)},
            r"evaluation\.num_continuations=3: must be in 4…",
        ),
    ],
)
def test_invalid_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        emergence_run(**changes)


def test_images_without_classes_or_with_too_few_for_the_top_are_refused(digits):
    message = r"^evaluation\.top_k=200: must be less than the 200 training images"
    with pytest.raises(ConfigError, match=message):
        Emergence(top_k=200).check_data("evaluation", None, digits)
    one = ImageSet(digits.images, np.zeros(200, np.int64), None, digits.ids, digits.class_names)
    with pytest.raises(ConfigError, match=r"^dataset=images of 1 class: must be of two or more"):
        EMERGENCE.check_data("evaluation", None, one)
