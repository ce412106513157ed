"""Features through the real stage."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import journey_trak, small_run

from journey.attribution import kronecker
from journey.attribution.features import batches
from journey.attribution.outputs import measurement_noise
from journey.engine.checks import ConfigError
from journey.engine.workspace import Precision, Workspace, get
from journey.experiment import load_experiment
from journey.launch.local import Local
from journey.pipeline.settings import Kernel, Output, Projection, Target, Training


@pytest.fixture
def needed(workspace):
    """What a method's scores are made from, after a little training."""
    of = load_experiment(
        small_run(training=Training(num_steps=40, batch_size=16, warmup_steps=4)), workspace.store
    )
    return lambda **changes: of.scores(journey_trak(**changes)).inputs


def features(spec, workspace) -> torch.Tensor:
    return torch.from_numpy(get(spec, workspace).array("features.npy").copy())


@pytest.mark.parametrize("at", [Target.step, Target.final_sample])
def test_bf16_keeps_the_direction_of_every_feature(needed, workspace, at):
    """On any processor: some have instructions for bf16, on which autocast goes other ways."""
    full, half = (
        needed(precision=precision, target=at) for precision in (Precision.fp32, Precision.bf16)
    )
    for one, other in (
        (full["train"][0][0], half["train"][0][0]),
        (full["queries"][0], half["queries"][0]),
    ):
        a, b = features(one, workspace), features(other, workspace)
        assert not torch.equal(a, b)
        assert (torch.cosine_similarity(a, b) > 0.99).all()
        plans = [
            get(spec, workspace).manifest["metadata"]["plan"]["strategy"] for spec in (one, other)
        ]
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
    ids=["normalised", "whitened", "whole", "kronecker", "whitened inside"],
)
def test_bf16_works_with_every_way_to_make_features(needed, workspace, changes):
    both = (
        features(needed(precision=p, **changes)["train"][0][0], workspace)
        for p in (Precision.fp32, Precision.bf16)
    )
    full, half = (
        (phi @ phi.T).flatten() for phi in (phi.flatten(1) for phi in both)
    )  # whatever the basis they are in
    assert not torch.equal(full, half)
    assert torch.cosine_similarity(full, half, dim=0) > 0.9


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("projection", [Projection.sparse, Projection.kronecker])
def test_a_memory_budget_that_is_too_small_is_refused_by_name(
    needed, workspace, precision, projection
):
    little = Workspace(workspace.store, Local(gradient_memory_gib=1e-5), workspace.tracking, "test")
    spec = needed(precision=precision, projection=projection)["train"][0][0]
    get(spec.checkpoint, little)
    with pytest.raises(
        ConfigError,
        match=r"^compute\.gradient_memory_gib=1e-05: must be at least 0\.\d+ for this network",
    ):
        get(spec, little)


def test_kronecker_features_are_those_of_the_rows_whatever_the_batch(
    needed, workspace, monkeypatch
):
    changes = {"projection": Projection.kronecker, "projection_rank": 4}
    spec = needed(**changes)["queries"][0]
    made = get(spec, workspace)
    plan = made.manifest["metadata"]["plan"]
    assert (plan["strategy"], plan["chunk"]) == ("kronecker", 8)
    assert plan["batch"] > 4
    whole = features(spec, workspace).reshape(2, 4, -1)
    monkeypatch.setattr(kronecker, "ACTIVATIONS", 2**20)
    one_step = dataclasses.replace(spec, steps=(300,))
    assert get(one_step, workspace).manifest["metadata"]["plan"]["batch"] < 4
    torch.testing.assert_close(features(one_step, workspace), whole[1], rtol=1e-4, atol=1e-6)
    other = needed(**{**changes, "projection_rank": 5})["queries"][0]
    assert get(other, workspace).array("features.npy").shape[1] > whole.shape[2]


def test_every_damping_has_a_whitening_inside_the_layers_of_its_own(needed, workspace):
    changes = {"projection": Projection.kronecker, "projection_rank": 4, "kernel": Kernel.ekfac}
    both, second = (
        needed(**changes, damping=damping)["train"][0][0] for damping in ([0.01, 1.0], [1.0])
    )
    assert both.work == 2 * second.work
    phi = features(both, workspace)
    assert phi.shape[:2] == (60, 2)
    assert not torch.equal(phi[:, 0], phi[:, 1])
    assert torch.equal(phi[:, 1], features(second, workspace)[:, 0])


def test_features_are_of_the_rows_their_scores_are_of(needed, workspace):
    """A query's row does not depend on which others there are, nor a training image's on its block."""
    spec = needed()["queries"][0]
    whole = features(spec, workspace).reshape(2, 4, -1)
    one_step = dataclasses.replace(spec, steps=(300,))
    torch.testing.assert_close(features(one_step, workspace), whole[1], rtol=1e-4, atol=1e-6)


def test_the_plan_and_its_cost_are_facts(needed, workspace):
    made = get(needed()["train"][0][0], workspace)
    assert made.manifest["metadata"] == {
        "gradients": 60 * 8,
        "plan": {"strategy": "vmap", "batch": 16, "chunk": 8},
    }
    lines = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 60


def test_queries_have_other_draws_than_training_images_unless_destinations_are_to_share_them(
    needed, workspace
):
    def draws(spec):
        return batches(spec, 1000, workspace, torch.device("cpu"))[0].draws

    train = draws(needed()["train"][0][0])
    for at in (Target.step, Target.final_sample):
        assert not torch.equal(draws(needed(target=at)["queries"][0]).eps, train.eps)
    shared = draws(needed(target=Target.final_sample, share_noise=True)["queries"][0])
    assert torch.equal(shared.t, train.t)
    assert torch.equal(shared.eps, train.eps)
    again = needed(noise_set=1)
    for name, before in (("train", train), ("queries", draws(needed()["queries"][0]))):
        spec = again[name][0] if name == "queries" else again[name][0][0]
        assert not torch.equal(draws(spec).eps, before.eps)


def test_sharing_draws_addresses_only_what_it_changes(needed):
    apart, shared = (
        needed(share_noise=value, target=Target.final_sample) for value in (False, True)
    )
    assert apart["train"] == shared["train"]
    assert apart["queries"] != shared["queries"]
    assert needed(share_noise=True)["queries"] == needed()["queries"]  # of steps, which cannot


def test_checkpoints_of_other_seeds_are_the_next_ones(needed):
    repeats = [
        steps[0].checkpoint.training_seed
        for steps in needed(first_checkpoint=2, num_checkpoints=2)["train"]
    ]
    assert repeats == [2, 3]


def test_every_query_is_measured_with_draws_of_its_own(small, workspace):
    spec = small.outputs(small.checkpoint(0))
    of_queries = [measurement_noise(spec, 300, q, 1000, (1, 8, 8)) for q in (0, 1)]
    assert not torch.equal(query_region[0].eps, query_region[1].eps)
    outputs = get(spec, workspace).array("outputs.npy")
    again = get(dataclasses.replace(spec, steps=(300,)), workspace).array("outputs.npy")
    np.testing.assert_allclose(outputs[:, 1], again[:, 0], rtol=1e-6)
