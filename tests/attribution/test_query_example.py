"""Gradients of queries by what is asked of them, against a naive loop; and what it is that is asked."""

import numpy as np
import pytest
import torch
from conftest import journey_trak, naive_gradient, small_run

from journey.attribution.features import batches
from journey.attribution.outputs import NoiseSamples
from journey.engine.checks import ConfigError
from journey.engine.spec import describe, digest, key_fields
from journey.engine.workspace import get
from journey.experiment import load_experiment
from journey.pipeline.schedule import add_noise
from journey.pipeline.settings import Projection, QueryExample, Sampler, Sampling, Target, Training

CPU = torch.device("cpu")
SAMPLING = Sampling(Sampler.ddpm, 50, num_queries=4, steps=[600, 300])


@pytest.fixture
def of(workspace):
    run = small_run(
        sampling=SAMPLING, training=Training(num_steps=20, batch_size=16, warmup_steps=4)
    )
    return load_experiment(run, workspace.store)


def queries(of, asked, **changes):
    method = journey_trak(
        query_example=asked, projection=Projection.none, num_continuations=3, **changes
    )
    return of.scores(method).inputs.queries[0]


def test_the_draw_that_is_asked_makes_the_very_x_t(of, workspace):
    schedule = of.model.schedule(CPU)
    kept = get(of.trajectories, workspace)
    together = batches(queries(of, QueryExample.noisy), 1000, workspace, CPU)
    assert [int(batch.draws.t) for batch in together] == [600] * 4 + [300] * 4
    for i, batch in enumerate(together):
        x_t = add_noise(schedule, batch.examples.x0, batch.draws.t, batch.draws.eps)[0]
        np.testing.assert_allclose(x_t, kept.array("x_t.npy")[i // 4, i % 4], atol=1e-5)
        np.testing.assert_array_equal(batch.examples.x0[0], kept.array("final.npy")[i % 4])


def test_the_mean_is_of_continuations_with_other_noise_than_the_journeys(of, workspace):
    together = batches(queries(of, QueryExample.mean), 1000, workspace, CPU)
    for t, batch in zip((600, 300), together, strict=True):
        ends = get(of.continuations(t, 3), workspace).array("final.npy")[0]  # [query, 1 + 3, …]
        assert ends.shape[1] == 4
        np.testing.assert_allclose(batch.examples.x0, ends[:, 1:].mean(1), atol=1e-6)
    assert "features.npy" not in [
        path.name for path in get(of.continuations(300, 3), workspace).path.iterdir()
    ]


@pytest.mark.parametrize("asked", QueryExample)
def test_gradients_are_those_of_a_loop(of, workspace, asked):
    spec = queries(of, asked)
    net = of.model.load(get(of.checkpoint(0), workspace).path, CPU)
    schedule = of.model.schedule(CPU)
    kept = get(of.trajectories, workspace)
    estimated = batches(queries(of, QueryExample.estimate), 1000, workspace, CPU)
    features = get(spec, workspace).array("features.npy").reshape(2, 4, -1)
    for s, t in enumerate((600, 300)):
        for q in (0, 3):
            final = torch.from_numpy(kept.array("final.npy")[q].copy())
            draws = estimated[s].draws  # the same, whatever is asked, but for the journey's own
            match asked:
                case QueryExample.estimate:
                    x0 = torch.from_numpy(kept.array("x0_hat.npy")[s, q].copy())
                case QueryExample.mean:
                    x0 = torch.from_numpy(
                        get(of.continuations(t, 3), workspace).array("final.npy")[0, q, 1:].mean(0)
                    )
                case QueryExample.continuation:
                    x0 = final
                case QueryExample.noisy:
                    x_t, alpha_bar = (
                        torch.from_numpy(kept.array("x_t.npy")[s, q].copy()),
                        schedule.signal_squared[t].float(),
                    )
                    x0, draws = (
                        final,
                        NoiseSamples(
                            torch.tensor([t]),
                            ((x_t - alpha_bar.sqrt() * final) / (1 - alpha_bar).sqrt())[None],
                        ),
                    )
            expected = naive_gradient(net, schedule, x0, draws)
            torch.testing.assert_close(
                torch.from_numpy(features[s, q].copy()), expected, rtol=1e-3, atol=1e-5
            )


def test_nothing_old_is_addressed_anew_and_what_is_asked_changes_queries_only(of):
    needs = {asked: of.scores(journey_trak(query_example=asked)).inputs for asked in QueryExample}
    assert len({digest(of_method["queries"][0]) for of_method in needs.values()}) == 4
    assert len({digest(of_method["train"][0][0]) for of_method in needs.values()}) == 1
    plain = needs[QueryExample.estimate]["queries"][0]
    assert (plain.query_example, plain.continuations) == (QueryExample.estimate, ())
    assert not {"asked", "continued"} & set(key_fields(plain))
    assert not {"asked", "num_continuations"} & set(describe(journey_trak()))
    again = [
        queries(of, QueryExample.noisy, **changes)
        for changes in ({}, {"num_samples": 4}, {"noise_set": 1}, {"antithetic": True})
    ]
    assert len({digest(spec) for spec in again}) == 1, "there is one draw of the journey's own"


def test_a_mean_is_refused_where_continuations_are_all_alike(workspace):
    of = load_experiment(small_run(), workspace.store)
    with pytest.raises(
        ConfigError, match=r"^sampling\.sampler=ddim: must be ddpm where query_example=mean"
    ):
        of.scores(journey_trak(query_example=QueryExample.mean))
    assert (
        of.scores(journey_trak(query_example=QueryExample.noisy)).inputs.queries[0].query_example
        is QueryExample.noisy
    )


def test_a_destination_is_asked_in_one_way():
    assert not journey_trak(target=Target.final_sample).depends_on("asked")
    with pytest.raises(
        ConfigError,
        match=r"method\.a\.query_example=mean: must be estimate unless target=step or trajectory",
    ):
        small_run(
            method={"a": journey_trak(target=Target.final_sample, query_example=QueryExample.mean)}
        )
