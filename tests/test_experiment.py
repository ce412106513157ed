"""From settings to addresses: what changes one, and what does not."""

import dataclasses

import pytest
from conftest import journey_trak, small_run

from journey.data.embedded import Digits
from journey.engine.graph import ancestors, missing, parents
from journey.engine.spec import cache_key, key_fields
from journey.engine.store import Store
from journey.engine.workspace import Precision, Workspace, get
from journey.evaluation.lds import LDS
from journey.experiment import dataset_images, load_experiment, record_images
from journey.launch.local import Local
from journey.pipeline.interfaces import Images, Train
from journey.pipeline.settings import Retraining, Training


@pytest.fixture
def target_of(workspace):
    def make(**changes):
        run = small_run(**changes)
        of = load_experiment(run, workspace.store)
        return of, of.evaluation(run.evaluation, run.all_methods)

    return make


def test_address_changes_with_settings_and_parents_and_nothing_else(target_of):
    one, target = target_of()
    _, same = target_of(compute=Local(workers=2, device="cuda"), name="x", artifacts="elsewhere")
    assert cache_key(same) == cache_key(target)
    for changes in (
        {"seed": 1},
        {"training": Training(num_steps=151, batch_size=16, warmup_steps=4)},
        {"compute": Local(precision=Precision.bf16)},
        {"dataset": Digits(num_train=61)},
    ):
        other, other_target = target_of(**changes)
        assert cache_key(other.checkpoint(0)) != cache_key(one.checkpoint(0))
        assert cache_key(other.trajectories) != cache_key(one.trajectories)
        assert cache_key(other_target) != cache_key(target)


def test_more_subsets_reuse_the_first_ones(target_of):
    def addresses(count):
        _, target = target_of(
            retraining=Retraining(num_subsets=count, num_samples=4),
            evaluation=LDS(paired_steps=[600]),
        )
        return [cache_key(m[0]) for m in target.inputs.outputs]

    assert addresses(10)[:8] == addresses(8)


def test_a_name_for_a_method_is_no_part_of_its_address(workspace):
    of = load_experiment(small_run(), workspace.store)
    assert cache_key(of.scores(journey_trak())) == cache_key(of.scores(journey_trak()))
    assert cache_key(of.scores(journey_trak(damping=[1.0]))) != cache_key(of.scores(journey_trak()))


def test_everything_missing_is_made_once_and_after_what_it_is_made_from(target_of):
    _, target = target_of()
    order = list(missing([target], lambda spec: False).items())
    everything = {cache_key(spec) for spec in [target, *ancestors(target)]}
    place = {key: i for i, (key, _) in enumerate(order)}
    assert len(order) == len(everything)
    assert place.keys() == everything
    assert all(
        place[cache_key(parent)] < place[key] for key, spec in order for parent in parents(spec)
    )
    full = target.trajectories.checkpoint
    left = missing([target], lambda spec: cache_key(spec) == cache_key(full))
    assert set(left) == everything - {cache_key(full)}, "its images are needed by other models"
    assert set(missing([target.trajectories], lambda spec: cache_key(spec) == cache_key(full))) == {
        cache_key(target.trajectories)
    }


def test_a_model_of_all_images_has_no_keep_in_its_contents(target_of):
    """So that what else models are trained on may grow."""
    of, _ = target_of()
    assert "keep" not in key_fields(of.checkpoint(0))
    assert key_fields(of.retrained(of.random_subset(2)))["keep"] == {
        "of": "RandomSubset",
        "index": 2,
        "fraction": 0.5,
        "seed": 0,
    }


def test_images_are_remembered_while_they_are_kept_and_looked_up_again_when_a_file_changes(
    tmp_path, monkeypatch
):
    store, dataset = Store(tmp_path), Digits(num_train=60)
    images = dataset_images(dataset, store)
    assert list(tmp_path.iterdir()) == [], "asking writes nothing"
    record_images(images, store)
    loaded = []
    load = Digits.load
    monkeypatch.setattr(Digits, "load", lambda self: loaded.append(self) or load(self))
    assert dataset_images(Digits(num_train=60), store) == images
    assert len(loaded) == 1, "not kept yet"
    get(images, Workspace(store, None, None, "test"))
    loaded.clear()
    assert dataset_images(Digits(num_train=60), store) == images
    assert not loaded
    source = tmp_path / "source.csv"
    source.touch()
    monkeypatch.setattr(Digits, "sources", lambda self: [source])
    assert dataset_images(Digits(num_train=60), store) == images
    assert loaded


def test_where_images_come_from_is_no_part_of_their_address():
    """Only what they are."""
    one, other = (
        Images("abc", Digits(60), 60, (1, 8, 8)),
        Images("abc", Digits(60, seed=3), 61, (1, 8, 8)),
    )
    assert (
        key_fields(one) == key_fields(other) == {"stage": "images", "version": 1, "content": "abc"}
    )
    settings = {
        "images",
        "model",
        "training",
        "precision",
        "seed",
        "repeat",
        "keep",
        "batches",
        "encoded",
        "released",
        "source",
    }
    assert {f.name for f in dataclasses.fields(Train)} == settings
