"""Stored bytes on a local folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import Settings
from app.storage import PART_BYTES, ObjectNotFoundError, ObjectStorage


def test_an_object_is_invisible_until_it_is_published(storage: ObjectStorage) -> None:
    with storage.open_writer("a/b") as writer:
        writer.write(b"x" * (PART_BYTES + 1))
        assert not storage.exists("a/b")
        writer.publish()
    assert storage.size("a/b") == PART_BYTES + 1
    assert storage.get("a/b") == b"x" * (PART_BYTES + 1)


def test_a_dropped_object_leaves_no_file(storage: ObjectStorage, tmp_path: Path) -> None:
    with storage.open_writer("a/b") as writer:
        writer.write(b"x" * (PART_BYTES * 2 + 1))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_killed_writers_left_is_swept_when_it_is_old(
    storage: ObjectStorage, settings: Settings, tmp_path: Path
) -> None:
    storage.put("files/whole", b"x")
    program = (
        "import os, sys; from app.storage import ObjectStorage\n"
        "writer = ObjectStorage(sys.argv[1]).open_writer('files/half'); writer.write(b'x' * 20_000_000); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", program, settings.resolved_storage_url], check=False)
    (left,) = [path for path in tmp_path.rglob("*half*") if path.is_file()]
    assert storage.keys() == ["files/whole"]
    assert storage.delete_unfinished(older_than_seconds=60.0) == 0
    os.utime(left, (1.0, 1.0))
    os.utime(left.with_name("whole"), (1.0, 1.0))
    assert storage.delete_unfinished(older_than_seconds=60.0) == 1
    assert not left.exists()
    assert storage.get("files/whole") == b"x"


def test_objects_of_a_time_are_listed_a_few_at_a_time_while_they_are_deleted(
    storage: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.storage.LISTED_KEYS", 7)
    old = {f"evaluations/{index}/t/report.json" for index in range(50)}
    for key in (*old, "evaluations/new", "evaluations/ancient", "other/old"):
        storage.put(key, b"x")
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name != "new":
            os.utime(path, (2.0, 1.0 if path.name == "ancient" else 2.0))
    seen: set[str] = set()
    for keys in storage.keys_between("evaluations/", since=2.0, until=3.0):
        assert len(keys) <= 7
        seen |= set(keys)
        for key in keys:
            storage.delete(key)
    assert seen == old
    assert sorted(storage.keys()) == ["evaluations/ancient", "evaluations/new", "other/old"]


def test_publishing_replaces_the_whole_object(storage: ObjectStorage) -> None:
    storage.put("k", b"old and long")
    with storage.open_writer("k") as writer:
        writer.write(b"new")
        assert storage.get("k") == b"old and long"
        writer.publish()
    assert storage.get("k") == b"new"


def test_ranges(storage: ObjectStorage) -> None:
    storage.put("k", b"0123456789")
    assert b"".join(storage.stream("k", start=2, end=5)) == b"234"
    assert b"".join(storage.stream("k", start=7)) == b"789"


def test_files_go_in_and_come_out(storage: ObjectStorage, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(bytes(range(256)) * 5000)
    storage.put_file("k", source)
    storage.get_file("k", target)
    assert target.read_bytes() == source.read_bytes()
    assert not target.with_name("out.partial").exists()


def test_missing_objects(storage: ObjectStorage, tmp_path: Path) -> None:
    for read in (storage.get, storage.size, storage.stream, lambda key: storage.get_file(key, tmp_path / "x")):
        with pytest.raises(ObjectNotFoundError):
            read("none")
    storage.delete("none")
    assert storage.keys() == []
    assert not (tmp_path / "x").exists()


def test_keys_cannot_leave_the_store(storage: ObjectStorage) -> None:
    with pytest.raises(ValueError, match="illegal"):
        storage.put("../x", b"")
