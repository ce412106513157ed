"""Which training images are in a subset, and that models are trained on them."""

import numpy as np
import pytest
import torch
from conftest import journey_trak, small_run

from journey.attribution.baselines import Pixel
from journey.data.images import train_images
from journey.diffusion import training
from journey.engine.checks import ConfigError
from journey.engine.graph import parents
from journey.engine.spec import cache_key
from journey.engine.workspace import get
from journey.experiment import load_experiment
from journey.pipeline import subsets
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import (
    FullData,
    RandomSubset,
    WithoutGroup,
    WithoutRandom,
    WithoutTop,
)
from journey.pipeline.settings import Target, Training, Unit

EVERYTHING = set(range(200))


@pytest.fixture
def experiment(workspace):
    """An experiment with four training steps."""
    run = small_run(training=Training(num_steps=4, batch_size=16, warmup_steps=1))
    return load_experiment(run, workspace.store)


@pytest.fixture
def scores():
    """[candidate 2, step 2, query 3, train 200]"""
    return np.random.default_rng(0).standard_normal((2, 2, 3, 200))


def rows(subset, images, scores=None):
    return subsets.subset_rows(subset, images, lambda score: scores).tolist()


def removed(subset, images, scores=None):
    return sorted(EVERYTHING - set(rows(subset, images, scores)))


def test_the_full_data_are_all_rows(digits):
    assert rows(FullData(), digits) == list(range(200))


def test_a_random_subset_is_its_mask(digits):
    subset = RandomSubset(3, 0.5, seed=0)
    mask = subsets.subset_mask(digits.labels, subset)
    assert rows(subset, digits) == np.flatnonzero(mask).tolist()
    assert mask.sum() == 100
    assert rows(RandomSubset(4, 0.5, seed=0), digits) != rows(subset, digits)


@pytest.mark.parametrize("opponents", [False, True])
def test_without_top_removes_the_rows_that_a_score_ranks_first(
    experiment, digits, scores, opponents
):
    score = experiment.scores(Pixel())
    subset = WithoutTop(score, candidate=1, step=300, query=2, count=5, opponents=opponents)
    worst_first = np.argsort(scores[1, 1, 2])  # 300 is the second step
    expected = worst_first[:5] if opponents else worst_first[-5:]
    assert removed(subset, digits, scores) == sorted(expected)


def test_equal_scores_are_ranked_by_row(experiment, digits):
    tied = np.zeros((1, 2, 3, 200))
    tied[..., 10] = 1
    score = experiment.scores(Pixel())
    for opponents, expected in ((False, [0, 1, 10]), (True, [0, 1, 2])):
        subset = WithoutTop(score, 0, step=600, query=0, count=3, opponents=opponents)
        assert removed(subset, digits, tied) == expected


@pytest.mark.parametrize("step", [600, 300])
def test_a_single_score_per_query_ranks_alike_at_every_step(experiment, digits, scores, step):
    score = experiment.scores(journey_trak(target=Target.final_sample))
    subset = WithoutTop(score, candidate=0, step=step, query=1, count=4)
    expected = np.argsort(-scores[0, 0, 1])[:4]
    assert removed(subset, digits, scores[:, :1]) == sorted(expected)


@pytest.mark.parametrize("count", [0, 200, -1])
def test_removing_nothing_or_everything_is_refused(experiment, digits, scores, count):
    with pytest.raises(ConfigError, match=f"count={count}: must be in 1…199"):
        rows(WithoutTop(experiment.scores(Pixel()), 0, 600, 0, count), digits, scores)


