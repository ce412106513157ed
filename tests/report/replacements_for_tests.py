"""Directories with files of ours and of others, and processes killed while ours are replaced."""

import os
import shutil
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "engine"))

from stages_for_tests import killed_at_each_change

from journey.engine.owned import OwnedFiles

LIST = ".journey-report.json"
OLD = {"a.md": "old a", "b.png": "old b", "gone.pdf": "old gone"}
NEW = {"a.md": "new a", "b.png": "new b", "c.html": "new c"}


def tree(directory: Path) -> dict[str, str]:
    """Return all that is below a directory: links with targets, files with contents."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        else:
            found[name] = path.read_bytes().hex() if path.is_file() else "directory"
    return found


def encoded(texts: dict[str, str]) -> dict[str, str]:
    return {name: text.encode().hex() for name, text in texts.items()}


def report_in(directory: Path) -> dict[str, str]:
    """Return the files of a directory without the list."""
    return {name: text for name, text in tree(directory).items() if name != LIST}


def owned_in(directory: Path) -> OwnedFiles:
    return OwnedFiles(directory, LIST, "reports=r name=n")


def write(directory: Path, contents: dict[str, str], keep: bool = False) -> None:
    """Replace the report of a directory."""
    with owned_in(directory).replaced(keep) as new_file:
        for name, text in contents.items():
            new_file(name).write_text(text)


def add_foreign(directory: Path, elsewhere: Path) -> dict[str, str]:
    """Put files of others into a directory, and return them as `tree` does."""
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "thesis.tex").write_text("a year's work")
    before = tree(directory)
    for folder in (".", "sub/deeper", "0-seed=0", "partial-notmine", "partial-0123456789ab"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
        for name in ("notes.txt", "a.md.tmp", "resume.1.bin", f"{LIST}.tmp", ".hidden"):
            (directory / folder / name).write_text(f"mine in {folder}")
    (directory / "empty").mkdir()
    (directory / "link").symlink_to(elsewhere)
    (directory / "link.md").symlink_to(elsewhere / "thesis.tex")
    (directory / "dangling").symlink_to("nowhere")
    return {name: value for name, value in tree(directory).items() if name not in before}


def die_in_a_replacement(root: Path) -> None:
    """Called in a process of its own."""
    os.fsync = lambda _: None
    outcomes = []

    def prepare(number: int) -> dict[str, str]:
        write(root / str(number), OLD)
        return add_foreign(root / str(number), root / "elsewhere")

    foreign = prepare(0)
    for number in killed_at_each_change(lambda n: write(root / str(n), NEW)):
        directory = root / str(number)
        whole = encoded(OLD).items() <= report_in(directory).items()
        owned_in(directory).check()
        after = report_in(directory)
        assert after in (encoded(OLD) | foreign, encoded(NEW) | foreign), number
        outcomes.append(("old" if whole else "mixed", after == encoded(NEW) | foreign))
        write(directory, NEW)
        assert report_in(directory) == encoded(NEW) | foreign
        shutil.rmtree(directory)
        prepare(number + 1)
    # The old report, the old report with all new files written, and a mixture that is mended.
    assert list(dict.fromkeys(outcomes)) == [("old", False), ("old", True), ("mixed", True)]
    assert len(outcomes) > 30
    assert list(tree(root / "elsewhere")) == ["thesis.tex"]


def die_in_the_first_report(root: Path) -> None:
    """Called in a process of its own."""
    os.fsync = lambda _: None
    for number in killed_at_each_change(lambda n: write(root / str(n), NEW)):
        files = owned_in(root / str(number))
        assert files.is_empty() or files.is_listed()
        files.check()
        assert report_in(files.directory) in ({}, encoded(NEW))
        write(files.directory, NEW)
        assert report_in(files.directory) == encoded(NEW)
