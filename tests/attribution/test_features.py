"""Features through the real stage."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import journey_trak, small_run

from journey.attribution import kronecker
from journey.attribution.features import feature_batches
from journey.attribution.outputs import measurement_noise
from journey.engine.checks import ConfigError
from journey.engine.store import Store
from journey.engine.workspace import Precision, Workspace, get
from journey.experiment import load_experiment
from journey.launch.local import Local
from journey.pipeline.settings import Kernel, Output, Projection, Target, Training

KRONECKER = {"projection": Projection.kronecker, "projection_rank": 4}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    """Return the workspace of all tests, which share the model and the features."""
    run = small_run()
    store = Store(tmp_path_factory.mktemp("features") / "store")
    return Workspace(store, run.compute, run.tracking, "test")


@pytest.fixture(scope="module")
def inputs_of(workspace):
    """Return what the scores of a method are computed from, after a little training."""
    run = small_run(training=Training(num_steps=40, batch_size=16, warmup_steps=4))
    experiment = load_experiment(run, workspace.store)
    return lambda **changes: experiment.scores(journey_trak(**changes)).inputs


def features(spec, workspace) -> torch.Tensor:
    return torch.from_numpy(get(spec, workspace).array("features.npy").copy())


def metadata(spec, workspace) -> dict:
    return get(spec, workspace).manifest["metadata"]


def noise_of(spec, workspace):
    return feature_batches(spec, 1000, workspace, torch.device("cpu"))[0].noise


@pytest.mark.parametrize("target", [Target.step, Target.final_sample])
def test_bf16_preserves_the_direction_of_every_feature(inputs_of, workspace, target):
    """Autocast computes differently on processors with instructions for bf16; this holds on all."""
    full = inputs_of(precision=Precision.fp32, target=target)
    half = inputs_of(precision=Precision.bf16, target=target)
    for one, other in (
        (full.train[0][0], half.train[0][0]),
        (full.queries[0], half.queries[0]),
    ):
        a, b = features(one, workspace), features(other, workspace)
        assert not torch.equal(a, b)
        assert (torch.cosine_similarity(a, b) > 0.99).all()
        plans = [metadata(spec, workspace)["plan"]["strategy"] for spec in (one, other)]
        assert plans == ["vmap", "loop"]


@pytest.mark.parametrize(
    "changes",
    [
        {"output": Output.absolute, "normalize": True},
        {"kernel": Kernel.ekfac},
        {"projection": Projection.none},
        {"projection": Projection.kronecker},
        {"projection": Projection.kronecker, "kernel": Kernel.ekfac},
    ],
    ids=["normalised", "preconditioned", "whole", "kronecker", "preconditioned kronecker"],
)
def test_bf16_works_with_every_computation_of_features(inputs_of, workspace, changes):
    grams = []
    for precision in (Precision.fp32, Precision.bf16):
        spec = inputs_of(precision=precision, **changes).train[0][0]
        phi = features(spec, workspace).flatten(1)
        grams.append((phi @ phi.T).flatten())  # independent of the basis
    assert not torch.equal(*grams)
    assert torch.cosine_similarity(*grams, dim=0) > 0.9


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("projection", [Projection.sparse, Projection.kronecker])
def test_too_small_a_memory_budget_is_refused_by_name(inputs_of, workspace, precision, projection):
    compute = Local(gradient_memory_gib=1e-5)
    little = Workspace(workspace.store, compute, workspace.tracking, "test")
    unseen = inputs_of(precision=precision, projection=projection, num_samples=4)
    spec = unseen.train[0][0]
    get(spec.checkpoint, little)
    message = r"^compute\.gradient_memory_gib=1e-05: must be at least 0\.\d+ for this network"
    with pytest.raises(ConfigError, match=message):
        get(spec, little)


def test_kronecker_features_do_not_depend_on_the_batch(inputs_of, workspace, monkeypatch):
    spec = inputs_of(**KRONECKER).queries[0]
    plan = metadata(spec, workspace)["plan"]
    assert (plan["strategy"], plan["chunk"]) == ("kronecker", 8)
    assert plan["batch"] > 4
    whole = features(spec, workspace).reshape(2, 4, -1)
    monkeypatch.setattr(kronecker, "ACTIVATIONS", 2**20)
    one_step = replace(spec, steps=(300,))
    assert metadata(one_step, workspace)["plan"]["batch"] < 4
    torch.testing.assert_close(features(one_step, workspace), whole[1], rtol=1e-4, atol=1e-6)
    larger = inputs_of(**{**KRONECKER, "projection_rank": 5}).queries[0]
    assert features(larger, workspace).shape[1] > whole.shape[2]


def test_kronecker_features_are_preconditioned_with_every_damping(inputs_of, workspace):
    changes = {**KRONECKER, "kernel": Kernel.ekfac}
    both = inputs_of(**changes, damping=[0.01, 1.0]).train[0][0]
    second = inputs_of(**changes, damping=[1.0]).train[0][0]
    assert both.work == 2 * second.work
    phi = features(both, workspace)
    assert phi.shape[:2] == (60, 2)
    assert not torch.equal(phi[:, 0], phi[:, 1])
    assert torch.equal(phi[:, 1], features(second, workspace)[:, 0])


def test_the_row_of_a_query_does_not_depend_on_the_other_rows(inputs_of, workspace):
    spec = inputs_of().queries[0]
    whole = features(spec, workspace).reshape(2, 4, -1)
    one_step = replace(spec, steps=(300,))
    torch.testing.assert_close(features(one_step, workspace), whole[1], rtol=1e-4, atol=1e-6)


def test_the_plan_and_its_cost_are_metadata(inputs_of, workspace):
    spec = inputs_of().train[0][0]
    plan = {"strategy": "vmap", "batch": 16, "chunk": 8}
    assert metadata(spec, workspace) == {"gradients": 60 * 8, "plan": plan}
    text = (get(spec, workspace).path / "metrics.jsonl").read_text()
    assert json.loads(text.splitlines()[-1])["step"] == 60


def test_queries_have_other_noise_than_training_images_unless_it_is_shared(inputs_of, workspace):
    train = noise_of(inputs_of().train[0][0], workspace)
    for target in (Target.step, Target.final_sample):
        queries = noise_of(inputs_of(target=target).queries[0], workspace)
        assert not torch.equal(queries.eps, train.eps)
    shared = inputs_of(target=Target.final_sample, share_noise=True).queries[0]
    assert torch.equal(noise_of(shared, workspace).t, train.t)
    assert torch.equal(noise_of(shared, workspace).eps, train.eps)
    first, second = inputs_of(), inputs_of(noise_set=1)
    for one, other in (
        (first.train[0][0], second.train[0][0]),
        (first.queries[0], second.queries[0]),
    ):
        assert not torch.equal(noise_of(one, workspace).eps, noise_of(other, workspace).eps)


def test_each_checkpoint_can_have_its_own_noise_samples(inputs_of, workspace):
    count = {"num_checkpoints": 3, "noise_set": 5}
    shared, own = inputs_of(**count), inputs_of(**count, noise_per_checkpoint=True)
    assert shared == inputs_of(**count, noise_per_checkpoint=False)
    for of_shared, of_own in (
        ([steps[0] for steps in shared.train], [steps[0] for steps in own.train]),
        (shared.queries, own.queries),
    ):
        assert [spec.settings.noise_set for spec in of_shared] == [5, 5, 5]
        assert [spec.settings.noise_set for spec in of_own] == [5, 6, 7]
        assert of_own[0] == of_shared[0], "the first checkpoint's features are the same"
        first, *others = (noise_of(spec, workspace).eps for spec in of_own)
        assert not any(torch.equal(first, other) for other in others)
    later = inputs_of(num_checkpoints=2, first_checkpoint=1, noise_set=5, noise_per_checkpoint=True)
    assert later.train == own.train[1:], "of a checkpoint, in whichever ensemble"


def test_a_setting_changes_the_cache_keys_of_what_it_affects_only(inputs_of):
    plain, final = inputs_of(), inputs_of(target=Target.final_sample)
    shared = inputs_of(share_noise=True, target=Target.final_sample)
    assert final.train == shared.train == plain.train
    assert final.queries != shared.queries
    assert inputs_of(share_noise=True) == plain  # steps cannot share noise
    assert inputs_of(projection_rank=4) == plain
    independent = inputs_of(stratified=False)
    assert independent.queries == plain.queries  # which have one timestep
    assert independent.train != plain.train
    whole, other = (inputs_of(projection=Projection.none, projection_dim=p) for p in (8, 9))
    assert whole == other != plain


def test_checkpoints_begin_with_the_first(inputs_of):
    train = inputs_of(first_checkpoint=2, num_checkpoints=2).train
    assert [steps[0].checkpoint.training_seed for steps in train] == [2, 3]


def test_every_query_is_measured_with_noise_of_its_own(trained, workspace):
    spec = trained.outputs(trained.checkpoint(0))
    first, second = (measurement_noise(spec, 300, q, 1000, (1, 8, 8)) for q in (0, 1))
    assert not torch.equal(first.eps, second.eps)
    outputs = get(spec, workspace).array("outputs.npy")
    one_step = get(replace(spec, steps=(300,)), workspace).array("outputs.npy")
    np.testing.assert_allclose(outputs[:, 1], one_step[:, 0], rtol=1e-6)
