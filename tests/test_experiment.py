"""From settings to addresses: what changes one, and what does not."""

import dataclasses

import pytest
from conftest import journey_trak, small_run

from journey.artifacts.graph import address, ancestors, contents, missing, parents
from journey.artifacts.specs import Images, Train
from journey.artifacts.store import Store
from journey.artifacts.workspace import Workspace, get
from journey.config.groups import Precision, Retraining, Training
from journey.data.digits import Digits
from journey.evaluation.lds.lds import LDS
from journey.experiment import images_of, recipes, remember_images
from journey.launch.local import Local


@pytest.fixture
def target_of(workspace):
    def make(**changes):
        run = small_run(**changes)
        of = recipes(run, workspace.store)
        return of, of.evaluate(run.evaluation, run.judged)

    return make


def test_address_changes_with_settings_and_parents_and_nothing_else(target_of):
    one, target = target_of()
    _, same = target_of(compute=Local(workers=2, device="cuda"), name="x", artifacts="elsewhere")
    assert address(same) == address(target)
    for changes in (
        {"seed": 1},
        {"training": Training(num_steps=151, batch_size=16, warmup_steps=4)},
        {"compute": Local(precision=Precision.bf16)},
        {"dataset": Digits(num_train=61)},
    ):
        other, other_target = target_of(**changes)
        assert address(other.trained(0)) != address(one.trained(0))
        assert address(other.journeys) != address(one.journeys)
        assert address(other_target) != address(target)


def test_more_subsets_reuse_the_first_ones(target_of):
    def addresses(count):
        _, target = target_of(retraining=Retraining(num_subsets=count, num_draws=4), evaluation=LDS(paired_steps=[600]))
        return [address(m[0]) for m in target.needs["outputs"]]

    assert addresses(10)[:8] == addresses(8)


def test_a_name_for_a_method_is_no_part_of_its_address(workspace):
    of = recipes(small_run(), workspace.store)
    assert address(of.score(journey_trak())) == address(of.score(journey_trak()))
    assert address(of.score(journey_trak(damping=[1.0]))) != address(of.score(journey_trak()))


def test_everything_missing_is_made_once_and_after_what_it_is_made_from(target_of):
    _, target = target_of()
    order = list(missing([target], lambda spec: False).items())
    everything = {address(spec) for spec in [target, *ancestors(target)]}
    place = {key: i for i, (key, _) in enumerate(order)}
    assert len(order) == len(everything)
    assert place.keys() == everything
    assert all(place[address(parent)] < place[key] for key, spec in order for parent in parents(spec))
    full = target.journeys.checkpoint
    left = missing([target], lambda spec: address(spec) == address(full))
    assert set(left) == everything - {address(full)}, "its images are needed by other models"
    assert set(missing([target.journeys], lambda spec: address(spec) == address(full))) == {address(target.journeys)}


def test_a_model_of_all_images_has_no_keep_in_its_contents(target_of):
    """So that what else models are trained on may grow."""
    of, _ = target_of()
    assert "keep" not in contents(of.trained(0))
    assert contents(of.trained(0, of.subset(2)))["keep"] == {"of": "RandomSubset", "index": 2, "fraction": 0.5, "seed": 0}


def test_images_are_remembered_while_they_are_kept_and_looked_up_again_when_a_file_changes(tmp_path, monkeypatch):
    store, dataset = Store(tmp_path), Digits(num_train=60)
    images = images_of(dataset, store)
    assert list(tmp_path.iterdir()) == [], "asking writes nothing"
    remember_images(images, store)
    loaded = []
    load = Digits.load
    monkeypatch.setattr(Digits, "load", lambda self: loaded.append(self) or load(self))
    assert images_of(Digits(num_train=60), store) == images
    assert len(loaded) == 1, "not kept yet"
    get(images, Workspace(store, None, None, "test"))
    loaded.clear()
    assert images_of(Digits(num_train=60), store) == images
    assert not loaded
    source = tmp_path / "source.csv"
    source.touch()
    monkeypatch.setattr(Digits, "sources", lambda self: [source])
    assert images_of(Digits(num_train=60), store) == images
    assert loaded


def test_where_images_come_from_is_no_part_of_their_address():
    """Only what they are."""
    one, other = Images("abc", Digits(60), 60, (1, 8, 8)), Images("abc", Digits(60, seed=3), 61, (1, 8, 8))
    assert contents(one) == contents(other) == {"stage": "images", "version": 1, "content": "abc"}
    settings = {"images", "model", "training", "precision", "seed", "repeat", "keep", "batches", "encoded", "released", "source"}
    assert {f.name for f in dataclasses.fields(Train)} == settings
