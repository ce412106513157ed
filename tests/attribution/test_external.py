"""Scores that another program made."""

import dataclasses
import gc
import io
import pickle

import numpy as np
import pytest
from conftest import TINY, command, journey_trak, small_run

from journey.attribution.external import External, score_axes
from journey.data.images import train_images
from journey.engine.checks import ConfigError
from journey.engine.spec import cache_key
from journey.engine.workspace import get
from journey.evaluation.rows import select
from journey.experiment import load_experiment
from journey.pipeline.settings import Target, Training

QUICK = Training(num_steps=20, batch_size=16, warmup_steps=4)


@pytest.fixture
def of(workspace):
    return load_experiment(small_run(training=QUICK), workspace.store)


@pytest.fixture
def names(of, workspace):
    """What the axes are called: 2 steps, 3 queries, 60 training images."""
    return score_axes(of.trajectories, train_images(of.images, workspace))


def judged(workspace, **method):
    run = small_run(training=QUICK, method=method)
    of = load_experiment(run, workspace.store)
    for name, one in method.items():
        one.check_data(f"method.{name}", of.trajectories, train_images(of.images, workspace))
    return run.evaluation.evaluate(of.evaluation(run.evaluation, run.all_methods), workspace)[
        "rows"
    ]


def lds(rows, method):
    return [
        {k: v for k, v in row.items() if k != "method"}
        for row in select(rows, quantity="lds", method=method)
    ]


@pytest.mark.parametrize("at", [Target.step, Target.final_sample])
def test_exported_scores_are_judged_as_the_method_that_made_them(
    of, names, workspace, tmp_path, at
):
    ours = journey_trak(damping=[1.0], target=at)
    scores = get(of.scores(ours), workspace).array("scores.npy")[0]  # [S or 1, Q, N]
    whole = {"scores": scores, **names} if at is Target.step else {"scores": scores[0], **names}
    if at is Target.final_sample:
        del whole["steps"]
    np.savez(tmp_path / "same.npz", **whole)
    order = np.random.default_rng(0).permutation(60)
    permuted = {
        "scores": whole["scores"][..., ::-1, :][..., order],
        "queries": names["queries"][::-1],
    }
    permuted["train"] = np.array(names["train"])[order]
    if at is Target.step:
        permuted |= {
            "scores": permuted["scores"][::-1].astype(np.float64),
            "steps": names["steps"][::-1],
        }
    np.savez_compressed(tmp_path / "permuted.npz", **permuted)
    np.savez(tmp_path / "opposite.npz", **{**whole, "scores": -whole["scores"]})
    external = {
        name: External(str(tmp_path / f"{name}.npz")) for name in ("same", "permuted", "opposite")
    }
    rows = judged(workspace, ours=ours, **external)
    assert lds(rows, "same") == lds(rows, "permuted") == lds(rows, "ours")
    assert lds(rows, "opposite") != lds(rows, "ours")


def test_an_exported_candidate_is_that_candidate_read_linearly(of, names, workspace, tmp_path):
    ours = journey_trak(damping=[0.1, 10.0])
    np.savez(
        tmp_path / "second.npz",
        scores=get(of.scores(ours), workspace).array("scores.npy")[1],
        **names,
    )
    rows = judged(
        workspace, second=External(str(tmp_path / "second.npz")), alone=journey_trak(damping=[10.0])
    )
    linear = [select(lds(rows, name), score_transform="linear") for name in ("second", "alone")]
    assert linear[0] == linear[1]


