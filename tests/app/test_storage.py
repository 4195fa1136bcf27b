"""Stored bytes on a local folder."""

from pathlib import Path

import pytest

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
