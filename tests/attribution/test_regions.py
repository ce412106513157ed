"""Outputs of a region of an example against a mask, and scores of regional outputs."""

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
TILES = {(0, 0, 3, 8): 24, (3, 0, 8, 5): 25, (3, 5, 8, 8): 15}  # of 8×8 elements: a region's count


def masked(net, schedule, x0, noise, kind, region):
    """Return the mean over the elements of a mask, written out."""
    mask = torch.zeros(8, 8, dtype=torch.bool)
    for row in range(region[0], region[2]):
        for column in range(region[1], region[3]):
            mask[row, column] = True
    x_t = add_noise(schedule, x0.expand(len(noise), -1, -1, -1), noise.t, noise.eps)
    predicted = net(x_t, noise.t).sample
    values = {
        "loss": (noise.eps - predicted) ** 2,
        "square": predicted**2,
        "mean": predicted,
        "absolute": (noise.eps - predicted).abs(),
    }
    return values[kind.value][:, :, mask].mean()


@pytest.mark.parametrize("kind", Output)
def test_the_output_of_a_region_is_the_mean_over_its_mask(kind, net, linear_schedule, clean, draws):
    predict = bind(net, Precision.fp32)
    ours = output(predict, linear_schedule, clean[0], draws, kind, REGION)
    torch.testing.assert_close(ours, masked(net, linear_schedule, clean.x0[0], draws, kind, REGION))


@pytest.mark.parametrize("kind", Output)
def test_the_outputs_of_tiles_add_up_to_the_whole(kind, net, linear_schedule, clean, draws):
    function = (bind(net, Precision.fp32), linear_schedule, clean[0], draws, kind)
    parts = sum(count / 64 * output(*function, region) for region, count in TILES.items())
    torch.testing.assert_close(parts, output(*function))
    torch.testing.assert_close(output(*function, (0, 0, 8, 8)), output(*function))


@pytest.mark.parametrize(
    "plan",
    [GradientPlan("loop", 2, 4), GradientPlan("vmap", 2, 6), GradientPlan("layers", 2, 6)],
    ids=lambda plan: plan.strategy,
)
def test_the_gradient_of_a_region_is_autograds(plan, net, linear_schedule, clean, draws):
    objective = Objective(net, linear_schedule, Precision.fp32, region=REGION)
    (block,) = objective.gradients(clean[:2], draws, plan)
    for row, x0 in zip(block, clean.x0[:2], strict=True):
        loss = masked(net, linear_schedule, x0, draws, Output.loss, REGION)
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, net.parameters())])
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-6)


def test_quarters_tile_any_image():
    for height, width in ((8, 8), (7, 10)):
        counts = np.zeros((height, width), int)
        for top, left, bottom, right in quarters(height, width).values():
            counts[top:bottom, left:right] += 1
        assert (counts == 1).all()


def test_a_region_changes_queries_and_outputs_and_no_region_is_not_in_the_cache_key(small):
    plain, part = small.scores(journey_trak()), small.scores(journey_trak(region=list(REGION)))
    assert part.inputs.train == plain.inputs.train
    assert [features.region for features in part.inputs.queries] == [REGION]
    assert cache_key(small.scores(journey_trak(region=[]))) == cache_key(plain) != cache_key(part)
    checkpoint = small.checkpoint(0)
    whole = cache_key(small.outputs(checkpoint))
    assert cache_key(small.outputs(checkpoint, ())) == whole
    assert cache_key(small.outputs(checkpoint, REGION)) != whole


def test_the_measured_outputs_of_tiles_add_up_to_the_whole(trained, workspace):
    def outputs(region):
        return get(trained.outputs(trained.checkpoint(0), region), workspace).array("outputs.npy")

    parts = sum(outputs(region) * count / 64 for region, count in TILES.items())
    np.testing.assert_allclose(parts, outputs(()), rtol=1e-5)


