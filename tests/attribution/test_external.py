"""Scores that another program computed."""

import gc
import io
import itertools
import json
import pickle
import re

import numpy as np
import pytest
from conftest import TINY, journey_trak, refused, small_run

from journey.attribution.external import External, Features, score_axes
from journey.data.images import train_images
from journey.engine.checks import ConfigError
from journey.engine.spec import cache_key
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.evaluation.rows import in_order, select
from journey.experiment import load_experiment
from journey.pipeline.settings import Target, Training
from journey.report.write import with_run_info

QUICK = Training(num_steps=20, batch_size=16, warmup_steps=4)
RESULT = "result.json"
SCORES = np.random.default_rng(0).standard_normal((2, 4, 60))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    """Return the workspace of all tests, which share the models."""
    run, store = small_run(), Store(tmp_path_factory.mktemp("external") / "store")
    return Workspace(store, run.compute, run.tracking, "test")


@pytest.fixture
def experiment(workspace):
    return load_experiment(small_run(training=QUICK), workspace.store)


@pytest.fixture
def names(experiment, workspace):
    """The names along the axes: 2 steps, 4 queries, 60 training images."""
    return score_axes(experiment.trajectories, train_images(experiment.images, workspace))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mine.npz"


def check(method, experiment, workspace) -> None:
    method.check("method.mine")
    images = train_images(experiment.images, workspace)
    method.check_data("method.mine", experiment.trajectories, images)


def lds_rows(workspace, **methods):
    """Return, for each method, the rows of its LDS without its name."""
    run = small_run(training=QUICK, method=methods)
    experiment = load_experiment(run, workspace.store)
    for method in methods.values():
        check(method, experiment, workspace)
    spec = experiment.evaluation(run.evaluation, run.all_methods)
    result = run.evaluation.evaluate(spec, workspace)
    rows = {}
    for name in methods:
        rows[name] = select(result["rows"], quantity="lds", method=name)
        rows[name] = [{**row, "method": ""} for row in rows[name]]
    return rows


@pytest.mark.parametrize("target", [Target.step, Target.final_sample])
def test_exported_scores_are_evaluated_as_the_method_that_computed_them(
    experiment, names, workspace, tmp_path, target
):
    ours = journey_trak(damping=[1.0], target=target)
    scores = get(experiment.scores(ours), workspace).array("scores.npy")[0]  # [S or 1, Q, N]
    arrays = {"scores": scores, **names}
    if target is Target.final_sample:
        arrays["scores"] = scores[0]
        del arrays["steps"]
    order = np.random.default_rng(0).permutation(60)
    permuted = {
        "scores": arrays["scores"][..., ::-1, :][..., order],
        "queries": names["queries"][::-1],
        "train": np.array(names["train"])[order],
    }
    if target is Target.step:
        permuted["scores"] = permuted["scores"][::-1].astype(np.float64)
        permuted["steps"] = names["steps"][::-1]
    np.savez(tmp_path / "same.npz", **arrays)
    np.savez_compressed(tmp_path / "permuted.npz", **permuted)
    np.savez(tmp_path / "opposite.npz", **{**arrays, "scores": -arrays["scores"]})
    files = ("same", "permuted", "opposite")
    external = {name: External(str(tmp_path / f"{name}.npz")) for name in files}
    rows = lds_rows(workspace, ours=ours, **external)
    assert rows["same"] == rows["permuted"] == rows["ours"]
    assert rows["opposite"] != rows["ours"]


def test_an_exported_candidate_is_evaluated_as_that_candidate(experiment, names, workspace, path):
    scores = get(experiment.scores(journey_trak(damping=[0.1, 10.0])), workspace)
    np.savez(path, scores=scores.array("scores.npy")[1], **names)
    rows = lds_rows(workspace, second=External(str(path)), alone=journey_trak(damping=[10.0]))
    second, alone = (select(rows[name], score_transform="linear") for name in ("second", "alone"))
    assert second == alone


def test_the_cache_key_follows_the_content_of_the_file_and_not_its_place(
    experiment, names, tmp_path
):
    methods = []
    for name, factor in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "mine.npz", scores=factor * np.ones((2, 4, 60)), **names)
        methods.append(External(str(tmp_path / name / "mine.npz")))
    a, b, c = (method.content_hash() for method in methods)
    assert a == b != c
    assert cache_key(experiment.scores(methods[0])) != cache_key(experiment.scores(methods[2]))
    assert External("some/where/mine.v2.npz").label == "external-mine.v2"


