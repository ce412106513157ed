"""States that interrupted stages resume from, and stopping on request."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from numpy.lib.format import open_memmap
from stages_for_tests import in_a_process, killed_at_each_change

from journey.engine import resume
from journey.engine.files import new_array, write_checksummed
from journey.engine.resume import load_state, save_state


def save(partial: Path, step: int) -> None:
    (partial / f"resume.{step}.bin").write_bytes(bytes([step]) * 1000)
    save_state(partial, {"step": step}, [f"resume.{step}.bin"])


def test_the_last_saved_state_is_loaded(tmp_path):
    assert load_state(tmp_path) is None
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert load_state(tmp_path) == {"step": 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["resume.2.bin", "resume.json"]
    save_state(tmp_path, {"rows": 4})
    assert load_state(tmp_path) == {"rows": 4}
    assert [p.name for p in tmp_path.iterdir()] == ["resume.json"]


def test_a_newer_file_without_its_state_is_no_damage(tmp_path, capfd):
    save(tmp_path, 1)
    (tmp_path / "resume.2.bin").write_bytes(b"half")
    assert load_state(tmp_path) == {"step": 1}
    assert capfd.readouterr().err == ""


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


DAMAGES = {
    "flipped state": ("resume.json", lambda path: flip(path, 8 * 25 + 3)),
    "flipped file": ("resume.1.bin", lambda path: flip(path, 8 * 25 + 3)),
    "cut state": ("resume.json", cut),
    "cut file": ("resume.1.bin", cut),
    "garbage state": ("resume.json", lambda path: path.write_bytes(b"\xffnull")),
    "garbage file": ("resume.1.bin", lambda path: path.write_bytes(b"\xffnull")),
    "missing file": ("resume.1.bin", Path.unlink),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_reported_and_deleted(tmp_path, capfd, damage):
    save(tmp_path, 1)
    (tmp_path / "values.npy").write_text("payload")
    name, do_damage = DAMAGES[damage]
    do_damage(tmp_path / name)
    assert load_state(tmp_path) is None
    line = f"the state of an interrupted run is damaged ({name}); computing the artifact anew\n"
    assert capfd.readouterr().err == f"{tmp_path}: {line}"
    assert [p.name for p in tmp_path.iterdir()] == ["values.npy"]
    assert load_state(tmp_path) is None
    assert capfd.readouterr().err == ""


def test_every_flipped_bit_of_a_state_is_noticed(tmp_path):
    save(tmp_path, 1)
    contents = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for bit in range(len(contents[tmp_path / "resume.json"]) * 8):
        for path, content in contents.items():
            path.write_bytes(content)
        flip(tmp_path / "resume.json", bit)
        assert load_state(tmp_path) is None


def fill(partial: Path, first: int, end: int, axis: int = 0) -> None:
    """Fill rows of an array and a line of metrics for each, as a stage does, and save a state."""
    path = partial / "values.npy"
    shape = (6, 5) if axis == 0 else (2, 6, 5)
    values = new_array(path, shape) if first == 0 else open_memmap(path, "r+")
    for row in range(first, end):
        values.swapaxes(0, axis)[row] = row + 1
        with open(partial / "metrics.jsonl", "a") as file:
            file.write(f'{{"step": {row}}}\n')
    values.flush()
    save_state(partial, {"rows": end}, filled={"values.npy": end}, axis=axis)


def sizes_of(partial: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in partial.iterdir()}


@pytest.mark.parametrize("axis", [0, 1])
def test_every_flipped_bit_of_final_rows_costs_its_block_and_later_ones(tmp_path, capfd, axis):
    for first, end in ((0, 2), (2, 3), (3, 5)):
        fill(tmp_path, first, end, axis)
    contents = {path: path.read_bytes() for path in tmp_path.iterdir()}
    header = len(contents[tmp_path / "values.npy"]) - 4 * 30 * (1 + axis)
    rows = range(header, len(contents[tmp_path / "values.npy"]))
    for byte in (0, 9, header - 1, *rows):
        for path, content in contents.items():
            path.write_bytes(content)
        flip(tmp_path / "values.npy", 8 * byte + byte % 8)
        row = (byte - header) // 20 % 6 if byte >= header else -1
        expected = None if row < 2 else {"rows": 2} if row < 3 else {"rows": 3}
        expected = {"rows": 5} if row == 5 else expected
        assert load_state(tmp_path) == expected, (byte, row)
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == (row != 5), "a row that is not final is computed anyway"
        if expected is not None:
            kept = (tmp_path / "metrics.jsonl").read_text().splitlines()
            assert len(kept) == expected["rows"], "metrics end where the run continues"
            assert load_state(tmp_path) == expected
            fill(tmp_path, expected["rows"], 6, axis)
            assert load_state(tmp_path) == {"rows": 6}
        assert capfd.readouterr().err == ""


def test_truncated_longer_and_missing_arrays_are_noticed(tmp_path, capfd):
    fill(tmp_path, 0, 2)
    fill(tmp_path, 2, 4)
    contents = {path: path.read_bytes() for path in tmp_path.iterdir()}
    content = contents[tmp_path / "values.npy"]
    for length in (*range(0, len(content), 7), len(content) + 3):
        for path, before in contents.items():
            path.write_bytes(before)
        (tmp_path / "values.npy").write_bytes((content + b"abc")[:length])
        missing = len(content) - length
        expected = {"rows": 4} if missing <= 40 else {"rows": 2} if missing <= 80 else None
        assert load_state(tmp_path) == expected, length
        assert "(values.npy" in capfd.readouterr().err
        if expected:
            assert sizes_of(tmp_path)["values.npy"] == len(content), "it can be filled again"
    for path, before in contents.items():
        path.write_bytes(before)
    (tmp_path / "values.npy").unlink()
    assert load_state(tmp_path) is None
    assert "damaged (values.npy)" in capfd.readouterr().err


def test_damaged_or_unfinished_metrics_are_noticed(tmp_path, capfd):
    fill(tmp_path, 0, 2)
    fill(tmp_path, 2, 4)
    path = tmp_path / "metrics.jsonl"
    content, state = path.read_bytes(), (tmp_path / "resume.json").read_bytes()
    path.write_bytes(content + b'{"step": 1}\n{"st')  # after the state was saved: no damage
    assert load_state(tmp_path) == {"rows": 4}
    assert path.read_bytes() == content
    assert capfd.readouterr().err == ""
    for damaged, expected in (
        (content.replace(b"3", b"7"), {"rows": 2}),
        (content[:-1], {"rows": 2}),
        (b"", None),
    ):
        path.write_bytes(damaged)
        (tmp_path / "resume.json").write_bytes(state)
        assert load_state(tmp_path) == expected
        assert "metrics.jsonl" in capfd.readouterr().err
    assert not path.exists()


def test_metrics_after_a_saved_state_are_logged_again(tmp_path):
    """A thread saves the state of step 1 when the line of step 2 is written already."""
    lines = ['{"step": 1}\n', '{"step": 2}\n']
    (tmp_path / resume.METRICS).write_text("".join(lines))
    save_state(tmp_path, {"step": 1}, metrics_bytes=len(lines[0]))
    assert load_state(tmp_path) == {"step": 1}
    assert (tmp_path / resume.METRICS).read_text() == lines[0]


def test_a_state_without_checksums_of_rows_is_not_trusted(tmp_path, capfd):
    write_checksummed(tmp_path / "resume.json", {"state": {"rows": 4}, "files": {}})
    assert load_state(tmp_path) is None
    assert "resume.json, which has no checksums of rows" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_the_saved_state_may_not_be_overwritten(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 1)  # the same content
    (tmp_path / "resume.1.bin").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"resume\.1\.bin: overwritten .* name files by their pro"):
        save_state(tmp_path, {"step": 2}, ["resume.1.bin"])


@pytest.mark.parametrize("name", ["values.npy", "resume.json", "resume.d/x"])
def test_files_of_a_state_have_prescribed_names(tmp_path, name):
    with pytest.raises(ValueError, match="a file of a state must be called"):
        save_state(tmp_path, {}, [name])


def save_two_states(root: Path) -> None:
    """Called in a process of its own by the next test."""

    def save_both(number: int) -> None:
        partial = root / str(number)
        partial.mkdir()
        save(partial, 1)
        (partial / "first").touch()
        save(partial, 2)

    for number in killed_at_each_change(save_both):
        partial = root / str(number)
        first = (partial / "first").exists()
        assert load_state(partial) in ([{"step": 1}, {"step": 2}] if first else [None, {"step": 1}])
    assert number > 20, number
    assert load_state(partial) == {"step": 2}


def test_a_state_survives_a_kill_at_any_change(tmp_path, capfd):
    in_a_process("test_resume", "save_two_states", tmp_path)
    assert "is damaged" not in capfd.readouterr().err


STOPPED = """
import sys
from pathlib import Path
from journey.engine import resume
clock = resume.Clock(Path(sys.argv[1]), seconds=60)
assert not clock.due()
clock.save({"rows": 1})
resume.request_stop()
assert clock.due()
try:
    clock.save({"rows": 2})
