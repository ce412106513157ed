"""Outputs of a part of an example, beside masks written out; and scores that are asked about a part."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import journey_trak, small_run

from journey.attribution.baselines import Pixel
from journey.attribution.gradients import GradientPlan, Objective
from journey.attribution.outputs import output
from journey.data.images import train_images
from journey.diffusion.network import bind
from journey.engine.checks import ConfigError
from journey.engine.spec import cache_key
from journey.engine.workspace import Precision, get
from journey.experiment import check_data, prepare_experiment
from journey.pipeline.examples import quarters
from journey.pipeline.images import as_pixels
from journey.pipeline.schedule import add_noise
from journey.pipeline.settings import Output, QueryExample, Target

REGION = (1, 2, 4, 8)
TILES = {(0, 0, 3, 8): 24, (3, 0, 8, 5): 25, (3, 5, 8, 8): 15}  # of 8×8: how many elements each has


def masked(net, schedule, x0, draws, kind, region):
    """Written out: a mean over the elements that a mask holds."""
    mask = torch.zeros(8, 8, dtype=torch.bool)
    for row in range(region[0], region[2]):
        for column in range(region[1], region[3]):
            mask[row, column] = True
    x_t = add_noise(schedule, x0.expand(len(draws), -1, -1, -1), draws.t, draws.eps)
    predicted = net(x_t, draws.t).sample
    values = {
        "loss": (draws.eps - predicted) ** 2,
        "square": predicted**2,
        "mean": predicted,
        "absolute": (draws.eps - predicted).abs(),
    }
    return values[kind.value][:, :, mask].mean()


@pytest.mark.parametrize("kind", Output)
def test_the_output_of_a_region_is_the_mean_over_its_mask(kind, net, linear_schedule, clean, draws):
    ours = output(bind(net, Precision.fp32), linear_schedule, clean[0], draws, kind, REGION)
    torch.testing.assert_close(ours, masked(net, linear_schedule, clean.x0[0], draws, kind, REGION))


@pytest.mark.parametrize("kind", Output)
def test_regions_that_tile_an_image_make_up_its_output(kind, net, linear_schedule, clean, draws):
    asked = (bind(net, Precision.fp32), linear_schedule, clean[0], draws, kind)
    parts = sum(share / 64 * output(*asked, region) for region, share in TILES.items())
    torch.testing.assert_close(parts, output(*asked))
    torch.testing.assert_close(output(*asked, (0, 0, 8, 8)), output(*asked))


@pytest.mark.parametrize(
    "plan", [GradientPlan("loop", 2, 4), GradientPlan("vmap", 2, 6)], ids=lambda plan: plan.strategy
)
def test_the_gradient_of_a_region_is_autograds(plan, net, linear_schedule, clean, draws):
    objective = Objective(net, linear_schedule, Precision.fp32, region=REGION)
    (block,) = objective.gradients(clean[:2], draws, plan)
    for row, x0 in zip(block, clean.x0[:2], strict=True):
        gradients = torch.autograd.grad(
            masked(net, linear_schedule, x0, draws, Output.loss, REGION), net.parameters()
        )
        torch.testing.assert_close(
            row, torch.cat([g.flatten() for g in gradients]), rtol=1e-4, atol=1e-6
        )


def test_quarters_tile_any_image():
    for height, width in ((8, 8), (7, 10)):
        seen = np.zeros((height, width), int)
        for top, left, bottom, right in quarters(height, width).values():
            seen[top:bottom, left:right] += 1
        assert (seen == 1).all()


def test_only_queries_are_asked_about_a_region_and_only_a_region_is_addressed(small):
    plain, part = small.scores(journey_trak()), small.scores(journey_trak(region=list(REGION)))
    assert part.inputs.train == plain.inputs.train
    assert [f.region for f in part.inputs.queries] == [REGION]
    assert cache_key(small.scores(journey_trak(region=[]))) == cache_key(plain) != cache_key(part)
    assert cache_key(small.outputs(small.checkpoint(0), ())) == cache_key(
        small.outputs(small.checkpoint(0))
    )
    assert cache_key(small.outputs(small.checkpoint(0), REGION)) != cache_key(
        small.outputs(small.checkpoint(0))
    )


def test_measured_outputs_of_tiles_make_up_the_whole_through_the_stages(small, workspace):
    whole = get(small.outputs(small.checkpoint(0)), workspace).array("outputs.npy")
    parts = [
        get(small.outputs(small.checkpoint(0), r), workspace).array("outputs.npy") * n / 64
        for r, n in TILES.items()
    ]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)


def test_linear_scores_of_tiles_make_up_the_whole(small, workspace):
    """An inner product is linear in the query's gradient, and that in its regions."""

    def scores(region):
        return get(small.scores(journey_trak(region=list(region))), workspace).array("scores.npy")

    parts = sum(scores(region) * n / 64 for region, n in TILES.items())
    np.testing.assert_allclose(parts, scores(()), atol=1e-4 * np.abs(parts).max())