def test_a_changed_file_is_read_again(experiment, names, workspace, path):
    for value in (1.0, 2.0):
        np.savez(path, scores=np.full((2, 4, 60), value), **names)
        scores = get(experiment.scores(External(str(path))), workspace).array("scores.npy")
        assert (scores == value).all()


def changed(**arrays):
    """Return a function of the names that returns a file's arrays, some changed; None: left out."""

    def change(names):
        every = {"scores": SCORES, **names, **arrays}
        return {name: array for name, array in every.items() if array is not None}

    return change


def renamed(axis, change):
    return lambda names: {"scores": SCORES, **names, axis: change(list(names[axis]))}


NOT_FINITE = SCORES.copy()
NOT_FINITE[1, 2, 3] = np.nan
SHAPE, FILE = r"must be of the shape of its axes, \(2, 4, 60\)", "must be a file with scores, steps"
FINITE = "must be finite numbers throughout"
REFUSED = {
    "an image missing": (
        renamed("train", lambda ids: [*ids[:-1], ids[0]]),
        r"train: 60 expected, 60 found: 1 missing.*1 repeated",
    ),
    "an image unknown": (
        renamed("train", lambda ids: ["x", *ids[1:]]),
        r"train: .*1 missing, such as .*; 1 unknown, such as x",
    ),
    "fewer images": (
        lambda names: {"scores": SCORES[..., 1:], **names, "train": names["train"][1:]},
        r"train: 60 expected, 59 found: 1 missing",
    ),
    "other trajectories": (
        renamed("queries", lambda _: list("abcd")),
        r"queries: 4 expected.*4 missing.*4 unknown",
    ),
    "a query repeated": (
        renamed("queries", lambda ids: [ids[0], *ids[:3]]),
        r"queries: 4 expected.*1 missing.*1 repeated",
    ),
    "another step": (
        renamed("steps", lambda _: [600, 500]),
        r"steps: .*1 missing, such as 300; 1 unknown, such as 500",
    ),
    "images by row": (
        changed(train=np.arange(60)),
        r"train: 60 expected, 60 found: 60 missing.*60 unknown",
    ),
    "another shape": (changed(scores=SCORES[:, :2]), r"with scores \(2, 2, 60\): " + SHAPE),
    "another order": (
        changed(scores=SCORES.transpose(0, 2, 1)),
        r"with scores \(2, 60, 4\): " + SHAPE,
    ),
    "candidates": (changed(scores=SCORES[None]), r"with scores \(1, 2, 4, 60\): " + SHAPE),
    "NaN": (changed(scores=NOT_FINITE), FINITE),
    "infinity": (changed(scores=np.full_like(SCORES, np.inf)), FINITE),
    "texts": (changed(scores=SCORES.astype(str)), FINITE),
    "complex numbers": (changed(scores=SCORES + 1j), FINITE),
    "no scores": (changed(scores=None), f"with queries, steps, train: {FILE}, queries, train"),
    "no ids": (changed(train=None), f"with queries, scores, steps: {FILE}"),
    "another array": (changed(extra=np.zeros(3)), f"with extra, queries, scores, steps.*: {FILE}"),
    "a number for steps": (changed(steps=np.array(600)), "one-dimensional steps"),
    "two columns of ids": (changed(train=np.array([["a", "b"]] * 60)), "one-dimensional train"),
    "pickled names": (
        changed(train=np.array([{}] * 60, dtype=object)),
        r"not an \.npz file of numbers and texts \(.*allow_pickle",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_scores_that_do_not_fit_are_refused_in_one_line(case, experiment, names, workspace, path):
    arrays, message = REFUSED[case]
    np.savez(path, **arrays(names))
    with pytest.raises(ConfigError, match=message) as caught:
        check(External(str(path)), experiment, workspace)
    assert str(caught.value).startswith("method.mine.path=")
    assert "\n" not in str(caught.value)


def saved(save, *values, **named) -> bytes:
    file = io.BytesIO()
    save(file, *values, **named)
    return file.getvalue()


FILES = {
    "text": b"scores: 1 2 3\n",
    "empty": b"",
    "npy": saved(np.save, SCORES),
    "pickle": pickle.dumps({"scores": SCORES}),
    "cut": saved(np.savez, scores=SCORES)[:1000],
    "zip of texts": b"PK\x05\x06" + bytes(18),
}


# NumPy leaves a broken zip file open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_npz_is_refused_in_one_line(case, path):
    path.write_bytes(FILES[case])
    with pytest.raises(ConfigError) as caught:
        External(str(path)).check("method.mine")
    text = str(caught.value)
    del caught
    gc.collect()
    assert text.startswith(f"method.mine.path={path}")
    assert "\n" not in text


@pytest.mark.parametrize("name", ["nowhere.npz", "."])
def test_a_missing_file_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match=r"method\.mine\.path=.*: must be a file"):
        External(str(tmp_path / name)).check("method.mine")


def test_the_command_refuses_before_it_computes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"steps": [600, 200], "queries": ["a", "b", "c"], "train": [str(i) for i in range(60)]}
    np.savez("mine.npz", scores=SCORES[:, :3], **names)
    text = refused(monkeypatch, *TINY, "method=[external]", "method.external.path=mine.npz")
    message = "error: method.external.path=mine.npz: queries: 4 expected, 3 found"
    assert text.startswith(message)
    assert not (tmp_path / "artifacts").exists()