def test_the_address_follows_the_contents_of_the_file_and_not_its_place(of, names, tmp_path):
    scores = np.ones((2, 4, 60))
    for name, factor in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "mine.npz", scores=factor * scores, **names)
    digests = [External(str(tmp_path / name / "mine.npz")).content_hash() for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
    a, c = (cache_key(of.scores(External(str(tmp_path / name / "mine.npz")))) for name in "ac")
    assert a != c


def test_a_file_written_anew_is_read_anew(of, names, workspace, tmp_path):
    path = tmp_path / "mine.npz"
    for value in (1.0, 2.0):
        np.savez(path, scores=np.full((2, 4, 60), value), **names)
        scores = get(of.scores(External(str(path))), workspace).array("scores.npy")
        assert (scores == value).all()


SCORES = np.random.default_rng(0).standard_normal((2, 4, 60))


def wrong(**changes):
    """A file's arrays with some changed; None: left out."""
    return lambda names: {
        k: v for k, v in {"scores": SCORES, **names, **changes}.items() if v is not None
    }


def renamed(axis, change):
    return lambda names: {"scores": SCORES, **names, axis: change(list(names[axis]))}


def fewer(names):
    return {"scores": SCORES[..., 1:], **names, "train": names["train"][1:]}


NOT_FINITE = SCORES.copy()
NOT_FINITE[1, 2, 3] = np.nan
REFUSED = {
    "an image missing": (
        renamed("train", lambda ids: [*ids[:-1], ids[0]]),
        r"train: 60 expected, 60 found: 1 missing.*1 twice",
    ),
    "an image unknown": (
        renamed("train", lambda ids: ["x", *ids[1:]]),
        r"train: .*1 missing, such as .*; 1 unknown, such as x",
    ),
    "fewer images": (fewer, r"train: 60 expected, 59 found: 1 missing"),
    "other journeys": (
        renamed("queries", lambda _: list("abcd")),
        r"queries: 4 expected.*4 missing.*4 unknown",
    ),
    "a query twice": (
        renamed("queries", lambda ids: [ids[0], *ids[:3]]),
        r"queries: 4 expected.*1 missing.*1 twice",
    ),
    "another step": (
        renamed("steps", lambda _: [600, 500]),
        r"steps: .*1 missing, such as 300; 1 unknown, such as 500",
    ),
    "images by row": (
        wrong(train=np.arange(60)),
        r"train: 60 expected, 60 found: 60 missing.*60 unknown",
    ),
    "another shape": (
        wrong(scores=SCORES[:, :2]),
        r"with scores \(2, 2, 60\): must be as its axes say: \(2, 4, 60\)",
    ),
    "another order": (
        wrong(scores=SCORES.transpose(0, 2, 1)),
        r"with scores \(2, 60, 4\): must be as its axes say",
    ),
    "candidates": (
        wrong(scores=SCORES[None]),
        r"with scores \(1, 2, 4, 60\): must be as its axes say",
    ),
    "NaN": (wrong(scores=NOT_FINITE), "must be finite numbers throughout"),
    "infinity": (wrong(scores=np.full_like(SCORES, np.inf)), "must be finite numbers throughout"),
    "texts": (wrong(scores=SCORES.astype(str)), "must be finite numbers throughout"),
    "complex numbers": (wrong(scores=SCORES + 1j), "must be finite"),
    "no scores": (
        wrong(scores=None),
        r"with queries, steps, train: must be a file with scores, steps, queries, train",
    ),
    "no ids": (wrong(train=None), r"with queries, scores, steps: must be a file with"),
    "something else": (
        wrong(extra=np.zeros(3)),
        r"with extra, queries, scores, steps, train: must be a file with",
    ),
    "a number for steps": (wrong(steps=np.array(600)), "method.mine.path="),
    "two columns of ids": (wrong(train=np.array([["a", "b"]] * 60)), "method.mine.path="),
    "pickled names": (
        wrong(train=np.array([{}] * 60, dtype=object)),
        r"no \.npz file of numbers and texts \(.*allow_pickle",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_scores_that_do_not_fit_are_refused_in_a_line(case, of, names, workspace, tmp_path):
    make, message = REFUSED[case]
    np.savez(tmp_path / "mine.npz", **make(names))
    images = train_images(of.images, workspace)

    def check(method):
        method.check("method.mine")
        method.check_data("method.mine", of.trajectories, images)

    with pytest.raises(ConfigError, match=message) as caught:
        check(External(str(tmp_path / "mine.npz")))
    assert str(caught.value).startswith("method.mine.path=")
    assert "\n" not in str(caught.value)


def bytes_of(save, *values, **named) -> bytes:
    file = io.BytesIO()
    save(file, *values, **named)
    return file.getvalue()


FILES = {
    "text": b"scores: 1 2 3\n",
    "empty": b"",
    "npy": bytes_of(np.save, SCORES),
    "pickle": pickle.dumps({"scores": SCORES}),
    "cut": bytes_of(np.savez, scores=SCORES)[:1000],
    "zip of texts": b"PK\x05\x06" + bytes(18),
}


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # NumPy leaves a broken zip file open
@pytest.mark.parametrize("case", FILES)
def test_what_is_no_npz_is_refused_in_a_line(case, tmp_path):
    (tmp_path / "mine.npz").write_bytes(FILES[case])
    with pytest.raises(ConfigError) as caught:
        External(str(tmp_path / "mine.npz")).check("method.mine")
    text = str(caught.value)
    del caught
    gc.collect()
    assert text.startswith(f"method.mine.path={tmp_path / 'mine.npz'}")
    assert "\n" not in text


@pytest.mark.parametrize("path", ["nowhere.npz", "."])
def test_no_file_is_refused(path, tmp_path):
    with pytest.raises(ConfigError, match=r"method\.mine\.path=.*: must be a file"):
        External(str(tmp_path / path)).check("method.mine")


def test_the_command_refuses_before_anything_is_made(tmp_path):
    names = {"steps": [600, 200], "queries": ["a", "b", "c"], "train": [str(i) for i in range(60)]}
    np.savez(tmp_path / "mine.npz", scores=SCORES[:, :3], **names)
    done = command(tmp_path, *TINY, "method=[external]", "method.external.path=mine.npz")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: method.external.path=mine.npz: queries: 4 expected, 3 found"
    )
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "artifacts").exists()


def test_it_says_what_it_is():
    assert External("some/where/mine.v2.npz").label == "external-mine.v2"
    assert [f.name for f in dataclasses.fields(External)] == ["in_units_of_output", "path"]
