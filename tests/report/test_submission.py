"""Submissions: the numbers of the evaluation of a run, and the committed leaderboard."""

import io
import json
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import journey_trak, refused, small_run

from journey import __main__ as entry
from journey.engine.files import checksum
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.evaluation.lds.datamodeling import PRIMARY
from journey.evaluation.rows import select
from journey.experiment import load_experiment
from journey.pipeline.settings import Retraining, Training
from journey.report.export import write_bundle
from journey.report.submission import HELD_OUT, PUBLIC, Card, read_benchmark

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
BUNDLE = EXPERIMENTS / "methods/methods-bundle.tar.gz"
OUTPUTS = EXPERIMENTS / "methods/methods-held-out.tar.gz"
PUBLISHED = json.loads((EXPERIMENTS / "methods/bundle.json").read_text())
CARD = "{method: pixel, paper: cosine of pixels, who: somebody, in_units_of_output: false}"


@pytest.fixture(scope="module")
def benchmark():
    return read_benchmark(BUNDLE, OUTPUTS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a directory with the committed scores of pixels and a card, and the array."""
    directory = tmp_path_factory.mktemp("submission")
    member = f"methods-bundle/{PUBLISHED['cache_keys']['scores']['pixel']}/scores.npy"
    with tarfile.open(BUNDLE) as archive:
        scores = np.load(io.BytesIO(archive.extractfile(member).read()))[0]
        axes = json.load(archive.extractfile("methods-bundle/axes.json"))
    np.savez(directory / "mine.npz", scores=scores[::-1], **axes | {"steps": axes["steps"][::-1]})
    (directory / "card.yaml").write_text(CARD)
    return directory, scores


def test_all_subsets_together_give_the_numbers_of_the_run(benchmark, files):
    outputs = {"all": [*benchmark.outputs[PUBLIC], *benchmark.outputs[HELD_OUT]]}
    whole = replace(benchmark, outputs=outputs)
    rows = whole.rows(files[1], Card("pixel", in_units_of_output=False), "all")
    for quantity in ("query_centred", "lds", "query_centred_ceiling", "ceiling"):
        ours = select(rows, quantity=quantity)
        methods = {row["method"] for row in ours}
        expected = [
            row
            for row in select(PUBLISHED["rows"], quantity=quantity)
            if row["method"] in methods and row.get("score_transform", "linear") == "linear"
        ]
        key = ("method", "target", "step")
        ours, expected = (
            sorted(rows, key=lambda row: [str(row.get(name)) for name in key])
            for rows in (ours, expected)
        )
        assert len(ours) == len(expected) >= 10
        for end in ("value", "low", "high"):
            values = [[row[end] for row in rows] for rows in (ours, expected)]
            assert values[0] == pytest.approx(values[1])


def test_the_command_reproduces_a_committed_submission(files, monkeypatch, capsys):
    directory, _ = files
    monkeypatch.chdir(directory)
    words = ["submit", str(BUNDLE), "mine.npz", "card.yaml", str(OUTPUTS)]
    monkeypatch.setattr(sys, "argv", ["journey", *words])
    entry.main()
    assert "held_out: query-centred LDS × 100" in capsys.readouterr().out
    written = json.loads((directory / "methods-pixel.json").read_text())
    committed = json.loads((EXPERIMENTS / "submissions/methods-pixel.json").read_text())
    for key in ("scores_sha256", "bundle_sha256", "held_out_sha256", "num_subsets"):
        assert written[key] == committed[key], key
    for part in (PUBLIC, HELD_OUT):
        rows = [entry["rows"][part] for entry in (written, committed)]
        assert [row["value"] for row in rows[0]] == pytest.approx([r["value"] for r in rows[1]])
    assert "methods-pixel.json: must be moved away" in refused(monkeypatch, *words)


def test_the_leaderboard_is_that_of_the_submissions(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import leaderboard

    text = (EXPERIMENTS / "LEADERBOARD.md").read_text()
    assert text == leaderboard.table(), "python experiments/leaderboard.py"
    sys.modules.pop("leaderboard")


def with_member(source: Path, path: Path, name: str, content: bytes) -> str:
    """Return the path of a copy of an archive with the content of one member replaced."""
    with tarfile.open(source) as archive, tarfile.open(path, "w:gz", compresslevel=1) as changed:
        for member in archive:
            if member.isfile():
                raw = archive.extractfile(member).read()
                raw = content if member.name.endswith(name) else raw
                member.size = len(raw)
                changed.addfile(member, io.BytesIO(raw))
    return str(path)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("{method: a, who: b}", "paper=: must be a line of text"),
        ("{method: a/b, paper: c, who: b}", "method=a/b: must be 1 to 100 letters"),
        ("{method: a, paper: c, who: b, colour: red}", "must be a map of method, paper"),
        ("{method: a, paper: c, who: 3}", "who=3: must be a text"),
        ("{method: a, paper: c, who: b, settings: {x: [1]}}", "must be a map of texts and numbers"),
        ("!!python/object/apply:os.mkdir [ran]", "not YAML"),
        ("- a", "must be a map of"),
    ],
)
def test_a_card_is_refused_by_field(files, tmp_path, monkeypatch, card, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "card.yaml").write_text(card)
    text = refused(monkeypatch, "submit", str(BUNDLE), str(files[0] / "mine.npz"), "card.yaml")
    assert message in text
    assert [path.name for path in tmp_path.iterdir()] == ["card.yaml"]


def test_files_that_do_not_belong_together_are_refused(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory, scores = files
    mine, card = str(directory / "mine.npz"), str(directory / "card.yaml")
    bundle = str(BUNDLE)
    text = refused(monkeypatch, "submit", bundle, mine, card, bundle)
    assert text.startswith(f"error: held_out={bundle}=")
    assert "must be the file of SHA-256" in text
    assert "not a benchmark bundle" in refused(monkeypatch, "submit", mine, mine, card)
    (tmp_path / "half.tar.gz").write_bytes(BUNDLE.read_bytes()[:100_000])
    assert "not a benchmark bundle" in refused(monkeypatch, "submit", "half.tar.gz", mine, card)
    assert "must be bundle.tar.gz scores.npz" in refused(monkeypatch, "submit", bundle)
    raw = io.BytesIO()
    np.save(raw, np.zeros((2, 8, 23)))
    changed = with_member(BUNDLE, tmp_path / "changed.tar.gz", "/outputs.npy", raw.getvalue())
    assert "float64 (2, 8, 24), all finite" in refused(monkeypatch, "submit", changed, mine, card)
    np.savez("few.npz", scores=scores[0, :, 1:], queries=range(24), train=range(999))
    assert "scores=few.npz: queries: 24 expected" in refused(
        monkeypatch, "submit", bundle, "few.npz", card
    )


def test_the_outputs_of_the_second_half_of_the_subsets_are_in_another_archive(
    tmp_path, monkeypatch
):
    """Its checksum is in the bundle and in the metadata. Halves of four are for the test."""
    monkeypatch.setattr("journey.report.export.LEAST_SUBSETS", 4)
    run = small_run(
        training=Training(num_steps=4, batch_size=16, warmup_steps=1),
        retraining=Retraining(num_subsets=8, num_samples=2),
        method={"journey": journey_trak(num_samples=2, projection_dim=64)},
    )
    workspace = Workspace(Store(tmp_path / "store"), run.compute, run.tracking, "test")
    experiment = load_experiment(run, workspace.store)
    target = experiment.evaluation(run.evaluation, run.all_methods)
    get(target, workspace)
    write_bundle(run, experiment, workspace, tmp_path / "reports/small", "experiment=small")
    paths = [tmp_path / f"reports/small-{part}.tar.gz" for part in ("bundle", "held-out")]
    names = []
    for path in paths:
        with tarfile.open(path) as archive:
            names.append({n.split("/")[2] for n in archive.getnames() if "/outputs/" in n})
    protocol = run.evaluation.benchmark(target, workspace)
    first, second = protocol["outputs"][:4], protocol["outputs"][4:]
    assert names[1] == {by_seed[0] for by_seed in second}
    assert names[0] >= {by_seed[0] for by_seed in first}
    assert not names[0] & names[1]
    metadata = json.loads((tmp_path / "reports/small-croissant.json").read_text())
    hashes = {part["name"]: part.get("sha256") for part in metadata["distribution"]}
    assert [hashes[path.name] for path in paths] == list(map(checksum, paths))

    benchmark = read_benchmark(*paths)
    scores = get(experiment.scores(run.method["journey"]), workspace).array("scores.npy")
    rows = replace(benchmark, outputs={"all": [*first, *second]}).rows(scores[0], Card(), "all")
    fixed = replace(run.evaluation, candidates={"journey": 0.1})
    spec = experiment.evaluation(fixed, run.all_methods)
    expected = select(fixed.evaluate(spec, workspace)["rows"], method="journey", **PRIMARY)
    ours = select(rows, **PRIMARY)
    assert [row["value"] for row in ours] == pytest.approx([row["value"] for row in expected])
