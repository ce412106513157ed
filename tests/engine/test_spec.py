"""Cache keys of stages that users write: the source of the stage is part of the key."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from stages_for_tests import Toy

from journey.engine.spec import Spec, _source_hash, cache_key, key_fields
from journey.pipeline.interfaces import Images


@pytest.fixture
def maker(tmp_path, monkeypatch) -> Path:
    """The file of a maker that is on the path of modules but not imported."""
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "users_stage.py"
    path.write_text("raise SystemExit('imported')\n")
    return path


@dataclass(frozen=True)
class Users(Spec):
    stage: ClassVar[str] = "users"
    maker: ClassVar[str] = "users_stage:make"
    folder: ClassVar[str] = "users"
    version: ClassVar[int] = 1
    label: ClassVar[str] = "users"
    work: ClassVar[float] = 1.0
    parent: Toy | None = None


def key_now(spec: Spec) -> str:
    _source_hash.cache_clear()
    vars(spec).pop("_digest", None)
    return cache_key(spec)


def test_an_edited_maker_has_another_key_and_is_not_imported(maker):
    before = key_now(Users())
    assert key_now(Users()) == before
    maker.write_text("raise SystemExit('edited')\n")
    assert key_now(Users()) != before
    assert "users_stage" not in sys.modules


def test_what_is_computed_from_an_edited_stage_has_another_key(maker):
    @dataclass(frozen=True)
    class Child(Users):
        maker: ClassVar[str] = "stages_for_tests:make"
        of: Users = Users()

    before = key_now(Child())
    maker.write_text("# edited\n")
    vars(Child.of).pop("_digest")
    assert key_now(Child()) != before


def test_the_versions_of_this_package_stand_for_its_sources():
    images = Images("0" * 64, None, 3, (1, 8, 8))
    assert "source" not in key_fields(images)
    assert _source_hash("journey.data.images", "journey") == ""
    assert len(_source_hash("stages_for_tests")) == 16


def test_a_package_whose_name_begins_like_ours_is_not_ours(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "journeyman.py").write_text("")
    assert _source_hash("journeyman")


def test_a_maker_without_a_file_is_refused_by_name():
    with pytest.raises(ModuleNotFoundError, match="no_such_stage: no file has the source"):
        _source_hash("no_such_stage")
