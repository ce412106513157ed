"""The store: manifests, verification, kills, several processes, full disks."""

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
from stages_for_tests import Toy, compute, in_a_process, killed_at_each_change

from journey.engine import files, provenance, store
from journey.engine.files import new_array, read_checksummed, write_checksummed, write_json
from journey.engine.provenance import machine_id
from journey.engine.spec import Spec, cache_key, key_fields, omitted_default
from journey.engine.store import COST_FIELDS, MANIFEST, MANIFEST_FIELDS, Store, StoreError

SPEC = Toy(3, parent=Toy(1))
NAME = cache_key(SPEC).split("/")[1]


def child(root: Path, spec: Spec, before: str = "", **pipes) -> subprocess.Popen:
    """Start a process that computes an artifact."""
    code = f"""
import errno, fcntl, os, resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from stages_for_tests import Toy, compute
{before}
compute({spec!r}, {str(root)!r})
"""
    return subprocess.Popen([sys.executable, "-c", code], **pipes)


def fail_with(code: int, message: str):
    """Return a function that raises an OSError, whatever its arguments."""

    def fail(*_):
        raise OSError(code, message)

    return fail


def fail_test(*_):
    pytest.fail("must not be called")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


@pytest.fixture
def directory(root):
    return compute(SPEC, root).directory


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    return compute(SPEC, tmp_path_factory.mktemp("undisturbed")).manifest["checksums"]


def names(root: Path) -> list[str]:
    return sorted(p.name for p in (root / "toys").iterdir())


# ---------------------------------------------------------------------------------- what is written


def test_the_manifest_describes_the_artifact(directory):
    manifest = json.loads((directory / MANIFEST).read_text())
    assert manifest["cache_key"] == cache_key(SPEC)
    assert manifest["key_fields"] == key_fields(SPEC)
    assert manifest["parents"] == [cache_key(SPEC.parent)]
    assert (manifest["work"], manifest["metadata"]) == (2000.0, {"first": 0})
    sizes = {"notes/text.txt": 8, "values.npy": 4000 + 128}
    assert {name: file["bytes"] for name, file in manifest["checksums"].items()} == sizes
    assert manifest["bytes"] == sum(sizes.values())
    assert list(manifest)[-1] == "sha256"


def test_an_artifact_is_computed_once_and_contains_only_its_payload(root, monkeypatch):
    first = compute(SPEC, root)
    monkeypatch.setattr("stages_for_tests.make", fail_test)
    again = compute(SPEC, root)
    assert again.manifest == first.manifest
    np.testing.assert_array_equal(again.array("values.npy"), np.tile([3, 4], 500))
    expected = [MANIFEST, "notes", "values.npy", f"verified-{machine_id()}.json"]
    assert sorted(p.name for p in first.path.iterdir()) == expected
    assert names(root) == [NAME]


def test_versions_leave_out_packages_that_are_not_installed(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "no-such-package"))
    assert set(provenance.package_versions.__wrapped__()) == {"python", "numpy"}


def test_a_new_field_with_its_omitted_default_leaves_cache_keys_alone():
    @dataclasses.dataclass(frozen=True)
    class Grown(Toy):
        later: int = omitted_default(7)

    Grown.__module__ = Toy.__module__  # the key of a user's spec has a hash of its source file
    assert cache_key(Grown(1)) == cache_key(Toy(1))
    assert cache_key(Grown(1, later=8)) != cache_key(Toy(1))
    assert key_fields(Grown(1, later=8))["later"] == 8


def test_a_cache_key_depends_on_settings_and_parents():
    specs = (SPEC, Toy(3), Toy(3, parent=Toy(2)), Toy(3, 999, Toy(1)))
    assert len({cache_key(spec) for spec in specs}) == 4


# ---------------------------------------------------------------------------------- what is refused


