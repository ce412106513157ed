import dataclasses
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from stages_for_tests import Toy, ask, deaths

from journey.engine import files, manifest, provenance, store
from journey.engine.files import new_array, read_checksummed, write_checksummed, write_json
from journey.engine.manifest import MANIFEST, StoreError, differences
from journey.engine.resume import load_state, save_state
from journey.engine.spec import Spec, cache_key, key_fields, omitted_default
from journey.engine.store import Store

SPEC = Toy(3, of=Toy(1))
MODULES = tuple(f"artifacts/{name}.py" for name in ("store", "manifest", "files", "resume"))
CHILD = """
import errno, fcntl, os, resource, signal, sys
sys.path.insert(0, {tests!r})
from stages_for_tests import Toy, ask
{before}
ask({spec!r}, {root!r})
"""


def child(root: Path, spec: Spec, before: str = "", **pipes) -> subprocess.Popen:
    code = CHILD.format(tests=str(Path(__file__).parent), root=str(root), spec=spec, before=before)
    return subprocess.Popen([sys.executable, "-c", code], **pipes)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def checksums(root: Path, spec: Spec = SPEC) -> dict:
    return Store(root).find(spec).manifest["checksums"]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    return ask(SPEC, tmp_path_factory.mktemp("undisturbed")).manifest["checksums"]


def names(root: Path) -> list[str]:
    return sorted(p.name for p in (root / "toys").iterdir())


# -------------------------------------------------------------------------------------------- what is written


def test_the_manifest_says_what_was_made_and_how(root):
    manifest = json.loads((ask(SPEC, root).directory / MANIFEST).read_text())
    assert manifest["address"] == cache_key(SPEC)
    assert manifest["contents"] == key_fields(SPEC)
    assert manifest["parents"] == [cache_key(SPEC.of)]
    assert (manifest["work"], manifest["facts"]) == (2000.0, {"begun": 0})
    sizes = {"notes/text.txt": 8, "values.npy": 4000 + 128}
    assert {name: c["bytes"] for name, c in manifest["checksums"].items()} == sizes
    assert manifest["bytes"] == sum(sizes.values())
    assert list(manifest)[-1] == "sha256"


def test_a_made_artifact_is_read_and_holds_payload_only(root, monkeypatch):
    made = ask(SPEC, root)
    monkeypatch.setattr("stages_for_tests.make", lambda *_: pytest.fail("made again"))
    again = ask(SPEC, root)
    assert again.manifest == made.manifest
    np.testing.assert_array_equal(again.array("values.npy"), np.tile([3, 4], 500))
    assert sorted(p.name for p in made.path.iterdir()) == [
        MANIFEST,
        "notes",
        "values.npy",
        f"verified-{provenance.machine_id()}.json",
    ]
    assert names(root) == [cache_key(SPEC).split("/")[1]]


def test_packages_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "no-such-package"))
    assert set(provenance.package_versions.__wrapped__()) == {"python", "numpy"}


def test_neutral_fields_leave_addresses_alone():
    @dataclasses.dataclass(frozen=True)
    class Grown(Toy):
        later: int = omitted_default(7)

    assert cache_key(Grown(1)) == cache_key(Toy(1))
    assert cache_key(Grown(1, later=8)) != cache_key(Toy(1))
    assert key_fields(Grown(1, later=8))["later"] == 8


def test_an_address_follows_settings_and_parents():
    addresses = {cache_key(s) for s in (SPEC, Toy(3), Toy(3, of=Toy(2)), Toy(3, 999, Toy(1)))}
    assert len(addresses) == 4


# -------------------------------------------------------------------------------------------- what is refused


