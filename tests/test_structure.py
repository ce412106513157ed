"""Imports go down the layers, without circles."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from code_counts import ROOT, circles, imports, upward


def test_no_module_imports_itself_through_others():
    assert circles(imports(ROOT / "src/journey")) == []
    assert circles({"a": {"b"}, "b": {"a"}, "c": {"a"}}) == ["a", "b"]


def test_no_module_imports_from_a_higher_layer():
    assert upward(imports(ROOT / "src/journey")) == []
    assert upward({"engine.files": {"report.write"}}) == ["engine.files -> report.write"]
