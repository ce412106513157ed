"""Retrained models of others, evaluated in place of ours."""

import csv
import io
import itertools
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, journey_trak, refused, small_run
from diffusers import DDPMPipeline, DDPMScheduler

from journey.diffusion.bank import check_bank, read_bank
from journey.diffusion.ddpm import DDPM
from journey.engine.checks import ConfigError
from journey.engine.spec import cache_key
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.experiment import load_experiment
from journey.pipeline.settings import Retraining, Training
from journey.pipeline.subsets import subset_mask

QUICK = Training(num_steps=4, batch_size=16, warmup_steps=1)
OURS = Retraining(num_subsets=8, num_seeds=2, num_samples=4)
SUBSETS = list(itertools.combinations(range(6), 3))[:8]
IDS = [f"image{i}" for i in range(6)]
METHOD = {"ours": journey_trak(num_samples=2, damping=[1.0])}


def run_with(**retraining):
    settings = replace(OURS, **retraining)
    return small_run(training=QUICK, retraining=settings, method=METHOD)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> tuple[Workspace, dict]:
    """Return the workspace and the result of an evaluation by models that are trained here."""
    run, store = run_with(), Store(tmp_path_factory.mktemp("bank") / "store")
    workspace = Workspace(store, run.compute, run.tracking, "test")
    return workspace, result_of(run, workspace)


def result_of(run, workspace) -> dict:
    spec = load_experiment(run, workspace.store).evaluation(run.evaluation, run.method)
    return json.loads((get(spec, workspace).path / "result.json").read_text())


def masks_and_models(workspace) -> list[tuple[np.ndarray, int, Path]]:
    """Return mask, seed and folder of each retrained model of the evaluation."""
    run = run_with()
    experiment = load_experiment(run, workspace.store)
    labels = np.load(get(experiment.images, workspace).path / "train/labels.npy")
    models = []
    for measures in experiment.subset_outputs():
        for measure in measures:
            model = measure.checkpoint
            folder = get(model, workspace).path
            models.append((subset_mask(labels, model.subset), model.training_seed, folder))
    return models


def write_csv(path: Path, rows: list[dict]) -> None:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(file.getvalue())


def test_a_bank_of_our_own_models_gives_the_result_of_our_own_models(evaluated, tmp_path):
    workspace, ours = evaluated
    rows = []
    for number, (mask, seed, folder) in enumerate(masks_and_models(workspace)):
        np.save(tmp_path / f"mask{number // 2}.npy", mask)
        shutil.copytree(folder, tmp_path / f"model{number}")
        row = {"path": f"model{number}", "subset": f"mask{number // 2}.npy", "seed": seed}
        rows.append(row)
    write_csv(tmp_path / "bank.csv", rows)
    (tmp_path / "moved").mkdir()
    absolute = [{**row, "path": str(tmp_path / row["path"])} for row in rows]
    absolute = [{**row, "subset": str(tmp_path / row["subset"])} for row in absolute]
    (tmp_path / "moved/bank.json").write_text(json.dumps(absolute))

    run = run_with(bank=str(tmp_path / "bank.csv"), num_subsets=32, num_seeds=1)
    experiment = load_experiment(run, workspace.store)
    assert check_bank(experiment, workspace.store) == {}
    theirs = result_of(run, workspace)
    assert theirs == ours
    assert (theirs["num_subsets"], theirs["num_seeds"]) == (8, 2)

    # The cache keys contain the bytes of the files, and not their paths.
    def keys(name: str) -> list[str]:
        bank = load_experiment(run_with(bank=str(tmp_path / name)), workspace.store)
        return [cache_key(m.checkpoint) for of_subset in bank.subset_outputs() for m in of_subset]

    before = keys("bank.csv")
    assert keys("moved/bank.json") == before
    assert len(set(before)) == 16
    torch.manual_seed(1)
    DDPM(block_out_channels=[8, 16]).build((1, 8, 8)).save_pretrained(tmp_path / "model3")
    changed = keys("bank.csv")
    assert [a == b for a, b in zip(before, changed, strict=True)] == [i != 3 for i in range(16)]