def flip(path: Path, bit: int = 0) -> None:
    """In place, its time as it was."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_every_flipped_bit_of_a_manifest_is_noticed(root):
    path = ask(SPEC, root).directory / MANIFEST
    whole = path.read_bytes()
    for bit in range(len(whole) * 8):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(StoreError):
            Store(root).find(SPEC)
    path.write_bytes(whole)
    assert Store(root).find(SPEC)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"[1, 2]",
        b"3",
        b'"text"',
        b"{}",
        b'{"contents": {',
        bytes(range(256)) * 9,
        b"\xff\xfe" * 200,
        b"[" * 9999,
    ],
    ids=[
        "empty",
        "null",
        "list",
        "filled-list",
        "number",
        "string",
        "object",
        "cut",
        "bytes",
        "no-text",
        "nested",
    ],
)
def test_what_is_no_manifest_is_refused_in_a_line(root, content):
    made = ask(SPEC, root).directory
    (made / MANIFEST).write_bytes(content)
    with pytest.raises(StoreError, match=f"unreadable manifest .*; delete {made} to make it anew$"):
        Store(root).find(SPEC)


@pytest.mark.parametrize(
    "key",
    [
        "address",
        "contents",
        "parents",
        "work",
        "facts",
        "checksums",
        "bytes",
        "seconds",
        "versions",
    ],
)
@pytest.mark.parametrize("value", [None, "text", ["list"], {"a": 1}], ids=str)
def test_a_field_of_another_type_is_refused(root, key, value):
    path = ask(SPEC, root).directory / MANIFEST
    manifest = json.loads(path.read_text())
    of_its_type = isinstance(value, type(manifest[key])) and key not in ("contents", "checksums")
    manifest.pop("sha256")
    if value is None:
        del manifest[key]
    else:
        manifest[key] = value
    write_checksummed(path, manifest)
    if of_its_type:
        assert Store(root).find(SPEC)
    else:
        with pytest.raises(
            StoreError, match=r"a field is missing or of another type|made from other settings"
        ):
            Store(root).find(SPEC)


def test_a_directory_without_a_manifest_is_refused(root):
    (root / cache_key(SPEC)).mkdir(parents=True)
    with pytest.raises(StoreError, match=r"unreadable manifest \(No such file or directory\)"):
        Store(root).find(SPEC)


def test_other_settings_are_refused_with_the_difference(root):
    made = ask(SPEC, root).directory
    manifest = read_checksummed(made / MANIFEST)
    del manifest["sha256"]
    manifest["contents"]["size"] = 5
    write_checksummed(made / MANIFEST, manifest)
    with pytest.raises(
        StoreError,
        match=f"^{made}: made from other settings: size: stored 5, wanted 1000; delete {made} ",
    ):
        Store(root).find(SPEC)


def test_a_payload_that_is_missing_or_of_another_size_is_found_out_without_hashing(
    root, monkeypatch
):
    made = ask(SPEC, root).directory
    monkeypatch.setattr(manifest, "checksum", lambda _: pytest.fail("hashed"))
    os.truncate(made / "values.npy", 100)
    with pytest.raises(
        StoreError, match=r"values\.npy: corrupted \(100 bytes, manifest says 4128\); delete"
    ):
        Store(root).find(SPEC)
    (made / "values.npy").unlink()
    with pytest.raises(StoreError, match=r"values\.npy: missing .*; delete"):
        Store(root).find(SPEC)


def test_what_was_found_is_remembered(root, monkeypatch):
    ask(SPEC, root)
    one = Store(root)
    found = one.find(SPEC)
    monkeypatch.setattr(store, "checked", lambda *_: pytest.fail("looked again"))
    assert one.find(SPEC) is found


# ------------------------------------------------------------------------------- verified once on every machine


def corrupted(name: str) -> str:
    return rf"{name}: corrupted \(sha256 [0-9a-f]{{12}}…, manifest says [0-9a-f]{{12}}…\); delete .* to make it anew$"


def test_who_commits_has_verified(root, monkeypatch):
    ask(SPEC, root)
    monkeypatch.setattr(manifest, "checksum", lambda _: pytest.fail("hashed"))
    assert Store(root).find(SPEC).path


def test_payload_is_hashed_again_when_it_was_touched(root):
    payload = ask(SPEC, root).directory / "values.npy"
    flip(payload, 4000 * 8)
    assert Store(root).find(SPEC).path, "same size, time and inode: this machine has verified it"
    os.utime(payload, ns=(1, 1))
    for _ in range(2):
        with pytest.raises(StoreError, match=corrupted("values.npy")):
            Store(root).find(SPEC).array("values.npy")
    flip(payload, 4000 * 8)
    assert Store(root).find(SPEC).path
    assert (
        list(
            read_checksummed(payload.parent / f"verified-{provenance.machine_id()}.json")["files"][
                "values.npy"
            ]
        )[1]
        == 1
    )


def test_replaced_payload_is_hashed_again(root):
    payload = ask(SPEC, root).directory / "values.npy"
    times, copy = payload.stat(), payload.with_suffix(".copy")
    shutil.copy(payload, copy)
    flip(copy, 4000 * 8)
    os.replace(copy, payload)
    os.utime(payload, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(StoreError, match=corrupted("values.npy")):
        _ = Store(root).find(SPEC).path


def test_another_machine_hashes_once(root, monkeypatch):
    payload = ask(SPEC, root).directory / "notes" / "text.txt"
    flip(payload)
    monkeypatch.setattr(manifest, "machine", lambda: "another")
    with pytest.raises(StoreError, match=corrupted("notes/text.txt")):
        _ = Store(root).find(SPEC).path
    flip(payload)
    assert Store(root).find(SPEC).path
    monkeypatch.setattr(manifest, "checksum", lambda _: pytest.fail("hashed"))
    assert Store(root).find(SPEC).path


@pytest.mark.parametrize("content", [b"", b"null", b"{", b"\xff" * 200])
def test_a_damaged_memory_is_none(root, content):
    made = ask(SPEC, root).directory
    (made / f"verified-{provenance.machine_id()}.json").write_bytes(content)
    flip(made / "values.npy", 4000 * 8)
    with pytest.raises(StoreError, match=corrupted("values.npy")):
        _ = Store(root).find(SPEC).path


def test_a_disk_that_only_reads_is_no_error(root, monkeypatch):
    made = ask(SPEC, root).directory
    memory = made / f"verified-{provenance.machine_id()}.json"
    memory.unlink()

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files, "replace_text", refuse)
    assert Store(root).find(SPEC).path == made
    assert not memory.exists()


def test_verify_lists_every_damaged_artifact_and_nothing_else(root):
    made = [ask(Toy(i), root).directory for i in range(8)]
    flip(made[0] / "values.npy", 4000 * 8)
    (made[1] / "values.npy").unlink()
    os.truncate(made[2] / "notes" / "text.txt", 3)
    flip(made[3] / MANIFEST, 99)
    (made[4] / MANIFEST).unlink()
    made[5] = made[5].rename(made[5].with_name("moved"))
    for ignored in ("toys/x.partial", "toys/.hidden", "logs/job", ".cache/thing"):
        (root / ignored).mkdir(parents=True)
    (root / "toys" / "x.lock").touch()
    lines = list(Store(root).verify())
    assert len(lines) == 6
    for directory in made[:6]:
        (line,) = (line for line in lines if line.endswith(f"; delete {directory} to make it anew"))
        assert line.startswith(str(directory))
        assert "\n" not in line
    assert list(Store(root / "nowhere").verify()) == []


# --------------------------------------------------------------------------------- kills, crowds and full disks

IN_THE_CHILD = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_store
test_store.{deed}(Path({root!r}))
"""


