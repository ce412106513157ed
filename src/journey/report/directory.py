"""Where reports and bundles are written, and what is refused there before any compute."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from journey.config.run import RunConfig, Task
from journey.engine.checks import leaves, require
from journey.engine.owned import OwnedFiles, is_regular
from journey.engine.spec import Spec
from journey.engine.store import OTHER_FOLDERS

LIST = ".journey-report.json"
BUNDLE, HELD_OUT, CROISSANT = "-bundle.tar.gz", "-held-out.tar.gz", "-croissant.json"
PAGE, RESULT, FIGURE = "index.html", "result.json", "trajectories.png"
PREVIEW = "preview.png"  # the figure before the result is there
SAMPLES, TRAINING_IMAGES = "samples.png", "training_images.png"  # contact sheets
SWEEP = "sweep-"  # begins the name of the directory of a sweep's reports
NO_POINT = ("experiment", "artifacts", "reports", "name")  # settings that choose the directory
MOST_LETTERS = 150  # of the name of a directory
REPORT_FILES = (PAGE, RESULT, FIGURE, PREVIEW, SAMPLES, TRAINING_IMAGES)
NO_INPUTS = ("artifacts", "compute", "tracking", "task", "name", "reports")


def report_files(run: RunConfig, directory: Path) -> OwnedFiles:
    """Return the files of a report."""
    return OwnedFiles(directory, LIST, f"reports={run.reports} name={run.name}")


def bundle_path(directory: Path, suffix: str = BUNDLE) -> Path:
    """Return the archive of an exported bundle, beside the directory of the report, or another."""
    return directory.with_name(directory.name + suffix)


def bundle_files(run: RunConfig, directory: Path) -> OwnedFiles:
    """Return the files of an exported bundle: archives, and their metadata."""
    path = bundle_path(directory)
    return OwnedFiles(path.parent, f".{path.name}.json", f"reports={run.reports} name={run.name}")


def report_directory(
    run: RunConfig, overrides: Sequence[str] = (), swept: Sequence[str] = ()
) -> Path:
    """Return the directory of a report: that of the experiment, or of a point of a sweep inside.

    Args:
        run: The settings.
        overrides: The overrides of the point.
        swept: The settings over which the command sweeps.
    """
    return Path(run.reports, run.name, point_directory(overrides, swept))


def point_directory(overrides: Sequence[str], swept: Sequence[str]) -> str:
    """Return the directory of a point of a sweep, named by what was swept and by its values.

    >>> point_directory(["experiment=smoke", "seed=1", "task=report"], ["experiment", "seed"])
    'sweep-seed/seed=1'
    """
    swept = [name for name in swept if name not in NO_POINT]
    values = [text for text in overrides if text.partition("=")[0].lstrip("+") in swept]
    return f"{sweep_directory(swept)}/{_file_name(','.join(values))}" if values else ""


def sweep_directory(swept: Sequence[str]) -> str:
    """Return the name of the directory of a sweep over these settings.

    >>> sweep_directory(["dataset.copies", "seed"])
    'sweep-dataset.copies,seed'
    """
    return _file_name(f"{SWEEP}{','.join(swept)}")


def _file_name(text: str) -> str:
    """Return a text as the name of a directory; a hash tells apart those that look alike then."""
    safe = re.sub(r"[^\w=.,+-]", "-", text, flags=re.ASCII)
    if safe == text and len(safe) <= MOST_LETTERS:
        return safe
    return f"{safe[:MOST_LETTERS]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def check_output(run: RunConfig, directory: Path) -> None:
    """Check that a task writes over no file of others, and finish what a killed run left.

    Args:
        run: The settings.
        directory: The directory of the report. A point of a sweep has one inside `reports/name`.

    Raises:
        ConfigError: A directory is no report of ours, a file of ours was changed, or the report
            and an input of the run are in the same place.
    """
    if run.task is Task.export:
        suffixes = (BUNDLE, HELD_OUT, CROISSANT)
        bundle_files(run, directory).check(*(bundle_path(directory, s).name for s in suffixes))
    if run.task not in (Task.report, Task.sample):
        return
    where = f"reports={run.reports}, name"
    parent = Path(run.reports) / run.name
    above = [path for path in directory.parents if parent in (path, *path.parents)]
    for path in (directory, *above):
        allowed = f"the name of a directory: {path} is a symbolic link"
        require(not path.is_symlink(), where, run.name, allowed)
        allowed = f"the name of a new directory: {path} exists and is none"
        require(path.is_dir() or not os.path.lexists(path), where, run.name, allowed)
        allowed = (
            f"the name of a new or empty directory, or of a report with its list {LIST}: "
            f"{path} has files of others (or a report of an earlier version: move it away)"
        )
        require(_is_ours(run, path), where, run.name, allowed)
    _check_inputs(run, directory)
    names = (SAMPLES,) if run.task is Task.sample else REPORT_FILES
    report_files(run, directory).check(*names)


def _is_ours(run: RunConfig, directory: Path) -> bool:
    """Return whether a directory is new, empty, a report, or one of a sweep's reports."""
    files = report_files(run, directory)
    return files.is_empty() or files.is_listed() or _is_sweep(directory)


def _is_sweep(directory: Path) -> bool:
    """Return whether a directory has reports or bundles of points of sweeps."""
    for path in directory.iterdir():
        is_directory = path.is_dir() and not path.is_symlink()
        if is_directory and "=" in path.name and is_regular(path / LIST):
            return True
        if is_directory and path.name.startswith(SWEEP) and _is_sweep(path):
            return True
        if re.fullmatch(rf"\..*=.*{re.escape(BUNDLE)}\.json", path.name) and is_regular(path):
            return True
    return False


def _check_inputs(run: RunConfig, directory: Path) -> None:
    """Check that no input of a run is inside its report, nor the report inside an input."""
    report, artifacts = directory.resolve(), Path(run.artifacts).resolve()
    inputs = [("artifacts", Path(run.artifacts))]
    for f in fields(run):
        settings = leaves(getattr(run, f.name), f.name) if f.name not in NO_INPUTS else ()
        for name, value in settings:
            path = Path(value).expanduser() if isinstance(value, str) and value else None
            if path is not None and os.path.exists(path):
                inputs.append((name, path))
    for name, path in inputs:
        allowed = f"outside the directory of the report, {directory}"
        require(not _is_inside(path, report), name, path, allowed)
    if _is_inside(report, artifacts):
        folder = report.relative_to(artifacts).parts[0]
        allowed = f"such that {directory} is in no folder of artifacts={run.artifacts}"
        require(folder not in _store_folders(), "reports", run.reports, allowed)
    if run.dataset.reads_all_below and (root := getattr(run.dataset, "root", "")):
        for name, path in (("reports", report), ("artifacts", artifacts)):
            allowed = f"outside dataset.root={root}, below which every image is read"
            value = getattr(run, name)
            require(not _is_inside(path, Path(root).expanduser().resolve()), name, value, allowed)


def _is_inside(path: Path, directory: Path) -> bool:
    """Return whether a path is a directory or inside it, after following symbolic links."""
    resolved = path.resolve()
    return directory in (resolved, *resolved.parents)


def _store_folders() -> set[str]:
    """Return the names of the folders of stores."""
    folders, pending = set(OTHER_FOLDERS), [Spec]
    while pending:
        subclasses = pending.pop().__subclasses__()
        pending += subclasses
        folders |= {getattr(subclass, "folder", "") for subclass in subclasses}
    return folders
