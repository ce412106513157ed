"""Only what this program wrote is replaced or removed; everything else is left or refused."""

import errno
import hashlib
import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, small_run
from replacements_for_tests import (
    NEW,
    OLD,
    add_foreign,
    encoded,
    owned_in,
    report_in,
    tree,
    write,
)
from stages_for_tests import Toy, compute, in_a_process

from journey.attribution.external import External
from journey.cli import check_command_line
from journey.components import COMPONENTS
from journey.config import compose
from journey.config.run import Task
from journey.data.folder import Folder
from journey.diffusion.ddpm import DDPM
from journey.engine import files
from journey.engine.checks import ConfigError
from journey.engine.spec import cache_key
from journey.engine.store import Store, StoreError
from journey.experiment import check_machine
from journey.launch.jobs import log_path, write_log
from journey.report import export
from journey.report.directory import LIST, bundle_files, check_output


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """Leave out what only a loss of power would show."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


# ------------------------------------------------------------------------- what is replaced


def test_listed_files_are_replaced_and_all_others_stay(tmp_path):
    directory = tmp_path / "report"
    write(directory, OLD)
    foreign = add_foreign(directory, tmp_path / "elsewhere")
    outside = tree(tmp_path / "elsewhere")
    for contents in (NEW, OLD, NEW):
        write(directory, contents)
        assert report_in(directory) == encoded(contents) | foreign
    write(directory, {"preview.png": "p"}, keep=True)
    assert report_in(directory) == encoded(NEW | {"preview.png": "p"}) | foreign
    write(directory, NEW)
    assert report_in(directory) == encoded(NEW) | foreign
    assert tree(tmp_path / "elsewhere") == outside


def test_a_deleted_file_is_written_again_and_a_copied_report_is_one(tmp_path):
    write(tmp_path / "report", OLD)
    (tmp_path / "report" / "a.md").unlink()
    (tmp_path / "report" / "gone.pdf").unlink()
    shutil.copytree(tmp_path / "report", tmp_path / "copy")
    for name in ("report", "copy"):
        write(tmp_path / name, NEW)
        assert report_in(tmp_path / name) == encoded(NEW)


def edited(path: Path, outside: Path) -> None:
    path.write_text(path.read_text() + "!")


def linked(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to(outside)


def linked_to_the_same_text(path: Path, outside: Path) -> None:
    outside.write_bytes(path.read_bytes())
    linked(path, outside)


def made_a_directory(path: Path, outside: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "notes.txt").write_text("mine")


@pytest.mark.parametrize("name", ["a.md", "gone.pdf"])
@pytest.mark.parametrize(
    "change", [edited, linked, linked_to_the_same_text, made_a_directory], ids=lambda f: f.__name__
)
def test_a_changed_file_is_refused_before_compute_and_at_the_end(tmp_path, name, change):
    directory = tmp_path / "report"
    write(directory, OLD)
    (tmp_path / "outside").write_text("not ours")
    change(directory / name, tmp_path / "outside")
    before = tree(tmp_path)
    message = rf"^reports=r name=n: .*{name} was changed after this program wrote it .*; move it"
    with pytest.raises(ConfigError, match=message):
        owned_in(directory).check()
    with pytest.raises(ConfigError, match=message):
        write(directory, NEW)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("target", ["thesis.tex", "nowhere", None])
def test_a_file_of_others_in_the_way_is_refused(tmp_path, target):
    directory = tmp_path / "report"
    write(directory, OLD)
    (tmp_path / "thesis.tex").write_text("a year's work")
    if target is None:
        (directory / "c.html").write_text("mine")
    else:
        (directory / "c.html").symlink_to(tmp_path / target)
    before = tree(tmp_path)
    message = r"c\.html is not a file of ours and would be replaced"
    with pytest.raises(ConfigError, match=message):
        owned_in(directory).check("c.html")
    with pytest.raises(ConfigError, match=message):
        write(directory, NEW)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", "other", "foreign", "link"])
def test_a_damaged_or_foreign_list_is_refused(tmp_path, content):
    directory = tmp_path / "report"
    write(directory, OLD)
    (tmp_path / "victim").write_text("not ours")
    path = directory / LIST
    listed = files.read_checksummed(path)
    path.rename(tmp_path / "list")
    if content == "other":  # whose checksum is right
        files.write_checksummed(path, {"files": {}, "more": 1})
    elif content == "foreign":
        value = hashlib.sha256(b"not ours").hexdigest()
        del listed["sha256"]
        files.write_checksummed(path, listed | {"files": {"../victim": value}})
    elif content == "link":
        path.symlink_to(tmp_path / "list")
    else:
        path.write_bytes(content)
    before = tree(tmp_path)
    for attempt in (owned_in(directory).check, partial(write, directory, NEW)):
        with pytest.raises(ConfigError, match=r"list|damaged"):
            attempt()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["../x", "a/b.png", "", "..", ".", LIST, "/x"])
def test_a_user_s_evaluation_cannot_write_elsewhere(tmp_path, name):
    write(tmp_path / "report", OLD)
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match="must be the name of a file in"):
        write(tmp_path / "report", {"a.md": "new", name: "x"})
    assert tree(tmp_path) == before


# ------------------------------------------------------------------ kills, failures, full disks


def complete_or_mended(directory: Path, foreign: dict[str, str]) -> None:
    """Check that a run that failed left the old or the new report, after the next check."""
    owned_in(directory).check()
    assert report_in(directory) in (encoded(OLD) | foreign, encoded(NEW) | foreign)


@pytest.mark.parametrize("function", ["die_in_a_replacement", "die_in_the_first_report"])
def test_killed_at_any_step_the_next_run_has_the_old_or_the_new_report(tmp_path, function):
    sys.path.append(str(Path(__file__).parent))
    in_a_process("replacements_for_tests", function, tmp_path)


def failing_after(count: int, function, error: Exception, calls: list[int]):
    """Return a function that fails from its call of this number on."""

    def wrapped(*arguments, **named):
        calls.append(1)
        if len(calls) > count:
            raise error
        return function(*arguments, **named)

    return wrapped


@pytest.mark.parametrize("function", ["fsync", "replace", "write", "unlink", "mkdir", "rmdir"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_failure_at_any_step_leaves_a_complete_report(tmp_path, monkeypatch, function, error):
    number = 0
    while True:
        directory = tmp_path / str(number)
        write(directory, OLD)
        foreign = add_foreign(directory, tmp_path / "elsewhere")
        calls = []
        with monkeypatch.context() as patched:
            if function == "write":  # of the new files
                original = Path.write_text
                patched.setattr(Path, "write_text", failing_after(number, original, error, calls))
            else:
                original = getattr(os, function)
                patched.setattr(os, function, failing_after(number, original, error, calls))
            try:
                write(directory, NEW)
                failed = False
            except (OSError, KeyboardInterrupt):
                failed = True
        survives = report_in(directory)
        if function in ("fsync", "write") and failed and number < 3:
            assert encoded(OLD).items() <= survives.items(), "a full disk leaves the old report"
        complete_or_mended(directory, foreign)
        if len(calls) <= number:
            assert number > 0, "the function was called"
            return
        number += 1


def test_what_a_killed_run_left_is_removed_but_not_what_others_put_there(tmp_path):
    directory = tmp_path / "report"
    write(directory, OLD)
    (tmp_path / "elsewhere").mkdir()
    context = owned_in(directory).replaced()
    new_file = context.__enter__()
    staged = new_file("a.md")
    staged.write_text("half")
    (staged.parent / "notes.txt").write_text("mine")
    killed = tmp_path / "killed"
    shutil.copytree(directory, killed)
    linked = tmp_path / "linked"
    shutil.copytree(directory, linked)
    shutil.move(linked / staged.parent.name, tmp_path / "elsewhere" / "moved")
    (linked / staged.parent.name).symlink_to(tmp_path / "elsewhere" / "moved")
    before = tree(tmp_path / "elsewhere")
    owned_in(killed).check()
    folder = staged.parent.name
    mine = {folder: "directory", f"{folder}/notes.txt": b"mine".hex()}
    assert report_in(killed) == encoded(OLD) | mine
    owned_in(linked).check()
    assert tree(tmp_path / "elsewhere") == before, "a link is not followed"


# -------------------------------------------------------------- directories that are refused


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(run, directory: str, message: str, here: Path) -> None:
    """Check that a run is refused in one line, and that nothing changes."""
    before = tree(here)
    with pytest.raises(ConfigError, match=message) as caught:
        check_output(run, Path(directory))
    assert "\n" not in str(caught.value)
    assert tree(here) == before


def make_thesis(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "main.tex").write_text("a year's work")


def make_former_report(path: Path) -> None:
    path.mkdir(parents=True)
    for name in ("index.html", "result.json", "lds.md"):
        (path / name).write_text("{}")


def make_link(path: Path) -> None:
    write(path.with_name("real"), OLD)
    path.symlink_to("real")


def make_dangling_link(path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to("nowhere")


def make_file(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("mine")


def make_hidden(path: Path) -> None:
    path.mkdir(parents=True)
    (path / ".git").mkdir()


def make_numbered(path: Path) -> None:
    """A directory like that of a sweep, without a list."""
    make_former_report(path / "seed=0")


def make_list_directory(path: Path) -> None:
    (path / LIST).mkdir(parents=True)


@pytest.mark.parametrize(
    "make",
    [
        make_thesis, make_former_report, make_link, make_dangling_link, make_file, make_hidden,
        make_numbered, make_list_directory,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_a_directory_of_others_is_refused(here, make):
    make(here / "own/thesis")
    run = small_run(reports="own", name="thesis")
    message = r"^reports=own, name=thesis: must be the name of a .*own/thesis"
    refused(run, "own/thesis", message, here)
    refused(run, "own/thesis/seed=0", message, here)  # a point of a sweep


def test_reports_of_ours_and_empty_directories_are_accepted(here):
    run = small_run(reports="own", name="n")
    for directory in ("own/n", "own/n/sweep-seed/seed=0"):
        check_output(run, Path(directory))
        assert not (here / "own").exists(), "a check makes nothing"
    (here / "own/n").mkdir(parents=True)
    check_output(run, Path("own/n"))
    write(here / "own/n/sweep-seed/seed=0", OLD)  # a sweep, then a single run beside its reports
    (here / "own/n/notes.txt").write_text("mine")
    for directory in ("own/n", "own/n/sweep-seed/seed=0", "own/n/sweep-seed/seed=1"):
        check_output(run, Path(directory))
    write(here / "own/n", NEW)
    for directory in ("own/n", "own/n/sweep-seed/seed=0", "own/n/sweep-seed/seed=1"):
        check_output(run, Path(directory))
    assert report_in(here / "own/n/sweep-seed/seed=0") == encoded(OLD)
    (here / "own").rename(here / "disk")
    (here / "own").symlink_to("disk")  # the directory of all reports may be a link
    check_output(run, Path("own/n"))


@pytest.mark.parametrize(
    "name", ["index.html", "result.json", "trajectories.png", "preview.png", "samples.png"]
)
def test_a_file_in_the_way_of_a_report_is_refused_before_compute(here, name):
    write(here / "own/n", OLD)
    (here / "own/n" / name).write_text("mine")
    refused(small_run(reports="own", name="n"), "own/n", f"{name} is not a file of ours", here)


def npz(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    axes = {"queries": np.arange(4), "train": np.arange(60).astype(str)}
    np.savez(path, scores=np.zeros((4, 60), np.float32), **axes)
    return str(path)


INSIDE = {
    "dataset.root=own/n": lambda: {"dataset": Folder(root="own/n")},
    "dataset.root=own/n/data": lambda: {"dataset": Folder(root="own/n/data")},
    "dataset.root=link": lambda: {"dataset": Folder(root="link")},
    "method.external.path=own/n/mine.npz": lambda: {
        "method": {"external": External(npz(Path("own/n/mine.npz")))}
    },
    "model.checkpoints=own/n/data": lambda: {
        "model": DDPM(block_out_channels=[8, 16], checkpoints=["own/n/data"])
    },
    "artifacts=own/n": lambda: {"artifacts": "own/n"},
    "artifacts=own/n/store": lambda: {"artifacts": "own/n/store"},
    "artifacts=link/store": lambda: {"artifacts": "link/store"},
}


@pytest.mark.parametrize("text", INSIDE)
def test_inputs_inside_the_report_are_refused(here, text):
    write(here / "own/n", OLD)
    (here / "own/n/data").mkdir()
    (here / "link").symlink_to("own/n")
    run = small_run(reports="own", name="n", **INSIDE[text]())
    message = rf"^{re.escape(text)}: must be outside the directory of the report, own/n$"
    refused(run, "own/n", message, here)


def test_a_dataset_that_would_be_replaced_is_refused(here):
    """The two commands that deleted a dataset."""
    (here / "own2/smoke").mkdir(parents=True)
    (here / "own2/smoke/1.png").write_bytes(b"png")
    run = small_run(reports="own2", name="smoke", dataset=Folder(root="own2/smoke"))
    refused(run, "own2/smoke", r"^reports=own2, name=smoke: .* has files of others", here)
    (here / "data/coco/train2017").mkdir(parents=True)
    run = small_run(reports="data", name="coco")
    refused(run, "data/coco", r"^reports=data, name=coco: .* has files of others", here)


def test_neither_reports_nor_artifacts_are_below_a_folder_of_images(here):
    (here / "photos/cats").mkdir(parents=True)
    dataset = Folder(root="photos")
    below = r"must be outside dataset\.root=photos, below which every image is read$"
    run = small_run(reports="photos", name="n", dataset=dataset)
    refused(run, "photos/n", rf"^reports=photos: {below}", here)
    run = small_run(artifacts="photos/store", dataset=dataset)
    refused(run, "reports/n", rf"^artifacts=photos/store: {below}", here)


def test_a_report_is_in_no_folder_of_the_store(here):
    message = r"^reports={}: must be such that .* is in no folder of artifacts=artifacts$"
    for reports, name in (("artifacts", "models"), ("artifacts/scores", "n")):
        run = small_run(reports=reports, name=name)
        refused(run, f"{reports}/{name}", message.format(reports), here)
    check_output(small_run(artifacts=".", name="n"), Path("reports/n"))  # as in a bundle


@pytest.mark.parametrize("name", ["artifacts", "reports"])
def test_a_path_below_a_file_is_refused_before_anything_is_made(here, name):
    (here / "file").write_text("mine")
    for value in ("file", "file/x", "file/x/y"):
        with pytest.raises(ConfigError, match=rf"^{name}={value}: must be a directory, or a path"):
            check_machine(small_run(**{name: value}))
    assert list(tree(here)) == ["file"]


def test_a_sweep_is_refused_before_its_first_point(here):
    compose.register_schemas(COMPONENTS)
    for seed in (0, 1):
        write(here / f"reports/smoke/sweep-seed/seed={seed}", OLD)
    words = ["-m", "experiment=smoke", TINY[1], "seed=0,1"]
    check_command_line(words)
    edited(here / "reports/smoke/sweep-seed/seed=1/a.md", here)
    with pytest.raises(ConfigError, match=r"sweep-seed/seed=1/a\.md was changed"):
        check_command_line(words)
    make_thesis(here / "own/smoke")
    with pytest.raises(ConfigError, match=r"own/smoke has files of others"):
        check_command_line([*words, "reports=own"])


# ------------------------------------------------------------------------------------- bundles


def test_only_an_archive_that_was_exported_here_is_replaced(here):
    run, directory = small_run(name="n", task=Task.export), Path("reports/n")
    check_output(run, directory)
    path = here / "reports/n-bundle.tar.gz"

    def export_again(text: str) -> None:
        check_output(run, directory)
        with bundle_files(run, directory).replaced() as new_file:
            new_file(path.name).write_text(text)
        assert path.read_text() == text

    export_again("first")
    foreign = add_foreign(here / "reports", here / "x")
    export_again("second")
    for change in (edited, linked, made_a_directory):
        shutil.copytree(here / "reports", here / "saved", symlinks=True)
        change(path, here / "x" / "thesis.tex")
        refused(run, "reports/n", r"n-bundle\.tar\.gz was changed after", here)
        shutil.rmtree(here / "reports")
        (here / "saved").rename(here / "reports")
    export_again("third")
    (here / "reports/.n-bundle.tar.gz.json").unlink()  # such as one from somebody else
    refused(run, "reports/n", r"n-bundle\.tar\.gz is not a file of ours", here)
    left = {name: value for name, value in tree(here / "reports").items() if name in foreign}
    assert left == foreign


def test_a_card_names_the_methods_once():
    words = "experiment=digits 'method=[journey,pixel]' 'method.journey.damping=[1]' seed=1"
    shared = export._without_methods(words)
    assert shared == "experiment=digits 'method.journey.damping=[1]' seed=1"
    assert export._without_methods("method.external.path=x.npz seed=1") == "seed=1"


def test_documented_ways_to_load_a_network_print_no_warning():
    guide = (Path(__file__).parents[2] / "docs/using.md").read_text()
    for text in (guide, export.CARD):
        calls = re.findall(r"from_pretrained\(.*?\)", text)
        assert calls
        assert all("low_cpu_mem_usage=False" in call for call in calls), calls


# -------------------------------------------------------------------------------------- stores


def test_a_store_among_other_files_leaves_them_alone(tmp_path):
    root = tmp_path / "store"
    (root / "toys").mkdir(parents=True)
    for directory in (root, root / "toys"):
        add_foreign(directory, tmp_path / "elsewhere")
        (directory / "partial-0123456789ab").rename(directory / "partial")  # not a key of ours
    before = tree(root)
    spec = Toy(3)
    interrupted = root / f"{cache_key(spec)}.partial"
    interrupted.mkdir()
    (interrupted / "notes.tmp").write_text("mine")
    artifact = compute(spec, root)
    assert (artifact.directory / "notes.tmp").read_text() == "mine"
    (artifact.directory / "notes.txt").write_text("mine")
    assert list(Store(root).verify()) == [], "directories of others are not called damaged"
    Store(root).check_writable()
    Store(root / "new").check_writable(create=False)
    after = tree(root)
    assert {name: after.get(name) for name in before} == before
    new = {name for name in after.keys() - before.keys() if not name.startswith(cache_key(spec))}
    assert new == {"runs.txt"}


def test_a_second_commit_drops_the_payload_only(tmp_path):
    spec = Toy(3)
    artifact = compute(spec, tmp_path)
    late = artifact.directory.with_name("late")
    shutil.copytree(artifact.directory, late)
    foreign = add_foreign(late, tmp_path / "elsewhere")
    for name in [name for name in foreign if "resume." in name]:
        (late / name).unlink()
        del foreign[name]
    Store(tmp_path).commit(spec, late, 0.0, {}, {})
    assert tree(late) == foreign
    assert list(tree(tmp_path / "elsewhere")) == ["thesis.tex"]


@pytest.mark.parametrize(("suffix", "target"), [("partial", "."), ("lock", "resume.me.tmp")])
def test_links_in_place_of_ours_are_refused(tmp_path, suffix, target):
    root, spec = tmp_path / "store", Toy(3)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "resume.me.tmp").write_text("mine")
    (root / "toys").mkdir(parents=True)
    (root / f"{cache_key(spec)}.{suffix}").symlink_to(tmp_path / "elsewhere" / target)
    before = tree(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=rf"\.{suffix}: a symbolic link, which is not followed"):
        compute(spec, root)
    assert tree(tmp_path / "elsewhere") == before


def test_a_log_that_is_a_link_is_replaced(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "thesis.tex").write_text("a year's work")
    log_path(tmp_path, "toys/x").symlink_to(tmp_path / "thesis.tex")
    write_log(tmp_path, "toys/x", "failed")
    assert (tmp_path / "thesis.tex").read_text() == "a year's work"
    assert log_path(tmp_path, "toys/x").read_text() == "failed"
