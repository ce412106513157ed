"""States that interrupted stages resume from, and stopping on request."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from stages_for_tests import in_a_process, killed_at_each_line

from journey.engine import resume
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
    line = "the state of an interrupted run is damaged; computing the artifact anew\n"
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

    modules = ("engine/files.py", "engine/resume.py", "test_resume.py")
    for number in killed_at_each_line(save_both, modules):
        partial = root / str(number)
        first = (partial / "first").exists()
        assert load_state(partial) in ([{"step": 1}, {"step": 2}] if first else [None, {"step": 1}])
    assert number > 50
    assert load_state(partial) == {"step": 2}


def test_a_state_survives_a_kill_at_any_line(tmp_path, capfd):
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
