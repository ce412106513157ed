"""Latents and text states that were computed elsewhere; ours are the oracle."""

import json
import shutil
from dataclasses import replace

import miniatures
import numpy as np
import pytest
from conftest import small_run

from journey.attribution.baselines import Caption
from journey.data.coco import COCO
from journey.diffusion.encoded import read_encoded
from journey.diffusion.latent import LatentDiffusion
from journey.engine.checks import ConfigError
from journey.engine.spec import cache_key
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.experiment import load_experiment
from journey.pipeline.images import read_images
from journey.pipeline.settings import Training

NAMES = ("mean", "deviation", "condition")


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Return settings with a pretrained pipeline, their workspace, and their latents."""
    root = tmp_path_factory.mktemp("encoded")
    miniatures.pipeline(root / "pipeline")
    miniatures.coco(root / "coco")
    model = LatentDiffusion(
        pretrained=str(root / "pipeline"),
        text_length=24,
        context_width=1024,
        block_out_channels=[8, 16],
        attention_heads=2,
    )
    settings = {"dataset": COCO(root=str(root / "coco"), size=32), "model": model}
    settings["training"] = Training(num_steps=2, batch_size=4, warmup_steps=1)
    store = Store(root / "store")
    workspace = Workspace(store, small_run().compute, small_run().tracking, "test")
    spec = experiment_of(settings, model, store).latents
    return settings, workspace, get(spec, workspace)


def experiment_of(settings, model, store):
    run = small_run(**{**settings, "model": model}, method={"caption": Caption()})
    return load_experiment(run, store)


@pytest.fixture
def folder(ours, tmp_path):
    """Return a folder with our latents in another order, among those of other images."""
    _, _, latents = ours
    ids = json.loads((train_folder(ours) / "texts.json").read_text())["ids"]
    order = np.random.default_rng(0).permutation(len(ids) + 3)
    names = [*ids, "x/1.jpg", "x/2.jpg", "x/3.jpg"]
    for name in NAMES:
        array = latents.array(f"{name}.npy")
        extended = np.concatenate([array, array[:3] + 1])
        np.save(tmp_path / f"{name}.npy", extended[order])
    (tmp_path / "ids.json").write_text(json.dumps([names[i] for i in order]))
    return tmp_path


def train_folder(ours):
    settings, workspace, _ = ours
    images = experiment_of(settings, settings["model"], workspace.store).images
    return get(images, workspace).path / "train"


def with_folder(ours, folder, **changes):
    settings, workspace, _ = ours
    model = replace(settings["model"], encoded=str(folder), **changes)
    return experiment_of(settings, model, workspace.store)


def test_arrays_of_others_are_used_in_the_order_of_the_images(ours, folder):
    _, workspace, latents = ours
    spec = with_folder(ours, folder).latents
    given = get(spec, workspace)
    for name in NAMES:
        np.testing.assert_array_equal(given.array(f"{name}.npy"), latents.array(f"{name}.npy"))
    assert (given.path / "vae/config.json").is_file()
    get(with_folder(ours, folder).checkpoint(0), workspace)

    # Without states, captions are encoded; without deviations, latents are not sampled.
    (folder / "condition.npy").unlink()
    (folder / "deviation.npy").unlink()
    ids = json.loads((folder / "ids.json").read_text())
    (folder / "ids.json").unlink()
    (folder / "ids.txt").write_text("\n".join(ids) + "\n")
    fewer = with_folder(ours, folder, samples_latents=False)
    array = get(fewer.latents, workspace)
    np.testing.assert_array_equal(array.array("mean.npy"), latents.array("mean.npy"))
    np.testing.assert_array_equal(array.array("condition.npy"), latents.array("condition.npy"))
    get(fewer.checkpoint(0), workspace)


def test_cache_keys_contain_the_bytes_and_not_the_path(ours, folder, tmp_path):
    settings, workspace, _ = ours
    encoded_here = experiment_of(settings, settings["model"], workspace.store).latents
    shutil.copytree(folder, tmp_path / "copy")
    keys = [cache_key(with_folder(ours, path).latents) for path in (folder, tmp_path / "copy")]
    assert keys[0] == keys[1] != cache_key(encoded_here)
    np.save(folder / "mean.npy", np.load(folder / "mean.npy") + 1)
    assert cache_key(with_folder(ours, folder).latents) != keys[0]


def saved(name, change):
    """Return a function of a folder that changes one of its arrays."""

    def save(folder):
        np.save(folder / f"{name}.npy", change(np.load(folder / f"{name}.npy")))

    return save


def with_ids(change, name="ids.json"):
    def save(folder):
        ids = json.loads((folder / "ids.json").read_text())
        (folder / name).write_text(json.dumps(change(ids)))

    return save


def without(name):
    return lambda folder: (folder / name).unlink()


def cut(folder):
    content = (folder / "mean.npy").read_bytes()
    (folder / "mean.npy").write_bytes(content[:-4])


REFUSED = {
    "no mean": (without("mean.npy"), "must be a folder with mean.npy, and ids.json or ids.txt"),
    "no ids": (without("ids.json"), r"must be a folder with ids\.json or ids\.txt, one of them"),
    "two ids": (with_ids(list, "ids.txt"), r"must be a folder with ids\.json or ids\.txt, one of"),
    "an id twice": (with_ids(lambda ids: [ids[1], *ids[1:]]), "an id is there twice"),
    "an image missing": (
        with_ids(lambda ids: [f"{name}!" if "train" in name else name for name in ids]),
        r"12 of 12 training images are missing, such as train2017/\d+\.jpg; it has ids such as",
    ),
    "few ids": (with_ids(lambda ids: ids[1:]), r"=mean\.npy of 15 rows: must be of 14, as ids"),
    "numbers": (with_ids(lambda ids: list(range(15))), "must be a list of texts, the ids of image"),
    "flat": (saved("mean", lambda x: x[:, 0]), r"of shape \(15, 4, 4\) and type float32: must be"),
    "integers": (saved("mean", lambda x: x.astype(int)), "type int64: must be floating point with"),
    "cut": (cut, r"mean\.npy: cannot be read"),
    "objects": (saved("mean", lambda x: np.array([{}])), r"mean\.npy: cannot be read"),
    "another size": (
        saved("mean", lambda x: x[..., :2]), r"deviation\.npy of shape .*: must be of shape \(15,",
    ),
    "other texts": (
        saved("condition", lambda x: x[:, :, :3]),
        r"with condition\.npy of shape \(15, 5, 3, 1024\): must be of shape \[n, 5, 24, 1024\]",
    ),
    "few captions": (saved("condition", lambda x: x[:, :2]), r"must be of shape \[n, 5, 24, 1024"),
    "no deviation": (
        without("deviation.npy"), r"model\.samples_latents=true: must be false without deviation",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_arrays_that_do_not_fit_are_refused_in_one_line(case, ours, folder):
    change, message = REFUSED[case]
    change(folder)
    train = read_images(train_folder(ours))
    model = replace(ours[0]["model"], encoded=str(folder))
    with pytest.raises(ConfigError, match=message) as caught:
        model.check_data("model", train)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("mean", np.nan), ("deviation", -1.0)])
def test_a_number_that_cannot_be_is_refused_with_its_row(name, value, ours, folder):
    array = np.load(folder / f"{name}.npy")
    array[5, 0, 0, 0] = value
    np.save(folder / f"{name}.npy", array)
    ids = json.loads((folder / "ids.json").read_text())
    blocks = read_encoded("model.encoded", folder, ids).blocks(name)
    with pytest.raises(ConfigError, match=rf"{name}\.npy: row 5 must be finite"):
        list(blocks)


def test_a_folder_needs_the_pipeline_of_its_encoders(tmp_path):
    with pytest.raises(
        ConfigError, match=r"model\.encoded=.*: must be left out without model\.pre"
    ):
        LatentDiffusion(encoded=str(tmp_path)).check("model")
