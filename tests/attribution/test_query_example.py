"""The examples that stand for queries, and their gradients against a naive loop."""

import numpy as np
import pytest
import torch
from conftest import journey_trak, naive_gradient, small_run

from journey.attribution.features import feature_batches
from journey.attribution.outputs import NoiseSamples
from journey.engine.checks import ConfigError
from journey.engine.spec import describe, digest, key_fields
from journey.engine.workspace import get
from journey.experiment import load_experiment
from journey.pipeline.schedule import add_noise
from journey.pipeline.settings import Projection, QueryExample, Sampler, Sampling, Target, Training

CPU = torch.device("cpu")


@pytest.fixture
def experiment(workspace):
    sampling = Sampling(Sampler.ddpm, 50, num_queries=4, steps=[600, 300])
    training = Training(num_steps=20, batch_size=16, warmup_steps=4)
    return load_experiment(small_run(sampling=sampling, training=training), workspace.store)


def query_features(experiment, example, **changes):
    settings = {"projection": Projection.none, "num_continuations": 3, **changes}
    return experiment.scores(journey_trak(query_example=example, **settings)).inputs.queries[0]


def batches(experiment, example, workspace):
    return feature_batches(query_features(experiment, example), 1000, workspace, CPU)


def array(spec, name, workspace, index=slice(None)) -> torch.Tensor:
    return torch.from_numpy(np.array(get(spec, workspace).array(name)[index]))


def test_the_noise_of_the_noisy_example_makes_the_trajectorys_x_t(experiment, workspace):
    schedule = experiment.model.schedule(CPU)
    x_t = array(experiment.trajectories, "x_t.npy", workspace)
    final = array(experiment.trajectories, "final.npy", workspace)
    noisy = batches(experiment, QueryExample.noisy, workspace)
    assert [int(batch.noise.t) for batch in noisy] == [600] * 4 + [300] * 4
    for i, batch in enumerate(noisy):
        noised = add_noise(schedule, batch.examples.x0, batch.noise.t, batch.noise.eps)[0]
        torch.testing.assert_close(noised, x_t[i // 4, i % 4], atol=1e-5, rtol=0)
        assert torch.equal(batch.examples.x0[0], final[i % 4])


def test_the_mean_is_over_continuations_without_the_trajectorys_noise(experiment, workspace):
    mean = batches(experiment, QueryExample.mean, workspace)
    for t, batch in zip((600, 300), mean, strict=True):
        spec = experiment.own_continuations(t, 3)
        samples = array(spec, "final.npy", workspace, 0)  # [query, 1 + 3, …]
        assert samples.shape[1] == 4
        torch.testing.assert_close(batch.examples.x0, samples[:, 1:].mean(1), atol=1e-6, rtol=0)
        assert not (get(spec, workspace).path / "features.npy").exists()


@pytest.mark.parametrize("example", QueryExample)
def test_gradients_are_those_of_a_loop(experiment, workspace, example):
    features = array(query_features(experiment, example), "features.npy", workspace)
    features = features.reshape(2, 4, -1)
    net = experiment.model.load(get(experiment.checkpoint(0), workspace).path, CPU)
    schedule, trajectories = experiment.model.schedule(CPU), experiment.trajectories
    estimates = batches(experiment, QueryExample.estimate, workspace)
    for s, t in enumerate((600, 300)):
        for q in (0, 3):
            x0 = array(trajectories, "final.npy", workspace, q)
            noise = estimates[s].noise  # that of every example but the noisy one
            match example:
                case QueryExample.estimate:
                    x0 = array(trajectories, "x0_hat.npy", workspace, (s, q))
                case QueryExample.mean:
                    spec = experiment.own_continuations(t, 3)
                    x0 = array(spec, "final.npy", workspace, (0, q, slice(1, None))).mean(0)
                case QueryExample.noisy:
                    x_t = array(trajectories, "x_t.npy", workspace, (s, q))
                    alpha_bar = schedule.signal_squared[t].float()
                    eps = (x_t - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()
                    noise = NoiseSamples(torch.tensor([t]), eps[None])
            expected = naive_gradient(net, schedule, x0, noise)
            torch.testing.assert_close(features[s, q], expected, rtol=1e-3, atol=1e-5)


def test_the_example_changes_the_cache_keys_of_queries_only(experiment):
    inputs = {e: experiment.scores(journey_trak(query_example=e)).inputs for e in QueryExample}
    assert len({digest(method.queries[0]) for method in inputs.values()}) == 4
    assert len({digest(method.train[0][0]) for method in inputs.values()}) == 1
    plain = inputs[QueryExample.estimate].queries[0]
    assert not {"query_example", "continuations"} & set(key_fields(plain))
    assert not {"query_example", "num_continuations"} & set(describe(journey_trak()))
    settings = ({}, {"num_samples": 4}, {"noise_set": 1}, {"antithetic": True})
    noisy = [query_features(experiment, QueryExample.noisy, **changes) for changes in settings]
    assert len({digest(spec) for spec in noisy}) == 1, "there is one such noise sample"


def test_a_mean_is_refused_where_continuations_do_not_differ(workspace):
    experiment = load_experiment(small_run(), workspace.store)
    with pytest.raises(ConfigError, match=r"^sampling\.sampler=ddim: must be ddpm where query_exa"):
        experiment.scores(journey_trak(query_example=QueryExample.mean))
    noisy = experiment.scores(journey_trak(query_example=QueryExample.noisy)).inputs.queries[0]
    assert noisy.query_example is QueryExample.noisy


def test_a_final_sample_has_one_example():
    method = journey_trak(target=Target.final_sample)
    assert not method.depends_on("query_example")
    method.query_example = QueryExample.mean
    with pytest.raises(ConfigError, match=r"method\.a\.query_example=mean: must be estimate unles"):
        small_run(method={"a": method})