@pytest.mark.parametrize("count", [10, 37])
def test_a_random_removal_is_proportional_to_the_classes(digits, count):
    lost = removed(WithoutRandom(0, count, seed=0), digits)
    assert len(lost) == count
    per_class = np.bincount(digits.labels[lost], minlength=10)
    assert (per_class.min(), per_class.max()) == (count // 10, -(-count // 10))
    others = [removed(WithoutRandom(i, count, seed), digits) for i, seed in ((1, 0), (0, 1))]
    assert len({tuple(other) for other in (lost, *others)}) == 3


def test_a_random_removal_leaves_some_of_every_class(digits):
    rarest = np.bincount(digits.labels).min()
    most = 200 * (rarest - 1) // rarest
    assert np.bincount(digits.labels[rows(WithoutRandom(0, most, 0), digits)]).min() > 0
    message = f"count={most + 1}: must be in 1…{most}: some of every class"
    with pytest.raises(ConfigError, match=message):
        subsets.require_removable("count", most + 1, digits.labels)


@pytest.fixture
def crops():
    """Two classes: five photographs of three crops, and two of three; a near-duplicate; a loner."""
    names = [f"land/p{p}/{i}" for p in range(7) for i in range(3)]
    labels = np.repeat([0] * 5 + [1] * 2, 3)
    pixels = np.random.default_rng(0).integers(256, size=(23, 1, 4, 4), dtype=np.uint8)
    pixels[21] = pixels[4] ^ 1
    ids = (*names, "land/a", "land/b")
    return ImageSet(pixels, np.append(labels, [0, 1]), None, ids, ("sea", "sky"))


def test_groups_are_classes_photographs_or_near_duplicates(crops):
    photographs = [*np.repeat(range(7), 3), 7, 8]
    assert subsets.image_groups(crops, Unit.sources).tolist() == photographs
    assert subsets.image_groups(crops, Unit.classes).tolist() == [0] * 15 + [1] * 6 + [0, 1]
    near = subsets.image_groups(crops, Unit.near_duplicates)
    assert near.tolist() == [*range(21), 4, 21]
    assert subsets.removable_groups(near).tolist() == [4]


def test_random_subsets_keep_whole_photographs_of_every_class(crops):
    groups, kept_alone = subsets.image_groups(crops, Unit.sources), 0
    masks = [rows(RandomSubset(i, 0.5, 0, Unit.sources), crops) for i in range(40)]
    for kept in masks:
        mask = np.isin(np.arange(23), kept)
        for group in range(9):
            assert len(set(mask[groups == group])) == 1
        by_class = [len(set(groups[mask & (crops.labels == label)])) for label in (0, 1)]
        assert by_class[0] == 3
        assert by_class[1] in (1, 2), "half of three, rounded at random"
        kept_alone += mask[22]
    assert 8 < kept_alone < 32
    assert len(set(map(tuple, masks))) > 30
    with pytest.raises(ValueError, match="needs the group of each image"):
        subsets.subset_mask(crops.labels, RandomSubset(0, 0.5, 0, Unit.sources))


def test_half_of_the_classes_are_kept(digits):
    kept = rows(RandomSubset(0, 0.5, 0, Unit.classes), digits)
    assert len(set(digits.labels[kept])) == 5
    assert len(kept) == 100


def test_without_group_removes_each_group_of_several_images_once(crops):
    groups = subsets.image_groups(crops, Unit.sources)
    lost = []
    for index in range(7):
        kept = rows(WithoutGroup(Unit.sources, index, seed=0), crops)
        (group,) = set(np.delete(groups, kept))
        assert len(kept) == 20
        lost.append(group)
    assert sorted(lost) == list(range(7))


def test_images_without_groups_are_refused(crops, digits):
    subsets.require_groups("retraining.by", Unit.sources, crops)
    message = r"^retraining\.by=sources: must be a kind of which there are 2 groups of several"
    with pytest.raises(ConfigError, match=message):
        subsets.require_groups("retraining.by", Unit.sources, digits)


@pytest.fixture
def trained_on(monkeypatch):
    """The examples of every training run."""
    examples, train = [], training.train

    def record(state, inputs, *args):
        examples.append(inputs.examples[inputs.batches.rows])
        return train(state, inputs, *args)

    monkeypatch.setattr(training, "train", record)
    return examples


def test_models_are_trained_on_every_kind_of_subset(experiment, workspace, trained_on):
    images = train_images(experiment.images, workspace)
    score = experiment.scores(Pixel())
    array = get(score, workspace).array("scores.npy")
    choices = (
        FullData(),
        experiment.random_subset(0),
        WithoutTop(score, candidate=0, step=300, query=1, count=10),
        WithoutTop(score, candidate=0, step=300, query=1, count=10, opponents=True),
        WithoutRandom(index=0, count=10, seed=0),
        WithoutGroup(Unit.classes, index=1, seed=0),
    )
    weights, cache_keys = set(), set()
    for subset in choices:
        spec = experiment.retrained(subset)
        if not isinstance(subset, FullData):  # that model exists: it samples the queries
            trained_on.clear()
        path = get(spec, workspace).path
        weights.add((path / "diffusion_pytorch_model.safetensors").read_bytes())
        cache_keys.add(cache_key(spec))
        expected = experiment.model.encode(images.take(np.array(rows(subset, images, array)))).x0
        assert torch.equal(trained_on[0].x0, expected), subset
        uses_scores = score in parents(spec)
        assert uses_scores == isinstance(subset, WithoutTop), "scores are computed before"
    assert len(weights) == len(cache_keys) == 6
