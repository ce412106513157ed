"""Injected duplicates are exactly as the settings say, and nothing else changes."""

import numpy as np
import pytest
from conftest import small_run

from journey.data.duplicates import split_parts
from journey.data.embedded import Digits
from journey.engine.checks import ConfigError
from journey.engine.spec import cache_key
from journey.engine.store import Store
from journey.engine.workspace import get
from journey.experiment import dataset_images, load_experiment, record_images
from journey.pipeline.images import ImageSet, check_images, content_hash, read_images

PLAIN = Digits(num_train=60)


def with_duplicates(**changes) -> Digits:
    return Digits(num_train=60, **{"num_injected": 4, "copies": 3, **changes})


def test_duplicates_follow_the_training_images_and_originals_leave_the_held_out_images():
    train, held_out = PLAIN.load()
    parts = split_parts(with_duplicates())
    assert list(parts) == ["train", "held_out", "injected"]
    combined, rest, originals = parts.values()
    np.testing.assert_array_equal(combined.images[:60], train.images)
    assert combined.ids[:60] == train.ids
    assert combined.ids[60:] == tuple(f"{name}/copy{j}" for name in originals.ids for j in range(3))
    for row, name in enumerate(combined.ids[60:], 60):
        original = held_out.ids.index(name.rpartition("/")[0])
        np.testing.assert_array_equal(combined.images[row], held_out.images[original])
        assert combined.labels[row] == held_out.labels[original]
    assert set(originals.ids) | set(rest.ids) == set(held_out.ids)
    assert len(originals) + len(rest) == len(held_out)
    assert len(set(originals.labels)) == 4, "class-balanced"


def test_jitter_is_noise_of_each_duplicate_and_leaves_the_originals_alone():
    exact = split_parts(with_duplicates(copies=50))
    jittered = split_parts(with_duplicates(copies=50, jitter=0.1))
    np.testing.assert_array_equal(exact["injected"].images, jittered["injected"].images)
    grey = exact["train"].images[60:].astype(float)
    difference = jittered["train"].images[60:] - grey
    inside = (grey > 100) & (grey < 155)  # nothing is clipped
    assert difference[inside].std() == pytest.approx(25.5, rel=0.1)
    assert difference[inside].mean() == pytest.approx(0, abs=2)
    assert len(np.unique(jittered["train"].images[60:110], axis=0)) == 50
    fewer = split_parts(with_duplicates(copies=2, jitter=0.1))["train"]
    rows = [jittered["train"].ids.index(name) for name in fewer.ids]
    np.testing.assert_array_equal(
        jittered["train"].images[rows], fewer.images, "independent of the number of copies"
    )


def test_without_duplicates_the_content_is_that_of_the_dataset(tmp_path):
    assert list(split_parts(PLAIN)) == ["train", "held_out"]
    store = Store(tmp_path)
    assert dataset_images(PLAIN, store).content == content_hash(*PLAIN.load())
    changes = ({}, {"copies": 2}, {"jitter": 0.1})
    datasets = (PLAIN, *(with_duplicates(**change) for change in changes))
    assert len({cache_key(dataset_images(dataset, store)) for dataset in datasets}) == 4


def test_originals_are_written_beside_the_images(workspace):
    run = small_run(dataset=with_duplicates())
    images = dataset_images(run.dataset, workspace.store)
    path = get(images, workspace).path
    originals = split_parts(with_duplicates())["injected"]
    assert read_images(path / "injected").ids == originals.ids
    assert (len(read_images(path / "train")), images.num_train) == (72, 72)
    record_images(images, workspace.store)
    assert dataset_images(run.dataset, workspace.store) == images
    assert load_experiment(run, workspace.store).checkpoint(0).images == images


class Variant(Digits):
    """Digits with captions, or with images that stay in their files."""

    def __init__(self, captioned=False, identity="", **changes):
        super().__init__(num_train=60, **changes)
        self.captioned, self.identity = captioned, identity

    def load(self):
        parts = []
        for p in super().load():
            captions = tuple((name,) for name in p.ids) if self.captioned else None
            texts = (captions, p.ids, p.class_names)
            parts.append(ImageSet(p.images, p.labels, *texts, self.identity))
        return tuple(parts)


def test_duplicates_have_the_captions_of_their_originals():
    train = split_parts(Variant(captioned=True, num_injected=2, copies=2))["train"]
    originals = [name.partition("/copy")[0] for name in train.ids]
    assert [texts[0] for texts in train.captions] == originals
    check_images(train, "duplicates")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            Variant(identity="files", num_injected=2),
            r"num_injected=2: must be 0 with dataset=digits, whose images are decoded from their",
        ),
        (Digits(num_train=60, num_injected=1738), r"num_injected=1738: must be in 1…1737"),
    ],
)
def test_duplicates_that_cannot_be_injected_are_refused(dataset, message):
    with pytest.raises(ConfigError, match=rf"dataset\.{message}"):
        split_parts(dataset)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_injected": -1}, r"num_injected=-1: must be in 0…"),
        ({"num_injected": 0, "copies": 3}, r"copies=3: must be left as it is unless"),
        ({"num_injected": 0, "copies": 1, "jitter": 0.1}, r"jitter=0\.1: must be left as it is"),
        ({"copies": 0}, r"copies=0: must be in 1…"),
        ({"jitter": 2.0}, r"jitter=2\.0: must be in 0…1"),
    ],
)
def test_settings_of_duplicates_are_checked(changes, message):
    with pytest.raises(ConfigError, match=rf"dataset\.{message}"):
        small_run(dataset=with_duplicates(**changes))
