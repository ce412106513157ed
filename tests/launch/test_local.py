import contextlib
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_stages import TIMEOUT, Toy, compute, wait_until, workspace

from journey.engine.checks import ConfigError
from journey.engine.spec import cache_key
from journey.launch.jobs import JobsFailedError
from journey.launch.local import Local, num_cores

HERE = Path(__file__).parent


def text_of(space, spec: Toy) -> str:
    return (space.store.find(spec).path / "text.txt").read_text()


def pyramid() -> Toy:
    base = [Toy(label) for label in "abcd"]
    return Toy("top", (Toy("left", tuple(base[:3])), Toy("right", tuple(base[1:]))))


def is_alive(path: Path) -> bool:
    """Return whether a process still counts in a file."""
    before = path.read_text() if path.exists() else None
    time.sleep(0.5)
    return path.exists() and path.read_text() != before


@pytest.mark.parametrize("workers", [1, 3])
def test_results_do_not_depend_on_the_number_of_workers(tmp_path, workers):
    top = pyramid()
    space = workspace(tmp_path, workers)
    labels = compute([top], space)
    assert sorted(labels) == ["a", "b", "c", "d", "left", "right", "top"]
    assert text_of(space, top) == "top(left(a(),b(),c()),right(b(),c(),d()))"


def test_jobs_of_a_group_are_computed_together(tmp_path):
    root = Toy("root")
    specs = [Toy(label, (root,), family="same") for label in "abcde"]
    specs += [Toy("other", (root,), family="another"), Toy("single", (root,))]
    space = workspace(tmp_path, 1, stack=3)
    compute(specs, space)
    sizes = []
    for spec in specs:
        path = space.store.find(spec).path / "together.txt"
        sizes.append(int(path.read_text()) if path.exists() else 1)
    assert sizes == [3, 3, 3, 2, 2, 1, 1]


@pytest.mark.parametrize("action", ["fail", "die"])
def test_a_group_with_a_broken_job_is_computed_one_by_one(tmp_path, action):
    specs = [Toy(label, family="same") for label in "abc"]
    specs.append(Toy("broken", (), action, str(tmp_path / "log"), family="same"))
    space = workspace(tmp_path / "store", 1, stack=4)
    with pytest.raises(JobsFailedError, match=r"^toys/broken-"):
        compute(specs, space)
    for spec in specs[:3]:
        assert not (space.store.find(spec).path / "together.txt").exists()
    assert space.store.find(specs[3]) is None


def test_one_worker_follows_the_priorities(tmp_path):
    order = str(tmp_path / "order")
    first, third = Toy("1", (), "append_label", order), Toy("3", (), "append_label", order)
    second = Toy("2", (first,), "append_label", order)
    assert compute([second, third], workspace(tmp_path / "store", 1)) == ["1", "2", "3"]
    assert Path(order).read_text() == "1 2 3 "


def test_what_another_run_computes_comes_last(tmp_path):
    """Its lock is released once the job of lower priority is done."""
    space, file = workspace(tmp_path / "store", 1), tmp_path / "file"
    locked, other = Toy("0"), Toy("1", (), "touch", str(file))
    with contextlib.ExitStack() as stack:
        stack.enter_context(space.store.writing(locked))
        run = space.compute.make([locked, other], space)
        assert next(run) == other
        stack.pop_all().close()
        assert list(run) == [locked]


def test_only_missing_artifacts_are_computed(tmp_path, capfd):
    top = pyramid()
    space = workspace(tmp_path)
    assert len(compute([top.needs[0]], space)) == 4
    assert sorted(compute([top], space)) == ["d", "right", "top"]
    capfd.readouterr()
    assert compute([top], space) == []
    assert capfd.readouterr() == ("", "")


def test_a_job_starts_once_its_inputs_exist(tmp_path):
    """The slow job ends only when a grandchild of a quick one has run."""
    marker = str(tmp_path / "marker")
    slow = Toy("slow", (), "wait_for_file", marker)
    grandchild = Toy("grandchild", (Toy("child", (Toy("quick"),)),), "touch", marker)
    assert compute([slow, grandchild], workspace(tmp_path / "store", 2)) == [
        "quick",
        "child",
        "grandchild",
        "slow",
    ]


