"""When classes and looks emerge, on a small real run beside loops; whether attributions that know of it are found to."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import journey_trak, small_run
from rich.console import Console
from scipy.stats import spearmanr

from journey.attribution.baselines import Encoder, Pixel
from journey.data.images import train_images
from journey.engine.checks import ConfigError
from journey.engine.workspace import get
from journey.evaluation import classifiers
from journey.evaluation.emergence import Emergence
from journey.evaluation.emergence.findings import (
    CENTRE,
    RISE,
    Resampled,
    halfway,
    prediction_rows,
    strongest_steps,
)
from journey.evaluation.ranking import base_rate, class_share, top_images
from journey.evaluation.rows import select
from journey.experiment import load_experiment
from journey.pipeline.images import ImageSet
from journey.pipeline.settings import Sampler, Sampling, Target, Training

STEPS = [600, 300, 100]
EMERGENCE = Emergence(num_continuations=4, encoder=Encoder(side=32), top_k=10, num_bootstrap=100)


def run_of(**changes):
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
def made(tmp_path_factory):
    """The result of a small run, its artifacts and where they are."""
    from journey.engine.store import Store
    from journey.engine.workspace import Workspace

    run = run_of()
    workspace = Workspace(
        Store(tmp_path_factory.mktemp("store")), run.compute, run.tracking, "test"
    )
    of = load_experiment(run, workspace.store)
    spec = of.evaluation(run.evaluation, run.all_methods)
    return json.loads((get(spec, workspace).path / "result.json").read_text()), spec, workspace


def test_probabilities_and_agreement_are_those_of_a_loop(made):
    result, spec, workspace = made
    by = classifiers.train_classifiers(spec.inputs.embeddings, workspace)
    own = classifiers.classify_final_samples(
        by, spec.inputs.embeddings, spec.trajectories, workspace
    )
    for s, t in enumerate(STEPS):
        continued = get(spec.inputs.continuations[s], workspace)
        ends, features = (continued.array(f"{name}.npy")[0] for name in ("final", "features"))
        right, agreed = {"pixels": [], "features": []}, []
        for q in range(5):
            for j in range(1, 5):  # the journey's own continuation is no draw
                said = {
                    "pixels": by.pixels.predict(ends[q, j].reshape(1, -1))[0],
                    "features": by.features.predict(features[q, j][None])[0],
                }
                agreed.append(said["pixels"] == said["features"])
                for name in said:
                    right[name].append(said[name] == own[name][q])
        for name in right:
            (row,) = select(result["rows"], quantity="probability", method=name, step=t)
            assert row["value"] == pytest.approx(np.mean(right[name]))
            assert row["low"] <= row["value"] <= row["high"]
        (row,) = select(result["rows"], quantity="agreement", step=t)
        assert row["value"] == pytest.approx(np.mean(agreed))


def test_the_last_continuations_are_nearly_the_final_images(made):
    result, _, _ = made
    for name in ("ink", "slant", "symmetry"):
        shares = [
            select(result["rows"], quantity="decided", method=name, step=t)[0]["value"]
            for t in STEPS
        ]
        assert shares[-1] > 0.8 > shares[0]


def test_class_shares_are_of_the_methods_that_score_steps(made):
    result, spec, workspace = made
    train = train_images(spec.trajectories.checkpoint.images, workspace)
    assert {row["method"] for row in select(result["rows"], quantity="class_share")} == {
        "journey",
        "pixel",
    }
    scores = get(spec.scores["journey"], workspace).array("scores.npy")[
        1
    ]  # of two values of λ, the second
    classes = np.array(
        [train.class_names.index(name) for name in result["queries"]["class"]["pixels"]]
    )
    for s, t in enumerate(STEPS):
        (row,) = select(
            result["rows"], quantity="class_share", method="journey", by="pixels", step=t
        )
        ranked = [np.argsort(-scores[s, q], kind="stable")[:10] for q in range(5)]
        assert row["value"] == pytest.approx(
            np.mean([train.labels[top] == classes[q] for q, top in enumerate(ranked)])
        )


def test_what_the_result_says_is_drawn_and_tabled(made):
    result = made[0] | {"experiment": "test", "variants": []}
    figures = EMERGENCE.figures(result)
    assert list(figures) == ["emergence.png", "classes.png", "attribution.png"]
    drawn = {
        c.get_label().split(":")[0]: c.lines[0].get_ydata()
        for c in figures["emergence.png"].axes[0].containers
    }
    for name, values in drawn.items():
        expected = [
            row["value"]
            for row in select(result["rows"], quantity="probability", method=name, target="step")
        ]
        np.testing.assert_allclose(values.astype(float), expected)
    console = Console(record=True, width=200)
    console.print(*EMERGENCE.tables(result))
    assert "symmetry" in console.export_text()
    plt.close("all")


def planted(num_queries: int, random: np.random.Generator):
    """Scores in which the class of a query takes over the top where it emerges.

    Returns the steps, emergence [Q], scores [S, Q, N], labels [N] and classes [Q].
    """
    steps = np.arange(900.0, 0, -100)
    emerges = random.uniform(250, 750, num_queries)
    labels, classes = np.arange(200) % 10, np.arange(num_queries) % 10
    pull = 6 / (1 + np.exp((steps[:, None] - emerges) / 30))  # [S, Q]
    return (
        steps,
        emerges,
        pull[..., None] * (labels == classes[:, None]) + random.normal(size=(9, num_queries, 200)),
        labels,
        classes,
    )


@pytest.mark.parametrize("knows", [True, False])
def test_attributions_that_know_where_a_class_emerges_are_told_from_those_that_do_not(knows):
    random = np.random.default_rng(0)
    steps, emerges, scores, labels, classes = planted(24, random)
    if not knows:
        emerges = random.permutation(emerges)
    shares = class_share(top_images(scores, 15), labels, classes)
    at = strongest_steps(shares, base_rate(labels, classes), steps)
    found = prediction_rows("a", {"pixels": emerges}, {"pixels": at}, Resampled(24, 300, seed=0))
    assert [row["target"] for row in found] == [RISE, CENTRE]
    for row in found:
        assert row["value"] == pytest.approx(spearmanr(emerges, at[row["target"]]).statistic)
        assert (row["low"] > row["null_high"]) == knows
        if knows:
            assert row["value"] > 0.9
            np.testing.assert_allclose(halfway(shares, steps), emerges, atol=130)


def test_queries_that_emerge_nowhere_are_left_out():
    drawn = Resampled(6, 100, seed=0)
    a, b = np.array([1.0, 2, 3, 4, np.nan, 5]), np.array([1.0, 2, 3, np.nan, 1, 9])
    (row,) = drawn.related(a, b, quantity="predicts")
    assert (row["value"], row["num_queries"]) == (pytest.approx(1), 4)
    assert drawn.related(a, np.where(b > 1, b, np.nan), quantity="predicts") == []


def test_bad_input_is_refused_by_name(digits):
    with pytest.raises(
        ConfigError,
        match=r"^sampling\.sampler=ddim: must be ddpm: others go on from x_t in one way only",
    ):
        run_of(sampling=Sampling(Sampler.ddim, 50, num_queries=4, steps=STEPS))
    with pytest.raises(
        ConfigError, match=r"^sampling\.steps=\[600, 300\]: must be at least 3 steps"
    ):
        run_of(sampling=Sampling(Sampler.ddpm, 50, num_queries=4, steps=[600, 300]))
    with pytest.raises(ConfigError, match=r"^evaluation\.num_continuations=3: must be in 4…"):
        run_of(evaluation=Emergence(num_continuations=3))
    with pytest.raises(
        ConfigError, match=r"^evaluation\.top_k=200: must be less than the 200 training images"
    ):
        Emergence(top_k=200).check_data("evaluation", None, digits)
    one = ImageSet(digits.images, np.zeros(200, np.int64), None, digits.ids, digits.class_names)
    with pytest.raises(ConfigError, match=r"^dataset=images of 1 class: must be of two or more"):
        EMERGENCE.check_data("evaluation", None, one)