def test_a_bank_in_the_layout_of_d_trak(tmp_path, workspace):
    """64 subsets × 3 seeds: pipelines, and pickled lists of rows of the data set of the hub."""
    images = load_experiment(run_with(), workspace.store).images
    labels = np.load(get(images, workspace).path / "train/labels.npy")
    random = np.random.default_rng(0)
    numbers = random.permutation(50_000)[: len(labels)].tolist()
    (tmp_path / "idx-train.pkl").write_bytes(pickle.dumps(numbers))
    network, rows, masks = run_with().model.build((1, 8, 8)), [], []
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    (tmp_path / "lds-val").mkdir()
    for subset in range(64):
        chosen = random.permutation(len(labels))[: len(labels) // 2]
        masks.append(np.isin(np.arange(len(labels)), chosen))
        path = tmp_path / f"lds-val/sub-idx-{subset}.pkl"
        path.write_bytes(pickle.dumps([numbers[i] for i in chosen]))
        for seed in (0, 1, 2):
            folder = tmp_path / f"ddpm-sub-{subset}-{seed}"
            folder.symlink_to(tmp_path / "ddpm")
            rows.append({"path": folder.name, "subset": f"lds-val/{path.name}", "seed": seed})
    write_csv(tmp_path / "bank.csv", rows)
    run = run_with(bank=str(tmp_path / "bank.csv"), bank_numbers=str(tmp_path / "idx-train.pkl"))
    experiment = load_experiment(run, workspace.store)
    assert (experiment.retraining.num_subsets, experiment.retraining.num_seeds) == (64, 3)
    assert check_bank(experiment, workspace.store) == {}
    outputs = experiment.subset_outputs()
    assert [[m.checkpoint.training_seed for m in measures] for measures in outputs] == [
        [0, 1, 2]
    ] * 64
    found = [subset_mask(labels, measures[0].checkpoint.subset) for measures in outputs]
    np.testing.assert_array_equal(found, masks)
    model = get(outputs[5][1].checkpoint, workspace)
    stored = run.model.load(model.path, torch.device("cpu")).state_dict()
    assert all(torch.equal(stored[name], value) for name, value in network.state_dict().items())


@pytest.fixture
def bank(tmp_path):
    """Return a function that reads a bank on six images with some files, and some cells changed."""
    (tmp_path / "w").write_bytes(b"weights")
    rows = []
    for number, subset in enumerate(SUBSETS):
        row = {"path": "w", "subset": f"{number}.json", "seed": 0}
        (tmp_path / row["subset"]).write_text(json.dumps(subset))
        rows.append(row)

    def read(first: dict | None = None, files: dict | None = None, numbers: str = ""):
        for name, content in (files or {}).items():
            (tmp_path / name).write_bytes(content)
        if "bank.csv" not in (files or {}):
            write_csv(tmp_path / "bank.csv", [{**rows[0], **(first or {})}, *rows[1:]])
        settings = Retraining(bank=str(tmp_path / "bank.csv"), bank_numbers=numbers)
        return read_bank(settings, IDS)

    return read


def npy(values) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values), allow_pickle=True)
    return file.getvalue()


SAME = {
    "ids": ("s.json", json.dumps(["image4", "image1"]).encode()),
    "numbers": ("s.npy", npy([4, 1])),
    "a mask": ("s.npy", npy([False, True, False, False, True, False])),
    "a pickle": ("s.pkl", pickle.dumps([4, 1])),
}


@pytest.mark.parametrize("case", SAME)
def test_a_subset_is_a_mask_or_a_list_of_numbers_or_ids(case, bank):
    name, content = SAME[case]
    models = bank({"subset": name}, {name: content})
    mask = subset_mask(np.zeros(6, int), models[0][0].subset)
    assert mask.tolist() == [False, True, False, False, True, False]
    assert len(models) == 8