def in_a_process(deed: str, root: Path) -> None:
    """Deaths fork, which a process with threads, as pytest's, should not."""
    code = IN_THE_CHILD.format(tests=str(Path(__file__).parent), deed=deed, root=str(root))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def die_in_a_commit(root: Path) -> None:
    """At every line of the store, while an artifact is made, a kill leaves nothing or the artifact; then it is made the same."""
    expected = ask(SPEC, root / "undisturbed").manifest["checksums"]  # knows the commit from now on
    count = 0
    for number in deaths(lambda n: ask(SPEC, _fresh(root / str(n))), MODULES):
        killed = root / str(number)
        found = Store(killed).find(SPEC)
        assert found is None or found.manifest["checksums"] == expected
        about_to_rename = (
            found is None and (killed / f"{cache_key(SPEC)}.partial" / MANIFEST).exists()
        )
        again = ask(SPEC, killed).manifest
        assert again["checksums"] == expected
        assert not about_to_rename or again["facts"] == {"begun": 2}, (
            "until the rename, what a run resumes from is kept"
        )
        assert list(Store(killed).verify()) == []
        assert set(names(killed)) - {cache_key(SPEC).split("/")[1] + ".lock"} == {
            cache_key(SPEC).split("/")[1]
        }
        shutil.rmtree(killed)
        count += 1
    assert count > 100


