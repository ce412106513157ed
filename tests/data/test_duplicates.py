"""What is planted is exactly what was promised, and nothing else changes."""

import numpy as np
import pytest
from conftest import small_run

from journey.data.duplicates import split_parts
from journey.data.embedded import Digits
from journey.data.images import make_images as keep
from journey.engine.checks import ConfigError
from journey.engine.spec import cache_key
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.experiment import dataset_images, load_experiment, record_images
from journey.pipeline.images import ImageSet, check_images, content_hash, read_images

PLAIN = Digits(num_train=60)


def planted(**changes) -> Digits:
    return Digits(num_train=60, **{"num_injected": 4, "copies": 3, **changes})


def test_copies_follow_the_training_images_and_originals_leave_the_held_out_ones():
    train, held_out = PLAIN.load()
    parts = split_parts(planted())
    assert list(parts) == ["train", "held_out", "planted"]
    new, rest, originals = parts.values()
    np.testing.assert_array_equal(new.images[:60], train.images)
    assert new.ids[:60] == train.ids
    assert new.ids[60:] == tuple(f"{name}/copy{j}" for name in originals.ids for j in range(3))
    of = {name: i for i, name in enumerate(held_out.ids)}
    for row, name in enumerate(new.ids[60:], 60):
        original = of[name.rpartition("/")[0]]
        np.testing.assert_array_equal(new.images[row], held_out.images[original])
        assert new.labels[row] == held_out.labels[original]
    assert set(originals.ids) | set(rest.ids) == set(held_out.ids)
    assert len(originals) + len(rest) == len(held_out)
    assert len(set(originals.labels)) == 4, "class-balanced"


def test_jitter_is_noise_of_each_copy_and_the_originals_stay_as_they_are():
    exact, jittered = split_parts(planted(copies=50)), split_parts(planted(copies=50, jitter=0.1))
    np.testing.assert_array_equal(exact["planted"].images, jittered["planted"].images)
    grey = exact["train"].images[60:].astype(float)
    difference = jittered["train"].images[60:] - grey
    inside = (grey > 100) & (grey < 155)  # nothing is clipped
    assert difference[inside].std() == pytest.approx(25.5, rel=0.1)
    assert difference[inside].mean() == pytest.approx(0, abs=2)
    assert len(np.unique(jittered["train"].images[60:110], axis=0)) == 50
    fewer = split_parts(planted(copies=2, jitter=0.1))["train"]
    rows = [jittered["train"].ids.index(name) for name in fewer.ids]
    np.testing.assert_array_equal(
        jittered["train"].images[rows], fewer.images, "a copy is the same however many there are"
    )


def test_nothing_planted_is_the_dataset_as_it_is_and_is_addressed_as_before(tmp_path):
    parts = split_parts(PLAIN)
    assert list(parts) == ["train", "held_out"]
    store = Store(tmp_path)
    assert dataset_images(PLAIN, store).content == content_hash(*PLAIN.load())
    addresses = [
        cache_key(dataset_images(d, store))
        for d in (PLAIN, planted(), planted(copies=2), planted(jitter=0.1))
    ]
    assert len(set(addresses)) == 4


def test_images_are_kept_with_the_originals_and_known_again(tmp_path):
    run = small_run(dataset=planted())
    workspace = Workspace(Store(tmp_path / "store"), run.compute, run.tracking, "test")
    images = dataset_images(run.dataset, workspace.store)
    kept = get(images, workspace).path
    assert read_images(kept / "planted").ids == split_parts(planted())["planted"].ids
    assert (len(read_images(kept / "train")), images.num_train) == (72, 72)
    record_images(images, workspace.store)
    assert dataset_images(run.dataset, workspace.store) == images
    assert load_experiment(run, workspace.store).checkpoint(0).images == images
    assert keep.__module__ == "journey.stages.images"


class Held(Digits):
    """A dataset with captions, or with images that stay in their files."""

    def __init__(self, captions=None, identity="", **changes):
        super().__init__(num_train=60, **changes)
        self.captions, self.identity = captions, identity

    def load(self):
        return tuple(
            ImageSet(
                p.images,
                p.labels,
                self.captions and tuple((name,) for name in p.ids),
                p.ids,
                p.class_names,
                self.identity,
            )
            for p in super().load()
        )


def test_copies_have_the_captions_of_their_originals():
    train = split_parts(Held(captions=True, num_injected=2, copies=2))["train"]
    assert [texts[0] for texts in train.captions] == [
        name.partition("/copy")[0] for name in train.ids
    ]
    check_images(train, "planted")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            Held(identity="files", num_injected=2),
            r"dataset\.num_injected=2: must be 0 with dataset=digits, whose images stay",
        ),
        (Digits(num_train=60, num_injected=1738), r"dataset\.num_injected=1738: must be in 1…1737"),
    ],
)
def test_what_cannot_be_planted_is_refused(dataset, message):
    with pytest.raises(ConfigError, match=message):
        split_parts(dataset)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_injected": -1}, r"dataset\.num_injected=-1: must be in 0…"),
        ({"num_injected": 0, "copies": 3}, r"dataset\.copies=3: must be left as it is unless"),
        (
            {"num_injected": 0, "copies": 1, "jitter": 0.1},
            r"dataset\.jitter=0\.1: must be left as it is unless",
        ),
        ({"copies": 0}, r"dataset\.copies=0: must be in 1…"),
        ({"jitter": 2.0}, r"dataset\.jitter=2\.0: must be in 0…1"),
    ],
)
def test_settings_of_planting_are_checked(changes, message):
    with pytest.raises(ConfigError, match=message):
        small_run(dataset=planted(**changes))
