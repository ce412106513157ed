"""Stopping when asked to: what is kept then is what a run continues from."""

import subprocess
import sys
import threading

from journey.engine import resume

STOPPED = """
import sys
import threading
from pathlib import Path
from journey.artifacts import resume
partial = Path(sys.argv[1])
assert not resume.due(kept_at=float("inf"), seconds=60)
resume.keep(partial, {"rows": 1})
resume.ask_to_stop()
assert resume.due(kept_at=float("inf"), seconds=60)
try:
    resume.keep(partial, {"rows": 2})
except resume.StoppedError as error:
    print(error)
"""


def test_a_process_that_is_asked_to_stop_stops_once_its_state_is_kept(tmp_path):
    before = resume.state_hash(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{tmp_path.name}: stopped when asked to, and kept\n"
    assert resume.load_state(tmp_path) == {"rows": 2}
    assert resume.state_hash(tmp_path) != before == ""
    assert not resume.stop_requested()


def test_one_signal_may_come_while_another_is_handled(monkeypatch):
    """As Slurm's and the array task's own do, at once: whatever the first has come to, the second does not wait for it."""
    monkeypatch.setattr(resume, "_stop", False)  # and is so again afterwards

    def again(frame, event, argument):
        sys.settrace(None)
        resume.request_stop()
        sys.settrace(again)
        return again

    def handled() -> None:
        sys.settrace(again)
        resume.request_stop()

    asked = threading.Thread(target=handled, daemon=True)
    asked.start()
    asked.join(10)
    assert not asked.is_alive()
    assert resume.stop_requested()