def _fresh(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    return root


def test_killed_at_any_line_of_the_store_and_made_again_is_bit_identical(tmp_path):
    (tmp_path / "undisturbed").mkdir()
    in_a_process("die_in_a_commit", tmp_path)


def test_two_runs_at_once_make_it_once(root):
    spec = Toy(3, pause=0.5)
    first, second = (child(root, spec) for _ in range(2))
    assert first.wait(60) == second.wait(60) == 0
    assert names(root) == [cache_key(spec).split("/")[1]]
    assert len((root / "runs.txt").read_text().splitlines()) == 1


NO_LOCKS = """
def refuse(*_):
    raise OSError(errno.{error}, "no locks")
fcntl.flock = refuse
"""


@pytest.mark.parametrize("error", ["ENOLCK", "ENOTSUP", "ENOSYS"])
def test_without_locks_two_runs_at_once_end_in_one_artifact(root, error):
    spec = Toy(3, pause=1.0)
    first, second = (child(root, spec, NO_LOCKS.format(error=error)) for _ in range(2))
    assert first.wait(60) == second.wait(60) == 0
    assert names(root) == [cache_key(spec).split("/")[1]]
    assert list(Store(root).verify()) == []


def test_other_failures_of_a_lock_are_failures(root, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output error"):
        ask(SPEC, root)


@pytest.mark.parametrize(
    ("written", "said"),
    [("4321", "process 4321"), ("", "another process"), ("\xff?", "another process")],
)
def test_who_waits_says_for_whom(root, written, said):
    path = root / (cache_key(SPEC) + ".lock")
    path.parent.mkdir()
    path.write_bytes(written.encode("latin-1"))
    with open(path) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = child(root, SPEC, stderr=subprocess.PIPE, text=True)
        assert waiting.stderr.readline() == f"waiting for {cache_key(SPEC)}: {said} is making it\n"
        assert waiting.poll() is None
    assert waiting.wait(60) == 0
    assert waiting.stderr.read() == ""
    waiting.stderr.close()


def test_a_lock_holds_the_number_of_its_process(root):
    with Store(root).writing(SPEC) as partial:
        assert partial.with_suffix(".lock").read_text() == str(os.getpid())


@pytest.mark.parametrize("room", [2, 1000, 3000])
def test_a_disk_without_room_loses_nothing(root, undisturbed, room):
    """The kernel refuses to write more than so many bytes to a file: to the lock, to what a run resumes from, to the array."""
    before = f"signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))"
    assert child(root, SPEC, before, stderr=subprocess.DEVNULL).wait(60) == 1
    assert Store(root).find(SPEC) is None
    assert ask(SPEC, root).manifest["checksums"] == undisturbed
    assert names(root) == [cache_key(SPEC).split("/")[1]]


def test_no_room_for_a_manifest_loses_nothing(root, undisturbed, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store, "remember", full)
        with pytest.raises(OSError, match="No space left"):
            ask(SPEC, root)
    resumed_from = ask(SPEC, root).manifest
    assert resumed_from["facts"] == {"begun": 2}
    assert resumed_from["checksums"] == undisturbed


def test_what_a_kill_left_half_written_is_no_part_of_the_artifact(root, undisturbed):
    partial = root / (cache_key(SPEC) + ".partial")
    partial.mkdir(parents=True)
    for name in ("manifest.json.7.tmp", "resume.7.bin", "resume.json.7.tmp", "verified-x.json"):
        (partial / name).write_text("{")
    assert ask(SPEC, root).manifest["checksums"] == undisturbed


def test_a_second_rename_is_dropped(root):
    made = ask(SPEC, root)
    late = made.directory.with_name("late")
    late.mkdir()
    assert Store(root).commit(SPEC, late, 0.0, {}).manifest == made.manifest
    assert not late.exists()


# ---------------------------------------------------------------------------------------- places, costs, arrays


@pytest.mark.parametrize("path", ["file", "file/below", "/proc/x", "a\0b"])
def test_a_place_that_cannot_be_written_is_refused_in_a_line(tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"artifacts cannot be written here \(.+\)$"):
        Store(tmp_path / path).writable()


def test_a_place_that_can_be_written_is_left_empty(tmp_path):
    Store(tmp_path / "a" / "b").writable()
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_costs_are_of_the_manifest_or_of_what_a_pack_left_out(root):
    assert Store(root).cost(SPEC) is None
    left_out = {"seconds": 9.5, "bytes": 10, "work": 11.0, "facts": {"begun": 0}}
    write_json(root / "costs.json", {cache_key(SPEC): left_out})
    assert Store(root).cost(SPEC) == left_out
    manifest = ask(SPEC, root).manifest
    assert Store(root).cost(SPEC) == {key: manifest[key] for key in left_out}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}', b'{"a": {"seconds": 1}}', b"\xff"])
def test_damaged_costs_are_refused(root, content):
    (root / "costs.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"costs\.json: unreadable .* delete"):
        Store(root).cost(SPEC)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_reserves_nothing_is_written_to_all_the_same(
    tmp_path, monkeypatch, code
):
    def refuse(*_):
        raise OSError(code, "no reservation")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    new_array(tmp_path / "a.npy", (2, 3))[:] = 5
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.full((2, 3), 5, np.float32))


def test_no_room_for_an_array_is_an_error_at_once(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        new_array(tmp_path / "a.npy", (2, 3))


def test_differences_name_each_leaf():
    stored, wanted = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}
    assert differences(stored, wanted) == [
        "a.c: stored 2, wanted 5",
        "d: stored 3, wanted (nothing)",
        "e: stored (nothing), wanted 4",
    ]


def test_json_refuses_nan(tmp_path):
    for write in (write_json, write_checksummed):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write(tmp_path / "x.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_store_and_resume_import_no_torch():
    code = "import sys, journey.artifacts.store, journey.artifacts.resume; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------------------ resume


def save(partial: Path, step: int) -> None:
    (partial / f"resume.{step}.bin").write_bytes(bytes([step]) * 1000)
    save_state(partial, {"step": step}, [f"resume.{step}.bin"])


def test_what_was_kept_last_is_resumed(tmp_path):
    assert load_state(tmp_path) is None
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert load_state(tmp_path) == {"step": 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["resume.2.bin", "resume.json"]
    save_state(tmp_path, {"rows": 4})
    assert load_state(tmp_path) == {"rows": 4}
    assert [p.name for p in tmp_path.iterdir()] == ["resume.json"]


def test_a_newer_file_that_was_not_kept_yet_is_no_damage(tmp_path, capfd):
    save(tmp_path, 1)
    (tmp_path / "resume.2.bin").write_bytes(b"half")
    assert load_state(tmp_path) == {"step": 1}
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["resume.json", "resume.1.bin"])
@pytest.mark.parametrize("damage", ["flip", "cut", "garbage"])
def test_damage_is_said_and_begins_anew(tmp_path, capfd, name, damage):
    save(tmp_path, 1)
    (tmp_path / "values.npy").write_text("payload")
    path = tmp_path / name
    if damage == "flip":
        flip(path, 8 * 25 + 3)
    else:
        path.write_bytes(path.read_bytes()[:20] if damage == "cut" else b"\xffnull")
    assert load_state(tmp_path) is None
    line = f"{tmp_path}: what an interrupted run left is damaged; starting this artifact anew\n"
    assert capfd.readouterr().err == line
    assert [p.name for p in tmp_path.iterdir()] == ["values.npy"]
    assert load_state(tmp_path) is None
    assert capfd.readouterr().err == ""


def test_a_missing_file_is_damage(tmp_path, capfd):
    save(tmp_path, 1)
    (tmp_path / "resume.1.bin").unlink()
    assert load_state(tmp_path) is None
    assert "is damaged" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_flipped_bit_of_a_kept_state_is_noticed(tmp_path):
    save(tmp_path, 1)
    kept = {p: p.read_bytes() for p in tmp_path.iterdir()}
    for bit in range(len(kept[tmp_path / "resume.json"]) * 8):
        for path, content in kept.items():
            path.write_bytes(content)
        flip(tmp_path / "resume.json", bit)
        assert load_state(tmp_path) is None


def test_a_file_that_a_run_resumes_from_may_not_be_overwritten(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 1)  # the same contents
    (tmp_path / "resume.1.bin").write_bytes(b"other")
    with pytest.raises(
        ValueError, match=r"resume\.1\.bin: overwritten .* name files by their progress"
    ):
        save_state(tmp_path, {"step": 2}, ["resume.1.bin"])


@pytest.mark.parametrize("name", ["values.npy", "resume.json", "resume.d/x"])
def test_files_to_resume_from_are_called_so(tmp_path, name):
    with pytest.raises(ValueError, match="a file to resume from is called"):
        save_state(tmp_path, {}, [name])


def die_in_keep(root: Path) -> None:
    def deed(number: int) -> None:
        partial = _fresh(root / str(number))
        save(partial, 1)
        (partial / "first").touch()
        save(partial, 2)

    for number in deaths(deed, (*MODULES, "test_store.py")):
        partial = root / str(number)
        first = (partial / "first").exists()
        assert load_state(partial) in ([{"step": 1}, {"step": 2}] if first else [None, {"step": 1}])
    assert number > 50
    assert load_state(partial) == {"step": 2}


def test_killed_at_any_line_of_keep_a_state_is_left(tmp_path, capfd):
    in_a_process("die_in_keep", tmp_path)
    assert "is damaged" not in capfd.readouterr().err