def test_the_order_of_methods_changes_no_number_of_a_cached_evaluation(
    experiment, names, workspace, tmp_path
):
    """The second run finds the result of the first; both show it in an order of their own."""
    methods = {}
    for seed, name in enumerate(("late", "early", "middle")):
        scores = np.random.default_rng(seed).standard_normal((2, 4, 60))
        np.savez(tmp_path / f"{name}.npz", scores=scores, **names)
        methods[name] = External(str(tmp_path / f"{name}.npz"))
    shown, keys = {}, set()
    for order in (["late", "early", "middle"], ["middle", "late", "early"]):
        run = small_run(training=QUICK, method={name: methods[name] for name in order})
        spec = load_experiment(run, workspace.store).evaluation(run.evaluation, run.all_methods)
        keys.add(cache_key(spec))
        result = with_run_info(run, json.loads((get(spec, workspace).path / RESULT).read_text()))
        assert [row["method"] for row in run.evaluation.headline(result)] == order
        assert list(result["shown"]) == list(result["chosen"]) == order
        pairs = {(row["method"], row["against"]) for row in result["rows"] if "against" in row}
        assert pairs == set(itertools.combinations(order, 2))
        shown[tuple(order)] = result["rows"]
    assert len(keys) == 1
    first, second = shown.values()
    assert in_order(second, ["late", "early", "middle"]) == first


def test_a_fixed_hyper_parameter_is_evaluated_alone_and_named_for_a_method_of_the_run(
    experiment, workspace
):
    run = small_run(training=QUICK, method={"ours": journey_trak(damping=[0.1, 10.0])})
    rows = {}
    for value in (0.1, 10.0):
        run.evaluation.candidates = {"ours": value}
        spec = experiment.evaluation(run.evaluation, run.method)
        result = run.evaluation.evaluate(spec, workspace)
        cells = result["chosen"]["ours"]["linear"]["step"]
        assert result["shown"]["ours"] == {"damping": value}
        assert {cell["damping"] for cell in cells} == {value}
        rows[value] = select(result["rows"], quantity="query_centred", method="ours")
        linear, shown = (select(rows[value], score_transform=s) for s in ("linear", "shown"))
        assert [row["value"] for row in linear] == [row["value"] for row in shown]
    assert rows[0.1] != rows[10.0]
    for candidates, message in (
        ({"our": 10.0}, "evaluation.candidates=our: must be among ours"),
        ({"ours": 3.0}, "evaluation.candidates.ours=3.0: must be one of 0.1, 10: damping of ours"),
    ):
        run.evaluation.candidates = candidates
        with pytest.raises(ConfigError, match=re.escape(message)):
            experiment.evaluation(run.evaluation, run.method)


TRAIN = np.random.default_rng(1).standard_normal((60, 5)).astype(np.float32)
AT_STEPS = np.random.default_rng(2).standard_normal((2, 4, 5)).astype(np.float32)


def features_in(directory, train=TRAIN, queries=AT_STEPS) -> Features:
    """Return the method of features that are saved as .npy (arrays) or .npz (dictionaries)."""
    paths = []
    for name, content in (("train", train), ("queries", queries)):
        if isinstance(content, dict):
            paths.append(str(directory / f"{name}.npz"))
            np.savez(paths[-1], **content)
        else:
            paths.append(str(directory / f"{name}.npy"))
            np.save(paths[-1], content)
    return Features(*paths)