REFUSED = {
    "no weights": ({"path": "nowhere"}, {}, r"bank\.csv:2: path=.*nowhere: must be a file of"),
    "no subset": ({"subset": "x.npy"}, {}, r"bank\.csv:2: subset=.*must be a file \.npy"),
    "a text file": ({"subset": "w"}, {}, r"subset=.*w: must be a file \.npy, \.json or \.pkl"),
    "a seed": ({"seed": "-1"}, {}, r"bank\.csv:2: seed=-1: must be a whole number"),
    "a column": ({"sede": "1"}, {}, r"bank\.csv:2: column=sede: must be one of path, subset, s"),
    "an image twice": ({}, {"0.json": b"[1, 2, 1]"}, r"0\.json: names an image twice"),
    "another image": ({}, {"0.json": b"[1, 9]"}, r"1 numbers of no training image, such as 9; ret"),
    "another id": ({}, {"0.json": b'["x"]'}, r"1 ids of no training image, such as x$"),
    "all images": ({}, {"0.json": b"[0,1,2,3,4,5]"}, r"=6 images: must be 1…5 of the 6 images"),
    "none": ({}, {"0.json": b"[]"}, r"cannot be read \(it is not a list"),
    "mixed": ({}, {"0.json": b'[1, "a"]'}, r"cannot be read \(it is not a list"),
    "fractions": ({}, {"0.json": b"[1.0]"}, r"cannot be read \(it is a list of float"),
    "a huge number": ({}, {"0.json": b"[1" + b"0" * 40 + b"]"}, r"0\.json.*: must be a list of w"),
    "not JSON": ({}, {"0.json": b"[1"}, r"0\.json: cannot be read"),
    "a short mask": ({"subset": "s.npy"}, {"s.npy": npy([True, False])}, "=a mask of 2: must be"),
    "a matrix": ({"subset": "s.npy"}, {"s.npy": npy(np.eye(6) > 0)}, r"of shape \(6, 6\) and"),
    "objects": ({"subset": "s.npy"}, {"s.npy": npy([{}, {}])}, r"s\.npy: cannot be read"),
    "a mask as integers": ({"subset": "s.npy"}, {"s.npy": npy([0, 1, 1, 0, 0, 1])}, "twice"),
    "cut": ({"subset": "s.npy"}, {"s.npy": npy([1, 2])[:-3]}, r"s\.npy: cannot be read"),
    "code": ({"subset": "s.pkl"}, {"s.pkl": pickle.dumps([print])}, r"builtins\.print, which is"),
    "a cut pickle": ({"subset": "s.pkl"}, {"s.pkl": b"\x80\x04"}, r"s\.pkl: cannot be read"),
    "the same model": ({"subset": "1.json"}, {}, r"bank\.csv:3: seed=0: the same subset and"),
    "another count": (
        {"seed": 0},
        {"bank.csv": b"path,subset,seed\nw,0.json,0\nw,0.json,1\n"
         + b"".join(b"w,%d.json,0\n" % i for i in range(1, 8))},
        r"bank\.csv:4: its subset has 1 models, that of .*bank\.csv:2 has 2; every subset must",
    ),
    "few": ({}, {"bank.csv": b"path,subset,seed\nw,0.json,0\n"}, "8 different subsets or more"),
    "no rows": ({}, {"bank.csv": b"path,subset,seed\n"}, r"bank\.csv: lists no models"),
    "no column": ({}, {"bank.csv": b"path,seed\nw,0\n"}, r"bank\.csv:2: has no subset"),
    "a short row": ({}, {"bank.csv": b"path,subset,seed\nw,0\n"}, r"csv:2: has 2 values, not 3"),
    "not UTF-8": ({}, {"bank.csv": b"path\n\xff\n"}, r"bank\.csv:2: is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_bank_that_is_not_understood_is_refused_in_one_line(case, bank):
    first, files, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message) as caught:
        bank(first, files)
    assert "\n" not in str(caught.value)


def test_numbers_of_the_training_images(bank, tmp_path):
    files = {"numbers.pkl": pickle.dumps([10, 9, 8, 7, 6, 5])}
    for number, subset in enumerate(SUBSETS):
        files[f"{number}.json"] = json.dumps([10 - row for row in subset]).encode()
    models = bank({}, files, str(tmp_path / "numbers.pkl"))
    for (model,), subset in zip(models, SUBSETS, strict=True):
        mask = subset_mask(np.zeros(6, int), model.subset)
        assert tuple(np.flatnonzero(mask)) == subset
    with pytest.raises(ConfigError, match=r"bank_numbers=.*with 2 of type int64: must be 6 dist"):
        bank({}, {"numbers.pkl": pickle.dumps([1, 2])}, str(tmp_path / "numbers.pkl"))


@pytest.mark.parametrize(
    "content", [b"{}", b"[1]", b"[", b'[{"path": 1, "subset": "a", "seed": 0}]']
)
def test_a_json_list_is_checked_as_well(content, tmp_path):
    (tmp_path / "bank.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"bank\.json") as caught:
        read_bank(Retraining(bank=str(tmp_path / "bank.json")), IDS)
    assert "\n" not in str(caught.value)


def test_the_command_refuses_other_networks_before_it_computes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    DDPM(block_out_channels=[8, 32]).build((1, 8, 8)).save_pretrained("wide")
    rows = []
    for i in range(8):
        Path(f"{i}.json").write_text(json.dumps([i, 20]))
        rows.append({"path": "wide", "subset": f"{i}.json", "seed": 0})
    write_csv(Path("bank.csv"), rows)
    text = refused(monkeypatch, *TINY, "retraining.bank=bank.csv")
    assert text.startswith("error: bank.csv:2: path=wide: its config differs")
    text = refused(monkeypatch, *TINY, "retraining.bank=bank.csv", "retraining.num_subsets=8")
    assert "retraining.num_subsets=8: must be left out: it has no effect unless bank=''" in text
    text = refused(monkeypatch, *TINY, "retraining.bank=none.csv")
    assert "retraining.bank=none.csv: must be a file" in text
    assert not Path("artifacts").exists()
