"""The documents build as a site (`make docs`), in which a dead link is an error."""

import re
import shutil
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

ROOT = Path(__file__).parents[1]


def test_the_site_builds_and_loads_nothing_from_other_hosts(tmp_path):
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path)))
    pages = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*.html")}
    assert {"index.html", "docs/settings.html", "experiments/digits/index.html"} <= set(pages)
    assert (tmp_path / "experiments/by_hand.py").exists(), "which docs/README.md links to"
    for name, page in pages.items():
        loaded = re.findall(r'(?:<link [^>]*href|src)="(?:https?:)?//[^"]*', page.read_text())
        assert not loaded, f"{name}: {loaded}"


@pytest.mark.parametrize("link", ["docs/using.md#no-such-section", "docs/none.md", "conf", "/x.md"])
def test_a_dead_link_is_an_error(link, tmp_path):
    navigation = "\nnav:"
    settings = (ROOT / "mkdocs.yml").read_text().partition(navigation)[0]
    (tmp_path / "mkdocs.yml").write_text(f"{settings}{navigation} [README.md, docs/using.md]\n")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/site_files.py", tmp_path / "docs")
    (tmp_path / "docs/using.md").write_text("# Using\n\n[Home](../README.md)\n")
    for target, dead in {"docs/using.md#using": False, link: True}.items():
        (tmp_path / "README.md").write_text(f"# Home\n\n[here]({target})\n")
        config = load_config(str(tmp_path / "mkdocs.yml"), site_dir=str(tmp_path / "site"))
        if dead:
            with pytest.raises(Abort, match="warnings in strict mode"):
                build(config)
        else:
            build(config)
