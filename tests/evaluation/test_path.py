"""What changes along a journey, on a small real run, beside loops."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import journey_trak, small_run
from rich.console import Console
from scipy.stats import spearmanr

from journey.attribution.baselines import Encoder, Pixel
from journey.config.run import Vary
from journey.engine.checks import ConfigError
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.evaluation.lds import LDS
from journey.evaluation.path import AlongPath
from journey.evaluation.rows import method_names, select
from journey.experiment import load_experiment
from journey.pipeline.settings import QueryExample, Sampler, Sampling, Target, Training

STEPS = [600, 300, 100]
OF_LDS = LDS(num_bootstrap=100, paired_steps=[600, 300])
PATH = AlongPath(
    num_continuations=4, encoder=Encoder(side=32), top_k=10, num_bootstrap=100, lds=OF_LDS
)


def run_of(**changes):
    settings = {
        "sampling": Sampling(Sampler.ddpm, 50, num_queries=4, steps=STEPS),
        "training": Training(num_steps=20, batch_size=16, warmup_steps=4),
        "evaluation": PATH,
        "method": {
            "journey": journey_trak(num_continuations=4),
            "trak": journey_trak(target=Target.final_sample),
            "pixel": Pixel(),
        },
        "vary": Vary(
            query_example=[QueryExample.mean, QueryExample.continuation, QueryExample.noisy]
        ),
    }
    return small_run(**{**settings, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The result of a small run, its artifacts and where they are."""
    run = run_of()
    workspace = Workspace(
        Store(tmp_path_factory.mktemp("store")), run.compute, run.tracking, "test"
    )
    spec = load_experiment(run, workspace.store).evaluation(run.evaluation, run.all_methods)
    return json.loads((get(spec, workspace).path / "result.json").read_text()), spec, workspace


def test_what_is_asked_is_varied_of_methods_that_ask_at_steps():
    assert list(run_of().all_methods) == [
        "journey",
        "trak",
        "pixel",
        *(f"journey-query_example-{way}" for way in ("mean", "continuation", "noisy")),
    ]


def test_matrices_are_of_the_candidate_that_the_lds_chose(made):
    result, spec, workspace = made
    damping = PATH.chosen(result, "journey")["damping"]
    scores = get(spec.scores["journey"], workspace).array("scores.npy")[[0.1, 1.0].index(damping)]
    rows = select(result["rows"], quantity="rank_correlation", method="journey")
    assert len(rows) == 6
    for row in rows:
        s, u = STEPS.index(row["step"]), STEPS.index(row["other_step"])
        assert row["value"] == pytest.approx(
            np.mean([spearmanr(scores[s, q], scores[u, q]).statistic for q in range(4)])
        )
    assert method_names(result["rows"], "rank_correlation") == [
        name for name in run_of().all_methods if name != "trak"
    ]


def test_the_mean_that_is_asked_is_the_one_that_distances_are_to(made):
    result, spec, workspace = made
    asked = spec.scores["journey-query_example-mean"].inputs.queries[0]
    assert asked.continuations == spec.inputs.continuations
    final, x0_hat = (
        get(spec.trajectories, workspace).array(f"{name}.npy") for name in ("final", "x0_hat")
    )
    for s, t in enumerate(STEPS):
        ends = get(spec.inputs.continuations[s], workspace).array("final.npy")[0, :, 1:]
        mean, error = ends.mean(1), ends.var(1, ddof=1).mean() / 4
        for name, a in (("estimate_to_mean", x0_hat[s]), ("mean_to_final", final)):
            (row,) = select(result["rows"], quantity="distance", method=name, step=t)
            assert row["value"] == pytest.approx(
                np.square(a - mean).mean() - error, rel=1e-4, abs=1e-6
            )


def test_the_lds_is_that_of_evaluation_lds(made):
    result, _, workspace = made
    run = run_of(evaluation=OF_LDS)
    plain = load_experiment(run, workspace.store).evaluation(run.evaluation, run.all_methods)
    assert workspace.store.find(plain) is not None, "it is the same artifact"
    rows = json.loads((get(plain, workspace).path / "result.json").read_text())["rows"]
    assert result["rows"][-len(rows) :] == rows
    pairs = {row["against"] for row in select(rows, quantity="difference", method="journey")}
    assert pairs >= {
        "journey-query_example-mean",
        "journey-query_example-continuation",
        "journey-query_example-noisy",
    }


def test_what_the_result_says_is_drawn_and_tabled(made):
    cost = {name: {"seconds": 1.0, "gradients": 1, "bytes": 1} for name in run_of().all_methods}
    variants = [name for name in run_of().all_methods if "asked" in name]
    result = made[0] | {"experiment": "test", "variants": variants, "cost": cost}
    figures = PATH.figures(result)
    assert list(figures) == ["distances.png", "path.png", "proponents.png", "asked.png"]
    shown = figures["path.png"].axes[0].images[0].get_array()
    (row,) = select(
        result["rows"], quantity="rank_correlation", method="journey", step=600, other_step=100
    )
    (other,) = select(
        result["rows"],
        quantity="rank_correlation_others",
        method="journey",
        step=600,
        other_step=100,
    )
    assert (shown[2, 0], shown[0, 2]) == (
        pytest.approx(row["value"]),
        pytest.approx(other["value"]),
    )
    console = Console(record=True, width=250)
    console.print(*PATH.tables(result))
    assert "estimate_to_mean" in console.export_text()
    assert "journey-query_example-mean" in PATH.texts(result)["lds.md"]
    plt.close("all")


def test_bad_input_is_refused_by_name(digits):
    with pytest.raises(
        ConfigError,
        match=r"^sampling\.sampler=ddim: must be ddpm: others go on from x_t in one way only",
    ):
        run_of(sampling=Sampling(Sampler.ddim, 50, num_queries=4, steps=STEPS), vary=Vary())
    with pytest.raises(
        ConfigError, match=r"^evaluation\.lds\.paired_steps=\[500\]: must be among sampling\.steps"
    ):
        run_of(evaluation=AlongPath(lds=LDS(paired_steps=[500])))
    with pytest.raises(
        ConfigError, match=r"^evaluation\.top_k=200: must be less than the 200 training images"
    ):
        AlongPath(top_k=200).check_data("evaluation", None, digits)
