"""From settings to cache keys: what changes one, and what does not."""

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
def load(workspace):
    """Return a function: changes of the small run -> its experiment and evaluation."""

    def load(**changes):
        run = small_run(**changes)
        experiment = load_experiment(run, workspace.store)
        return experiment, experiment.evaluation(run.evaluation, run.all_methods)

    return load


def test_cache_keys_depend_on_settings_and_parents_and_nothing_else(load):
    one, target = load()
    local = Local(workers=2, device="cuda")
    assert cache_key(load(compute=local, name="x", artifacts="y")[1]) == cache_key(target)
    for changes in (
        {"seed": 1},
        {"training": Training(num_steps=151, batch_size=16, warmup_steps=4)},
        {"compute": Local(precision=Precision.bf16)},
        {"dataset": Digits(num_train=61)},
    ):
        other, other_target = load(**changes)
        assert cache_key(other.checkpoint(0)) != cache_key(one.checkpoint(0))
        assert cache_key(other.trajectories) != cache_key(one.trajectories)
        assert cache_key(other_target) != cache_key(target)


def test_more_subsets_reuse_the_first_ones(load):
    def keys(count):
        retraining = Retraining(num_subsets=count, num_samples=4)
        _, target = load(retraining=retraining, evaluation=LDS(paired_steps=[600]))
        return [cache_key(outputs[0]) for outputs in target.inputs.outputs]

    assert keys(10)[:8] == keys(8)


def test_scores_depend_on_the_settings_of_a_method(small):
    first, second, other = map(
        small.scores, (journey_trak(), journey_trak(), journey_trak(damping=[1.0]))
    )
    assert cache_key(first) == cache_key(second) != cache_key(other)


def test_missing_artifacts_are_computed_once_and_after_their_parents(load):
    _, target = load()
    order = missing([target], lambda spec: False)
    everything = {cache_key(spec) for spec in [target, *ancestors(target)]}
    position = {key: i for i, key in enumerate(order)}
    assert position.keys() == everything
    for key, spec in order.items():
        assert all(position[cache_key(parent)] < position[key] for parent in parents(spec))
    full = cache_key(target.trajectories.checkpoint)
    rest = missing([target], lambda spec: cache_key(spec) == full)
    assert set(rest) == everything - {full}, "its images are needed by other models"
    rest = missing([target.trajectories], lambda spec: cache_key(spec) == full)
    assert set(rest) == {cache_key(target.trajectories)}


def test_the_key_of_a_model_of_all_images_has_no_subset(small):
    """More ways to choose subsets therefore leave it alone."""
    assert "subset" not in key_fields(small.checkpoint(0))
    expected = {"type": "RandomSubset", "index": 2, "fraction": 0.5, "seed": 0}
    assert key_fields(small.retrained(small.random_subset(2)))["subset"] == expected


def test_images_are_loaded_unless_they_are_in_the_store_and_their_files_unchanged(
    tmp_path, monkeypatch
):
    store, dataset = Store(tmp_path), Digits(num_train=60)
    images = dataset_images(dataset, store)
    assert list(tmp_path.iterdir()) == [], "looking up writes nothing"
    record_images(images, store)
    loaded = []
    load = Digits.load
    monkeypatch.setattr(Digits, "load", lambda self: loaded.append(self) or load(self))
    assert dataset_images(Digits(num_train=60), store) == images
    assert len(loaded) == 1, "not in the store yet"
    get(images, Workspace(store, Local(), None, "test"))
    loaded.clear()
    assert dataset_images(Digits(num_train=60), store) == images
    assert not loaded
    source = tmp_path / "source.csv.gz"
    source.write_bytes(Digits().sources()[0].read_bytes())
    monkeypatch.setattr(Digits, "sources", lambda self: [source])
    assert dataset_images(Digits(num_train=60), store) == images
    assert loaded


def test_the_key_of_images_contains_their_content_only():
    one = Images("abc", Digits(60), 60, (1, 8, 8))
    other = Images("abc", Digits(60, seed=3), 61, (1, 8, 8))
    expected = {"stage": "images", "version": 1, "content": "abc"}
    assert key_fields(one) == key_fields(other) == expected


def test_a_new_field_of_a_model_is_a_decision():
    """A field without `omitted_default` changes the cache keys of all models."""
    fields = (
        "images model training precision seed training_seed subset batches latents released source "
        "start"
    )
    assert {f.name for f in dataclasses.fields(Train)} == set(fields.split())