def test_the_cosine_of_a_regions_pixels(small, workspace):
    found = get(small.scores(Pixel(region=list(REGION))), workspace).array("scores.npy")
    train = as_pixels(train_images(small.images, workspace).images)[:, :, 1:4, 2:8].flatten(1)
    x0_hat = torch.from_numpy(get(small.trajectories, workspace).array("x0_hat.npy").copy())[
        ..., 1:4, 2:8
    ].flatten(2)
    expected = torch.cosine_similarity(x0_hat[:, :, None], train, dim=-1)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    "asked", [QueryExample.estimate, QueryExample.noisy], ids=lambda asked: asked.name
)
def test_a_box_for_each_query_is_that_box_of_that_query(asked, small, workspace):
    num_queries = small.sampling.num_queries
    boxes = [REGION if q % 2 else (0, 0, 8, 8) for q in range(num_queries)]
    each = [number for box in boxes for number in box]

    def made(region):
        method = journey_trak(query_example=asked).restricted_to(region)
        (of_queries,) = small.scores(method).inputs.queries
        features = get(of_queries, workspace).array("features.npy")  # [S·Q, p]
        pixels = get(small.scores(Pixel().restricted_to(region)), workspace).array("scores.npy")[
            0
        ]  # [S, Q, N]
        outputs = get(small.outputs(small.checkpoint(0), tuple(region)), workspace).array(
            "outputs.npy"
        )  # [2, S + 1, Q]
        return features.reshape(-1, num_queries, features.shape[-1]), pixels, outputs

    whole, part, own = made((0, 0, 8, 8)), made(REGION), made(each)
    for of_whole, of_part, of_own, axis in zip(whole, part, own, (1, 1, 2), strict=True):
        for q, box in enumerate(boxes):
            expected = of_part if box == REGION else of_whole
            np.testing.assert_allclose(
                of_own.take(q, axis), expected.take(q, axis), rtol=1e-3, atol=1e-6
            )


def test_boxes_for_other_than_every_query_are_refused(workspace):
    with pytest.raises(
        ConfigError,
        match=r"method\.a\.region=.*: must be one box, or one for each of the \d+ queries",
    ):
        checked(journey_trak(region=[*REGION, *REGION, *REGION]), workspace)


def checked(method, workspace):
    """As a run is before its first job."""
    run = small_run(method={"a": method})
    check_data(run, *prepare_experiment(run, workspace.store))


@pytest.mark.parametrize("method", [journey_trak(), Pixel()], ids=lambda method: method.name)
@pytest.mark.parametrize(
    "region",
    [[0, 0, 9, 8], [-1, 0, 4, 8], [4, 0, 4, 8], [0, 8, 4, 4], [0, 0, 4], [0, 0, 4, 9]],
    ids=str,
)
def test_a_region_outside_the_image_or_empty_is_refused_before_any_compute(
    region, method, workspace
):
    with pytest.raises(
        ConfigError,
        match=r"method\.a\.region=\[.*\]: must be \[first row, first column, end row, end column\]",
    ):
        checked(replace(method, region=region), workspace)
    assert not (workspace.store.root / "models").exists()


def test_a_trajectory_has_no_regions():
    method = journey_trak(target=Target.trajectory)
    assert method.restricted_to(REGION) is None
    with pytest.raises(
        ConfigError, match=r"method\.a\.region=\[1, 2, 4, 8\]: must be \[\] at a trajectory"
    ):
        small_run(method={"a": replace(method, region=list(REGION))})