def flip(path: Path, bit: int = 0) -> None:
    """Flip a bit of a file in place, and restore the file's time."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def flip_payload(directory: Path) -> None:
    flip(directory / "values.npy", 4000 * 8)


def test_every_flipped_bit_of_a_manifest_is_noticed(root, directory):
    path = directory / MANIFEST
    for bit in range(path.stat().st_size * 8):
        flip(path, bit)
        with pytest.raises(StoreError):
            Store(root).find(SPEC)
        flip(path, bit)
    assert Store(root).find(SPEC)


NO_MANIFESTS = {
    "missing": None,
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "filled list": b"[1, 2]",
    "number": b"3",
    "string": b'"text"',
    "object": b"{}",
    "cut": b'{"key_fields": {',
    "bytes": bytes(range(256)) * 9,
    "no text": b"\xff\xfe" * 200,
    "nested": b"[" * 9999,
}


@pytest.mark.parametrize("content", NO_MANIFESTS.values(), ids=NO_MANIFESTS)
def test_a_missing_or_malformed_manifest_is_refused_in_a_line(root, directory, content):
    if content is None:
        (directory / MANIFEST).unlink()
    else:
        (directory / MANIFEST).write_bytes(content)
    message = f"unreadable manifest .*; delete {directory} to compute it again$"
    with pytest.raises(StoreError, match=message):
        Store(root).find(SPEC)


def rewrite(path: Path, **changes) -> None:
    """Write a manifest with other fields and a valid checksum; None removes a field."""
    manifest = read_checksummed(path) | changes
    manifest.pop("sha256")
    write_checksummed(path, {key: value for key, value in manifest.items() if value is not None})


@pytest.mark.parametrize("key", MANIFEST_FIELDS)
@pytest.mark.parametrize("value", [None, "text", ["list"], {"a": 1}], ids=str)
def test_a_manifest_field_of_another_type_is_refused(root, directory, key, value):
    manifest = read_checksummed(directory / MANIFEST)
    rewrite(directory / MANIFEST, **{key: value})
    if isinstance(value, type(manifest[key])) and key not in ("key_fields", "checksums"):
        assert Store(root).find(SPEC)
    else:
        message = "a field is missing or has another type|computed from other settings"
        with pytest.raises(StoreError, match=message):
            Store(root).find(SPEC)


def test_other_settings_are_refused_with_the_difference(root, directory):
    fields = read_checksummed(directory / MANIFEST)["key_fields"]
    rewrite(directory / MANIFEST, key_fields=fields | {"size": 5})
    problem = f"^{directory}: computed from other settings: size: stored 5, expected 1000; delete "
    with pytest.raises(StoreError, match=problem):
        Store(root).find(SPEC)


def test_missing_and_resized_files_are_noticed_without_hashing(root, directory, monkeypatch):
    monkeypatch.setattr(store, "checksum", fail_test)
    os.truncate(directory / "values.npy", 100)
    problem = r"values\.npy: corrupted \(100 bytes, manifest says 4128\); delete"
    with pytest.raises(StoreError, match=problem):
        Store(root).find(SPEC)
    (directory / "values.npy").unlink()
    with pytest.raises(StoreError, match=r"values\.npy: missing .*; delete"):
        Store(root).find(SPEC)


def test_a_store_reads_a_manifest_once(root, directory, monkeypatch):
    opened = Store(root)
    artifact = opened.find(SPEC)
    monkeypatch.setattr(store, "_read_manifest", fail_test)
    assert opened.find(SPEC) is artifact


# ------------------------------------------------------------------------ verified once per machine


def corrupted(name: str) -> str:
    hashes = r"sha256 [0-9a-f]{12}…, manifest says [0-9a-f]{12}…"
    return rf"{name}: corrupted \({hashes}\); delete .* to compute it again$"


def test_the_machine_that_commits_has_verified(root, directory, monkeypatch):
    monkeypatch.setattr(store, "checksum", fail_test)
    assert Store(root).find(SPEC).path == directory


def test_a_touched_payload_is_hashed_again(root, directory):
    payload = directory / "values.npy"
    flip_payload(directory)
    assert Store(root).find(SPEC).path, "same size, time and inode: this machine has verified it"
    os.utime(payload, ns=(1, 1))
    for _ in range(2):
        with pytest.raises(StoreError, match=corrupted("values.npy")):
            Store(root).find(SPEC).array("values.npy")
    flip_payload(directory)
    assert Store(root).find(SPEC).path
    record = read_checksummed(directory / f"verified-{machine_id()}.json")
    assert record["files"]["values.npy"][1] == 1


def test_a_replaced_payload_is_hashed_again(root, directory):
    payload = directory / "values.npy"
    times, copy = payload.stat(), payload.with_suffix(".copy")
    shutil.copy(payload, copy)
    flip(copy, 4000 * 8)
    os.replace(copy, payload)
    os.utime(payload, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(StoreError, match=corrupted("values.npy")):
        _ = Store(root).find(SPEC).path


def test_another_machine_hashes_once(root, directory, monkeypatch):
    payload = directory / "notes" / "text.txt"
    flip(payload)
    monkeypatch.setattr(store, "machine_id", lambda: "another")
    with pytest.raises(StoreError, match=corrupted("notes/text.txt")):
        _ = Store(root).find(SPEC).path
    flip(payload)
    assert Store(root).find(SPEC).path
    monkeypatch.setattr(store, "checksum", fail_test)
    assert Store(root).find(SPEC).path


@pytest.mark.parametrize("content", [b"", b"null", b"{", b"\xff" * 200])
def test_a_damaged_record_of_verification_is_ignored(root, directory, content):
    (directory / f"verified-{machine_id()}.json").write_bytes(content)
    flip_payload(directory)
    with pytest.raises(StoreError, match=corrupted("values.npy")):
        _ = Store(root).find(SPEC).path


def test_a_read_only_disk_is_no_error(root, directory, monkeypatch):
    record = directory / f"verified-{machine_id()}.json"
    record.unlink()
    monkeypatch.setattr(files, "replace_text", fail_with(errno.EROFS, "Read-only file system"))
    assert Store(root).find(SPEC).path == directory
    assert not record.exists()


def test_verify_lists_every_damaged_artifact_and_nothing_else(root):
    directories = [compute(Toy(i), root).directory for i in range(8)]
    flip_payload(directories[0])
    (directories[1] / "values.npy").unlink()
    os.truncate(directories[2] / "notes" / "text.txt", 3)
    flip(directories[3] / MANIFEST, 99)
    (directories[4] / MANIFEST).unlink()
    directories[5] = directories[5].rename(directories[5].with_name("moved"))
    for ignored in ("toys/x.partial", "toys/.hidden", "logs/job", ".cache/thing"):
        (root / ignored).mkdir(parents=True)
    (root / "toys" / "x.lock").touch()
    lines = list(Store(root).verify())
    assert len(lines) == 6
    for directory in directories[:6]:
        end = f"; delete {directory} to compute it again"
        (line,) = (line for line in lines if line.endswith(end))
        assert line.startswith(str(directory))
        assert "\n" not in line
    assert list(Store(root / "nowhere").verify()) == []


# ---------------------------------------------------------- kills, several processes and full disks


def die_in_a_commit(root: Path) -> None:
    """Called in a process of its own by the next test."""
    expected = compute(SPEC, root / "undisturbed").manifest["checksums"]

    def compute_in_new_store(number: int) -> None:
        (root / str(number)).mkdir()
        compute(SPEC, root / str(number))

    count = 0
    for number in killed_at_each_change(compute_in_new_store):
        killed = root / str(number)
        artifact = Store(killed).find(SPEC)
        assert artifact is None or artifact.manifest["checksums"] == expected
        has_manifest = (killed / f"{cache_key(SPEC)}.partial" / MANIFEST).exists()
        again = compute(SPEC, killed).manifest
        assert again["checksums"] == expected
        if artifact is None and has_manifest:
            message = "the state is there until the rename"
            assert again["metadata"] == {"first": 2}, message
        assert list(Store(killed).verify()) == []
        assert set(names(killed)) - {f"{NAME}.lock"} == {NAME}
        shutil.rmtree(killed)
        count += 1
    assert count > 50


def test_killed_at_any_change_a_second_run_ends_with_the_same_artifact(tmp_path):
    (tmp_path / "undisturbed").mkdir()
    in_a_process("test_store", "die_in_a_commit", tmp_path)


def test_two_runs_at_once_compute_an_artifact_once(root):
    spec = Toy(3, pause=0.5)
    first, second = child(root, spec), child(root, spec)
    assert first.wait(600) == second.wait(600) == 0
    assert names(root) == [cache_key(spec).split("/")[1]]
    assert len((root / "runs.txt").read_text().splitlines()) == 1


NO_LOCKS = """
def refuse(*_):
    raise OSError(errno.{error}, "no locks")