except resume.StoppedError as error:
    print(error)
"""


def test_a_process_that_is_asked_to_stop_stops_once_its_state_is_saved(tmp_path):
    before = resume.state_hash(tmp_path)
    command = [sys.executable, "-c", STOPPED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path.name}: stopped on request; its state is saved\n"
    assert load_state(tmp_path) == {"rows": 2}
    assert resume.state_hash(tmp_path) != before == ""
    assert not resume.stop_requested()


def test_a_clock_is_due_again_after_its_seconds(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(resume.time, "monotonic", lambda: now)
    clock = resume.Clock(tmp_path, seconds=5)
    for now in (104.9, 105.0):
        assert clock.due() is (now == 105.0)
    clock.save({"rows": 1})
    assert not clock.due()


def test_a_signal_may_arrive_while_another_is_handled(monkeypatch):
    """`request_stop` takes no lock, at whichever line it is interrupted by another call."""
    monkeypatch.setattr(resume, "_stop_requested", False)

    def again(frame, event, argument):
        sys.settrace(None)
        resume.request_stop()
        sys.settrace(again)
        return again

    def handle() -> None:
        sys.settrace(again)
        resume.request_stop()

    thread = threading.Thread(target=handle, daemon=True)
    thread.start()
    thread.join(600)
    assert not thread.is_alive()
    assert resume.stop_requested()
