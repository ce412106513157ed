"""Attributions along the trajectory, on a small real run, beside loops."""

import json

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
SMALL_LDS = LDS(num_bootstrap=100, paired_steps=[600, 300])
PATH = AlongPath(
    num_continuations=4, encoder=Encoder(side=32), top_k=10, num_bootstrap=100, lds=SMALL_LDS
)
VARIANTS = [f"journey-query_example-{name}" for name in ("mean", "continuation", "noisy")]


def path_run(**changes):
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
def evaluated(tmp_path_factory):
    """The result of a small run, its spec and the workspace with its artifacts."""
    run = path_run()
    store = Store(tmp_path_factory.mktemp("store"))
    workspace = Workspace(store, run.compute, run.tracking, "test")
    spec = load_experiment(run, store).evaluation(run.evaluation, run.all_methods)
    return json.loads((get(spec, workspace).path / "result.json").read_text()), spec, workspace


def test_only_methods_with_a_target_at_steps_have_variants_of_the_query_example():
    assert list(path_run().all_methods) == ["journey", "trak", "pixel", *VARIANTS]


def test_rank_correlations_are_those_of_the_candidate_that_the_lds_chose(evaluated):
    result, spec, workspace = evaluated
    damping = PATH.chosen(result, "journey")["damping"]
    scores = get(spec.scores["journey"], workspace).array("scores.npy")[[0.1, 1.0].index(damping)]
    rows = select(result["rows"], quantity="rank_correlation", method="journey")
    assert len(rows) == 6
    for row in rows:
        s, u = STEPS.index(row["step"]), STEPS.index(row["other_step"])
        expected = [spearmanr(scores[s, q], scores[u, q]).statistic for q in range(4)]
        assert row["value"] == pytest.approx(np.mean(expected))
    methods = method_names(result["rows"], "rank_correlation")
    assert methods == ["journey", "pixel", *VARIANTS]


def test_distances_are_to_the_mean_that_methods_attribute(evaluated):
    result, spec, workspace = evaluated
    features = spec.scores["journey-query_example-mean"].inputs.queries[0]
    assert features.continuations == spec.inputs.continuations
    trajectories = get(spec.trajectories, workspace)
    final, x0_hat = (trajectories.array(f"{name}.npy") for name in ("final", "x0_hat"))
    for s, t in enumerate(STEPS):
        samples = get(spec.inputs.continuations[s], workspace).array("final.npy")[0, :, 1:]
        mean, error = samples.mean(1), samples.var(1, ddof=1).mean() / 4
        for name, a in (("estimate_to_mean", x0_hat[s]), ("mean_to_final", final)):
            (row,) = select(result["rows"], quantity="distance", method=name, step=t)
            expected = np.square(a - mean).mean() - error
            assert row["value"] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_lds_is_that_of_evaluation_lds(evaluated):
    result, _, workspace = evaluated
    run = path_run(evaluation=SMALL_LDS)
    spec = load_experiment(run, workspace.store).evaluation(run.evaluation, run.all_methods)
    assert workspace.store.find(spec) is not None, "the same artifact"
    rows = json.loads((get(spec, workspace).path / "result.json").read_text())["rows"]
    assert result["rows"][-len(rows) :] == rows
    differences = select(rows, quantity="difference", method="journey")
    assert {row["against"] for row in differences} >= set(VARIANTS)


def test_figures_and_tables_show_the_result(evaluated):
    cost = {name: {"seconds": 1.0, "gradients": 1, "bytes": 1} for name in path_run().all_methods}
    result = evaluated[0] | {"experiment": "test", "variants": VARIANTS, "cost": cost}
    figures = PATH.figures(result)
    names = ["distances.png", "path.png", "proponents.png", "query_example.png"]
    assert list(figures) == names
    shown = figures["path.png"].axes[0].images[0].get_array()
    conditions = {"method": "journey", "step": 600, "other_step": 100}
    (own,) = select(result["rows"], quantity="rank_correlation", **conditions)
    (others,) = select(result["rows"], quantity="rank_correlation_others", **conditions)
    assert shown[2, 0] == pytest.approx(100 * own["value"])
    assert shown[0, 2] == pytest.approx(100 * others["value"])
    console = Console(record=True, width=250)
    console.print(*PATH.tables(result))
    assert "estimate_to_mean" in console.export_text()
    assert VARIANTS[0] in PATH.texts(result)["lds.md"]


def test_invalid_settings_are_refused(digits):
    sampling = Sampling(Sampler.ddim, 50, num_queries=4, steps=STEPS)
    with pytest.raises(ConfigError, match=r"^sampling\.sampler=ddim: must be ddpm: with other"):
        path_run(sampling=sampling, vary=Vary())
    message = r"^evaluation\.lds\.paired_steps=\[500\]: must be among sampling\.steps"
    with pytest.raises(ConfigError, match=message):
        path_run(evaluation=AlongPath(lds=LDS(paired_steps=[500])))
    message = r"^evaluation\.top_k=200: must be less than the 200 training images"
    with pytest.raises(ConfigError, match=message):
        AlongPath(top_k=200).check_data("evaluation", None, digits)