fcntl.flock = refuse
"""


@pytest.mark.parametrize("error", ["ENOLCK", "ENOTSUP", "ENOSYS"])
def test_without_locks_two_runs_at_once_end_with_one_artifact(root, error):
    spec = Toy(3, pause=1.0)
    first, second = (child(root, spec, NO_LOCKS.format(error=error)) for _ in range(2))
    assert first.wait(600) == second.wait(600) == 0
    assert names(root) == [cache_key(spec).split("/")[1]]
    assert list(Store(root).verify()) == []


def test_other_failures_of_a_lock_are_errors(root, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", fail_with(errno.EIO, "Input/output error"))
    with pytest.raises(OSError, match="Input/output error"):
        compute(SPEC, root)


@pytest.mark.parametrize(
    ("content", "holder"),
    [(b"4321", "process 4321"), (b"", "another process"), (b"\xff?", "another process")],
)
def test_a_waiting_process_names_the_holder_of_the_lock(root, content, holder):
    path = root / (cache_key(SPEC) + ".lock")
    path.parent.mkdir()
    path.write_bytes(content)
    assert Store(root).locked_keys() == []
    with open(path) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert Store(root).locked_keys() == [cache_key(SPEC)]
        waiting = child(root, SPEC, stderr=subprocess.PIPE, text=True)
        assert (
            waiting.stderr.readline() == f"waiting for {cache_key(SPEC)}: {holder} has its lock\n"
        )
        assert waiting.poll() is None
    assert waiting.wait(60) == 0
    assert waiting.stderr.read() == ""
    waiting.stderr.close()


def test_a_lock_contains_the_number_of_its_process(root):
    with Store(root).writing(SPEC) as partial:
        assert partial.with_suffix(".lock").read_text() == str(os.getpid())


@pytest.mark.parametrize("size", [2, 1000, 3000])
def test_a_full_disk_loses_nothing(root, undisturbed, size):
    """The kernel refuses files above a size: the lock, the state, the array."""
    limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
    before = f"signal.signal(signal.SIGXFSZ, signal.SIG_IGN); {limit}"
    assert child(root, SPEC, before, stderr=subprocess.DEVNULL).wait(60) == 1
    assert Store(root).find(SPEC) is None
    assert compute(SPEC, root).manifest["checksums"] == undisturbed
    assert names(root) == [NAME]


def test_a_disk_without_room_for_a_manifest_loses_nothing(root, undisturbed, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(store, "write_checksummed", fail_with(errno.ENOSPC, "No space left"))
        with pytest.raises(OSError, match="No space left"):
            compute(SPEC, root)
    manifest = compute(SPEC, root).manifest
    assert manifest["metadata"] == {"first": 2}
    assert manifest["checksums"] == undisturbed


def test_half_written_files_do_not_become_part_of_an_artifact(root, undisturbed):
    partial = root / (cache_key(SPEC) + ".partial")
    partial.mkdir(parents=True)
    for name in ("manifest.json.7.tmp", "resume.7.bin", "resume.json.7.tmp", "verified-x.json"):
        (partial / name).write_text("{")
    assert compute(SPEC, root).manifest["checksums"] == undisturbed


def test_a_second_commit_is_dropped(root):
    artifact = compute(SPEC, root)
    late = artifact.directory.with_name("late")
    late.mkdir()
    assert Store(root).commit(SPEC, late, 0.0, {}, {}).manifest == artifact.manifest
    assert not late.exists()


# ----------------------------------------------------------------------- directories, costs, arrays


@pytest.mark.parametrize("path", ["file", "file/below", "/proc/x", "a\0b"])
def test_a_directory_that_cannot_be_written_is_refused_in_a_line(tmp_path, path):
    (tmp_path / "file").write_text("")
    Store(tmp_path / "a" / "b").check_writable()
    assert list((tmp_path / "a" / "b").iterdir()) == [], "the check leaves nothing"
    with pytest.raises(StoreError, match=r"artifacts cannot be written here \(.+\)$"):
        Store(tmp_path / path).check_writable()


def test_costs_are_those_of_the_manifest_or_of_a_bundle(root):
    assert Store(root).cost(SPEC) is None
    left_out = {"seconds": 9.5, "bytes": 10, "work": 11.0, "metadata": {"first": 0}}
    write_json(root / "costs.json", {cache_key(SPEC): left_out})
    assert Store(root).cost(SPEC) == left_out
    manifest = compute(SPEC, root).manifest
    assert Store(root).cost(SPEC) == {key: manifest[key] for key in COST_FIELDS}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}', b'{"a": {"seconds": 1}}', b"\xff"])
def test_damaged_costs_are_refused(root, content):
    (root / "costs.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"costs\.json: unreadable .* delete"):
        Store(root).cost(SPEC)


def test_the_space_of_an_array_is_reserved_if_possible(tmp_path, monkeypatch):
    for code in (errno.EOPNOTSUPP, errno.EINVAL):
        monkeypatch.setattr(os, "posix_fallocate", fail_with(code, "no reservation"))
        new_array(tmp_path / "a.npy", (2, 3))[:] = 5
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.full((2, 3), 5, np.float32))
    monkeypatch.setattr(os, "posix_fallocate", fail_with(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        new_array(tmp_path / "a.npy", (2, 3))


def test_differences_name_each_leaf():
    stored, expected = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}
    assert store.differences(stored, expected) == [
        "a.c: stored 2, expected 5",
        "d: stored 3, expected (nothing)",
        "e: stored (nothing), expected 4",
    ]


def test_json_refuses_nan(tmp_path):
    for write in (write_json, write_checksummed):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write(tmp_path / "x.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_the_engine_imports_no_torch():
    modules = "journey.engine.costs, journey.engine.metrics, journey.engine.resume"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