def test_linear_scores_of_tiles_add_up_to_the_whole(trained, workspace):
    """An inner product is linear in the query's gradient, which is a sum over regions."""

    def scores(region):
        return get(trained.scores(journey_trak(region=list(region))), workspace).array("scores.npy")

    parts = sum(scores(region) * count / 64 for region, count in TILES.items())
    np.testing.assert_allclose(parts, scores(()), atol=1e-4 * np.abs(parts).max())


def test_the_cosine_of_the_pixels_of_a_region(trained, workspace):
    scores = get(trained.scores(Pixel(region=list(REGION))), workspace).array("scores.npy")
    train = as_pixels(train_images(trained.images, workspace).images)[:, :, 1:4, 2:8].flatten(1)
    x0_hat = torch.from_numpy(np.array(get(trained.trajectories, workspace).array("x0_hat.npy")))
    x0_hat = x0_hat[..., 1:4, 2:8].flatten(2)
    expected = torch.cosine_similarity(x0_hat[:, :, None], train, dim=-1)
    np.testing.assert_allclose(scores[0], expected, atol=1e-6)


@pytest.mark.parametrize("example", [QueryExample.estimate, QueryExample.noisy])
def test_every_query_may_have_a_box_of_its_own(example, trained, workspace):
    num_queries = trained.sampling.num_queries
    boxes = [REGION if q % 2 else (0, 0, 8, 8) for q in range(num_queries)]

    def results(region):
        """Return features [S, Q, p], pixel scores [S, Q, N] and outputs [2, S + 1, Q]."""
        method = journey_trak(query_example=example).restricted_to(region)
        (queries,) = trained.scores(method).inputs.queries
        features = get(queries, workspace).array("features.npy")
        pixels = get(trained.scores(Pixel().restricted_to(region)), workspace).array("scores.npy")
        outputs = get(trained.outputs(trained.checkpoint(0), tuple(region)), workspace)
        phi = features.reshape(-1, num_queries, features.shape[-1])
        return phi, pixels[0], outputs.array("outputs.npy")

    whole, part = results((0, 0, 8, 8)), results(REGION)
    mixed = results([number for box in boxes for number in box])
    for of_whole, of_part, of_mixed, axis in zip(whole, part, mixed, (1, 1, 2), strict=True):
        for q, box in enumerate(boxes):
            expected = (of_part if box == REGION else of_whole).take(q, axis)
            np.testing.assert_allclose(of_mixed.take(q, axis), expected, rtol=1e-3, atol=1e-6)


ONE_BOX = r"must be \[first row, first column, end row, end column\]"
WRONG = {
    (0, 0, 9, 8): ONE_BOX,
    (-1, 0, 4, 8): ONE_BOX,
    (4, 0, 4, 8): ONE_BOX,
    (0, 8, 4, 4): ONE_BOX,
    (0, 0, 4): ONE_BOX,
    (0, 0, 4, 9): ONE_BOX,
    REGION * 3: r"must be one box, or one for each of the \d+ queries",
}


@pytest.mark.parametrize("method", [journey_trak(), Pixel()], ids=lambda method: method.name)
@pytest.mark.parametrize(("region", "message"), WRONG.items(), ids=map(str, WRONG))
def test_wrong_regions_are_refused_before_any_compute(region, message, method, workspace):
    def prepare():
        run = small_run(method={"a": replace(method, region=list(region))})
        check_data(run, *prepare_experiment(run, workspace.store), workspace.store)

    with pytest.raises(ConfigError, match=rf"method\.a\.region=\[.*\]: {message}"):
        prepare()
    assert not (workspace.store.root / "models").exists()


def test_a_trajectory_has_no_regions():
    method = journey_trak(target=Target.trajectory)
    assert method.restricted_to(REGION) is None
    with pytest.raises(ConfigError, match=r"method\.a\.region=\[1, 2, 4, 8\]: must be \[\] with"):
        small_run(method={"a": replace(method, region=list(REGION))})