def test_workers_share_the_cores_however_few_jobs_there_are(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    space = workspace(tmp_path, 2)
    one = Toy("one")
    compute([one], space)
    assert (space.store.find(one).path / "threads.txt").read_text() == str(max(1, num_cores() // 2))


def test_a_failed_job_stops_no_other_and_is_named_with_its_log(tmp_path):
    broken, exits, good = Toy("broken", (), "fail"), Toy("exits", (), "leave"), pyramid()
    blocked = Toy("blocked", (broken, Toy("side")))
    space = workspace(tmp_path)
    with pytest.raises(JobsFailedError) as caught:
        compute([blocked, exits, good], space)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2, "a job that needs a failed one is not tried"
    log = Path(lines[0].split("(log: ")[1].rstrip(")"))
    assert lines[0] == f"{cache_key(broken)}: ValueError: this toy is broken (log: {log})"
    assert lines[1].startswith(f"{cache_key(exits)}: SystemExit: no more toys (log: ")
    assert log == tmp_path / "logs" / f"{cache_key(broken).replace('/', '-')}.log"
    assert "Traceback" in log.read_text()
    assert all(space.store.find(spec) for spec in (good, Toy("side")))


def test_a_killed_worker_costs_only_time(tmp_path):
    marker = tmp_path / "marker"
    victim = Toy("victim", (Toy("need"),), "die_once", str(marker))
    labels = compute([Toy("after", (victim,)), pyramid()], workspace(tmp_path / "store"))
    assert "after" in labels
    assert len(labels) == 10
    assert marker.read_text() == "x"


def test_a_job_whose_worker_is_killed_twice_fails_alone(tmp_path):
    marker = tmp_path / "marker"
    victim, crash, good = (
        Toy("victim", (), "die", str(marker)),
        Toy("crash", (), "exit_at_once"),
        pyramid(),
    )
    space = workspace(tmp_path / "store")
    with pytest.raises(JobsFailedError) as caught:
        compute([victim, Toy("after", (victim,)), crash, good], space)
    assert sorted(str(caught.value).splitlines()) == [
        f"{cache_key(crash)}: the worker process ended twice (exit code 3)",
        f"{cache_key(victim)}: the worker process was killed twice (out of memory?)",
    ]
    assert marker.read_text() == "xx"
    assert space.store.find(good)


def test_a_spec_that_cannot_be_pickled_fails_by_name(tmp_path):
    class Inner:
        pass

    inner, good = Toy("inner", component=None), pyramid()
    object.__setattr__(inner, "extra", Inner())  # not in the key, but sent
    space = workspace(tmp_path)
    with pytest.raises(JobsFailedError, match=f"{cache_key(inner)}: .*Inner"):
        compute([inner, good], space)
    assert space.store.find(good)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(inner)


@pytest.mark.parametrize("ending", ["close", "raise"])
def test_closing_the_generator_stops_the_workers(tmp_path, ending):
    heart = tmp_path / "heart"
    space = workspace(tmp_path / "store")
    specs = space.compute.make([Toy("heart", (), "beat", str(heart)), Toy("quick")], space)
    assert next(specs).label == "quick"
    wait_until(heart.exists)
    if ending == "close":
        specs.close()
    else:
        with contextlib.suppress(KeyboardInterrupt):
            specs.throw(KeyboardInterrupt)
    assert not is_alive(heart)


SCRIPT = """
import sys
from dataclasses import dataclass
from typing import ClassVar
from pathlib import Path
from journey.engine.spec import Component
from toy_stages import Toy, compute, workspace

@dataclass
class Mine(Component):
    name: ClassVar[str] = "mine"
    word: str = "hello"

    def action(self):
        return self.word

"""
GUARD = 'if __name__ == "__main__":\n    '


@contextlib.contextmanager
def script(tmp_path: Path, body: str, **options):
    """Yield a process that runs a user's script in an own folder."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT + body)
    environment = {**os.environ, "PYTHONPATH": str(HERE), **options.pop("env", {})}
    # A background job of a shell ignores Ctrl-C, and so would the script.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        [sys.executable, str(path)], cwd=tmp_path, env=environment, text=True, **options
    ) as process:
        yield process
        process.kill()


def run_script(tmp_path: Path, body: str, **options) -> tuple[int, str, str]:
    with script(
        tmp_path, body, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    ) as process:
        return process.wait(), *process.communicate()


def test_a_class_of_a_script_reaches_the_workers(tmp_path):
    specs = '[Toy("own", (Toy("need"),), component=Mine("bye"))]'
    body = GUARD + f'print(compute({specs}, workspace("store")))'
    code, out, err = run_script(tmp_path, body)
    assert (code, err) == (0, "")
    assert out.splitlines() == ["2 to compute: toy_stages x2", "['need', 'own']"]
    assert [path.read_text() for path in tmp_path.glob("store/toys/own-*/text.txt")] == [
        "bye(need())"
    ]


def test_a_script_without_a_guard_gets_a_clear_error(tmp_path):
    code, _, err = run_script(tmp_path, 'compute([Toy("a")], workspace("store"))')
    assert code == 1
    assert "no job can be started" in err
    assert '`if __name__ == "__main__":`' in err


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path, end):
    heart = tmp_path / "heart"
    body = GUARD + 'compute([Toy("heart", (), "beat", "heart")], workspace("store"))'
    with script(tmp_path, body, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(heart.exists)
        process.send_signal(end)
        assert process.wait(TIMEOUT) != 0
        wait_until(lambda: not is_alive(heart))


def test_control_c_gives_one_traceback_and_leaves_no_worker(tmp_path):
    """The signal reaches the whole group of processes."""
    heart = tmp_path / "heart"
    body = GUARD + 'compute([Toy("heart", (), "beat", "heart"), Toy("b")], workspace("store"))'
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    with script(tmp_path, body, **pipes) as process:
        wait_until(heart.exists)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT)
    assert err.count("Traceback") == 1
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert not is_alive(heart)


def test_python_can_end_with_an_open_generator(tmp_path):
    heart = tmp_path / "heart"
    body = GUARD + (
        "space, targets = workspace('store'), [Toy('heart', (), 'beat', 'heart'), Toy('quick')]\n"
        "    specs = space.compute.make(targets, space)\n"
        "    print(next(specs).label)\n"
    )
    code, out, err = run_script(tmp_path, body)
    assert (code, err) == (0, "")
    assert out.splitlines()[1] == "quick"
    assert not is_alive(heart)


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda", "cuda:3"])
def test_devices(device):
    Local(device=device).check("compute")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "gpu"}, "compute.device=gpu: must be cpu, mps, cuda or cuda:N"),
        ({"device": "cuda:"}, "compute.device=cuda:"),
        ({"workers": -1}, "compute.workers=-1: must be in 0"),
        ({"workers": 10**6}, "compute.workers=1000000: must be in 0"),
        ({"gradient_memory_gib": math.nan}, "compute.gradient_memory_gib=nan"),
        ({"gradient_memory_gib": math.inf}, "compute.gradient_memory_gib=inf"),
        ({"checkpoint_seconds": -1.0}, "compute.checkpoint_seconds=-1.0"),
        ({"checkpoint_seconds": math.nan}, "compute.checkpoint_seconds=nan"),
    ],
)
def test_settings_are_refused_by_name(settings, message):
    with pytest.raises(ConfigError) as caught:
        Local(**settings).check("compute")
    assert message in str(caught.value)


def test_the_number_of_cores_limits_workers():
    with pytest.raises(ConfigError, match=f"this process may use {num_cores()} cores"):
        Local(workers=4 * num_cores() + 1).check("compute")


def test_default_number_of_workers():
    assert Local().num_workers == num_cores()
    assert Local(device="cuda").num_workers == 1
    assert Local(device="cuda", workers=3).num_workers == 3