def cosines(queries) -> np.ndarray:
    """Return the cosine of every query and training image, by a loop."""
    out = np.empty((*queries.shape[:-1], 60))
    for index in np.ndindex(out.shape):
        q, x = queries[index[:-1]].astype(float), TRAIN[index[-1]].astype(float)
        out[index] = q @ x / np.sqrt((q @ q) * (x @ x))
    return out


def test_features_are_compared_by_their_cosine_in_any_order_of_names(
    experiment, names, workspace, tmp_path
):
    order = np.random.default_rng(3).permutation(60)
    train = {"features": TRAIN[order].astype(np.float64), "train": np.array(names["train"])[order]}
    queries = {"features": AT_STEPS[::-1, ::-1]}
    queries |= {"steps": names["steps"][::-1], "queries": names["queries"][::-1]}
    last = {"features": AT_STEPS[0], "queries": names["queries"]}
    for folder, arrays, expected in (
        ("plain", (TRAIN, AT_STEPS), cosines(AT_STEPS)),
        ("named", (train, queries), cosines(AT_STEPS)),
        ("final", (train, AT_STEPS[0]), cosines(AT_STEPS[:1])),
        ("final named", (TRAIN, last), cosines(AT_STEPS[:1])),
    ):
        (tmp_path / folder).mkdir()
        method = features_in(tmp_path / folder, *arrays)
        check(method, experiment, workspace)
        scores = get(experiment.scores(method), workspace).array("scores.npy")
        np.testing.assert_allclose(scores[0], expected, atol=1e-6)
    rows = lds_rows(workspace, f=method, e=method)
    assert rows["f"] == rows["e"]


def test_the_cache_key_of_features_is_their_content(experiment, tmp_path):
    keys = []
    for folder, factor in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / folder).mkdir()
        keys.append(cache_key(experiment.scores(features_in(tmp_path / folder, factor * TRAIN))))
    assert keys[0] == keys[1] != keys[2]


ZERO = TRAIN.copy()
ZERO[7] = 0
REFUSED_FEATURES = {
    "an image too few": ({"train": TRAIN[1:]}, r"train=.*: train=59: must be 60, as many as"),
    "a query too few": ({"queries": AT_STEPS[:, :3]}, r"queries=.*: queries=3: must be 4"),
    "a step too few": ({"queries": AT_STEPS[:1]}, r"queries=.*: steps=1: must be 2"),
    "another width": ({"queries": AT_STEPS[..., :4]}, r"of width 4: must be of width 5, as train"),
    "one axis": ({"train": TRAIN[0]}, r"with features \(5,\): must be \[train, E\]$"),
    "three axes": ({"train": TRAIN[None]}, r"with features \(1, 60, 5\): must be \[train, E\]$"),
    "four axes": ({"queries": AT_STEPS[None]}, r"must be \[queries, E\] or \[steps, queries, E\]$"),
    "none": ({"train": TRAIN[:0]}, r"with features \(0, 5\): must be"),
    "NaN": ({"train": TRAIN * np.nan}, "must be finite numbers throughout"),
    "texts": ({"train": TRAIN.astype(str)}, "must be finite numbers throughout"),
    "zeros": ({"train": ZERO}, r"train\.npy: row=\[7\]: must be features that are not all zeros"),
    "no names": (
        {"train": {"features": TRAIN, "ids": ["a"]}},
        "with ids: must be a file with feat",
    ),
    "few names": ({"train": {"features": TRAIN, "train": ["a"]}}, r"train=\(1,\): must be \(60,\)"),
    "other names": (
        {"train": {"features": TRAIN, "train": [str(i) for i in range(60)]}},
        "train: 60 expected, 60 found: 60 missing.*60 unknown",
    ),
    "no features": ({"train": {"train": TRAIN}}, r"with features \(0,\): must be"),
    "pickled": ({"train": np.array([{}] * 60)}, "allow_pickle"),
}


@pytest.mark.parametrize("case", REFUSED_FEATURES)
def test_features_that_do_not_fit_are_refused_in_one_line(case, experiment, workspace, tmp_path):
    arrays, message = REFUSED_FEATURES[case]
    with pytest.raises(ConfigError, match=message) as caught:
        check(features_in(tmp_path, **arrays), experiment, workspace)
    assert str(caught.value).startswith("method.mine.")
    assert "\n" not in str(caught.value)
