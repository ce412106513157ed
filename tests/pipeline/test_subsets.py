"""Which training images a model sees, and that it sees them."""

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
from journey.pipeline.interfaces import FullData, RandomSubset, WithoutRandom, WithoutTop
from journey.pipeline.settings import Target, Training


@pytest.fixture
def of(workspace):
    """Recipes of a run of four training steps."""
    run = small_run(training=Training(num_steps=4, batch_size=16, warmup_steps=1))
    return load_experiment(run, workspace.store)


def rows(keep, images, scores=None):
    return subsets.subset_rows(keep, images, lambda score: scores).tolist()


def test_all_is_every_row(digits):
    assert rows(FullData(), digits) == list(range(200))


def test_a_random_subset_is_its_mask(digits):
    kept = rows(RandomSubset(3, 0.5, seed=0), digits)
    assert (
        kept
        == np.flatnonzero(subsets.subset_mask(digits.labels, RandomSubset(3, 0.5, seed=0))).tolist()
    )
    assert len(kept) == 100
    assert kept != rows(RandomSubset(4, 0.5, seed=0), digits)


@pytest.fixture
def scores():
    """[candidate 2, step 2, query 3, train 200]"""
    return np.random.default_rng(0).standard_normal((2, 2, 3, 200))


@pytest.mark.parametrize("opponents", [False, True])
def test_without_is_all_but_what_a_score_ranks_first(of, digits, scores, opponents):
    keep = WithoutTop(
        of.scores(Pixel()), candidate=1, step=300, query=2, count=5, opponents=opponents
    )
    tau = scores[1, 1, 2]  # 300 is the second step
    worst_first = np.argsort(tau).tolist()
    left_out = worst_first[:5] if opponents else worst_first[-5:]
    assert rows(keep, digits, scores) == sorted(set(range(200)) - set(left_out))


def test_equal_scores_are_ranked_by_row(of, digits):
    tied = np.zeros((1, 2, 3, 200))
    tied[..., 10] = 1
    keep = WithoutTop(of.scores(Pixel()), candidate=0, step=600, query=0, count=3)
    assert sorted(set(range(200)) - set(rows(keep, digits, tied))) == [0, 1, 10]
    last = WithoutTop(of.scores(Pixel()), candidate=0, step=600, query=0, count=3, opponents=True)
    assert sorted(set(range(200)) - set(rows(last, digits, tied))) == [0, 1, 2]


@pytest.mark.parametrize("step", [600, 300])
def test_a_method_with_one_score_ranks_alike_at_every_step(of, digits, scores, step):
    score = of.scores(journey_trak(target=Target.final_sample))
    keep = WithoutTop(score, candidate=0, step=step, query=1, count=4)
    assert set(range(200)) - set(rows(keep, digits, scores[:, :1])) == set(
        np.argsort(-scores[0, 0, 1])[:4].tolist()
    )


@pytest.mark.parametrize("count", [0, 200, -1])
def test_leaving_out_nothing_or_everything_is_refused(of, digits, scores, count):
    with pytest.raises(ConfigError, match=f"count={count}: must be in 1…199"):
        rows(WithoutTop(of.scores(Pixel()), 0, 600, 0, count), digits, scores)


@pytest.mark.parametrize("count", [10, 37])
def test_a_random_removal_takes_of_every_class_its_share(digits, count):
    left = rows(WithoutRandom(0, count, seed=0), digits)
    assert len(left) == 200 - count
    taken = np.bincount(digits.labels, minlength=10) - np.bincount(
        digits.labels[left], minlength=10
    )
    assert (taken.min(), taken.max()) == (count // 10, -(-count // 10))
    others = [rows(WithoutRandom(index, count, seed), digits) for index, seed in ((1, 0), (0, 1))]
    assert len({tuple(some) for some in (left, *others)}) == 3


def test_a_random_removal_leaves_some_of_every_class(digits):
    rarest = np.bincount(digits.labels).min()
    most = 200 * (rarest - 1) // rarest
    assert np.bincount(digits.labels[rows(WithoutRandom(0, most, 0), digits)]).min() > 0
    with pytest.raises(
        ConfigError, match=f"count={most + 1}: must be in 1…{most}: some of every class"
    ):
        subsets.require_removable("count", most + 1, digits.labels)


@pytest.fixture
def seen(monkeypatch):
    """The examples that trainings were given."""
    given, train = [], training.train

    def watched(state, course, until):
        given.append(course.examples[course.batches.rows])
        return train(state, course, until)

    monkeypatch.setattr(training, "train", watched)
    return given


def test_every_choice_of_images_is_trained_on(of, workspace, seen):
    images = train_images(of.images, workspace)
    get(of.checkpoint(0), workspace)
    score = of.scores(Pixel())
    tau = get(score, workspace).array("scores.npy")
    choices = {
        "subset": of.random_subset(0),
        "without": WithoutTop(score, candidate=0, step=300, query=1, count=10),
        "opponents": WithoutTop(score, candidate=0, step=300, query=1, count=10, opponents=True),
        "random": WithoutRandom(index=0, count=10, seed=0),
    }
    weights = {
        "all": (
            get(of.checkpoint(0), workspace).path / "diffusion_pytorch_model.safetensors"
        ).read_bytes()
    }
    for name, keep in choices.items():
        seen.clear()
        spec = of.retrained(keep)
        made = get(spec, workspace)
        weights[name] = (made.path / "diffusion_pytorch_model.safetensors").read_bytes()
        expected = of.model.encode(images.take(np.array(rows(keep, images, tau)))).x0
        assert torch.equal(seen[0].x0, expected), name
        assert (score in parents(spec)) == isinstance(keep, WithoutTop), (
            "what is left out follows from scores, which are made first"
        )
    assert len(set(weights.values())) == 5
    assert len({cache_key(of.retrained(keep)) for keep in (FullData(), *choices.values())}) == 5
