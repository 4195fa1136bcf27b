"""Archives that strangers send: what is found in good ones, and that bad ones are refused with a reason."""

import gzip
import io
import itertools
import pickle
import tarfile
from pathlib import Path

import pytest

from tests.workers.modeling.adapter_archives import CONFIG, WEIGHTS, file_entry, pack, pack_entries, special_entry
from workers.modeling import archive
from workers.modeling.archive import AdapterArchive, InvalidAdapter

GOOD = {CONFIG: b"{}", WEIGHTS: b"weights" * 1000}


def read(path: Path, tmp_path: Path) -> tuple[bytes, bytes]:
    opened = AdapterArchive(path)
    target = tmp_path / "weights"
    opened.copy_weights(target, max_bytes=100_000)
    return opened.config(max_bytes=1000), target.read_bytes()


class TestGoodArchives:
    @pytest.mark.parametrize("folder", ["", "./", "mine/", "./mine/", "äöü/"])
    def test_the_adapter_is_found_at_the_top_or_in_a_folder(self, folder: str, tmp_path: Path) -> None:
        path = pack(tmp_path / "a.tar.gz", {f"{folder}{name}": data for name, data in GOOD.items()})
        assert read(path, tmp_path) == (GOOD[CONFIG], GOOD[WEIGHTS])

    def test_one_at_the_top_goes_before_one_in_a_folder_as_in_our_own(self, tmp_path: Path) -> None:
        inner = {f"for_original_base/{name}": b"other" for name in GOOD}
        path = pack(tmp_path / "a.tar.gz", {**inner, "README.md": b"# x", "tokenizer.json": b"{}", **GOOD})
        assert read(path, tmp_path) == (GOOD[CONFIG], GOOD[WEIGHTS])

    @pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
    def test_whatever_wrote_it(self, form: int, tmp_path: Path) -> None:
        path = tmp_path / "a.tar.gz"
        with tarfile.open(path, "w:gz", format=form, pax_headers={"comment": "x"}) as tar:
            if form == tarfile.GNU_FORMAT:
                # A name too long for its field comes in an entry of its own.
                tar.addfile(*_with_stream(*file_entry("n" * 200, b"?" * 700)))
            for name, data in GOOD.items():
                info, _ = file_entry(name, data)
                # Parts of a second do not fit into the field: PAX writes a header of its own for them.
                info.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1
                tar.addfile(info, io.BytesIO(data))
        assert read(path, tmp_path) == (GOOD[CONFIG], GOOD[WEIGHTS])

    def test_other_files_and_folders_do_not_matter(self, tmp_path: Path) -> None:
        others = (special_entry("mine", tarfile.DIRTYPE), file_entry("training_args.bin"), file_entry("._mine/a"))
        path = pack(tmp_path / "a.tar.gz", {f"mine/{name}": data for name, data in GOOD.items()}, *others)
        assert read(path, tmp_path) == (GOOD[CONFIG], GOOD[WEIGHTS])


class TestRefused:
    @pytest.mark.parametrize(
        ("entry", "reason"),
        [
            (file_entry("../adapter_config.json"), "outside of itself"),
            (file_entry("a/../../b"), "outside of itself"),
            (file_entry("/etc/passwd"), "outside of itself"),
            (special_entry("x", tarfile.SYMTYPE, "/etc/passwd"), "neither a file nor a folder"),
            (special_entry(WEIGHTS, tarfile.SYMTYPE, "blob"), "tar --dereference"),
            (special_entry("x", tarfile.LNKTYPE, WEIGHTS), "neither a file nor a folder"),
            (special_entry("x", tarfile.CHRTYPE), "neither a file nor a folder"),
            (special_entry("x", tarfile.BLKTYPE), "neither a file nor a folder"),
            (special_entry("x", tarfile.FIFOTYPE), "neither a file nor a folder"),
            (special_entry("x", tarfile.GNUTYPE_SPARSE), "neither a file nor a folder"),
        ],
        ids=lambda value: value if isinstance(value, str) else f"{value[0].name} {value[0].type!r}",
    )
    def test_names_that_lead_out_links_and_devices(
        self, entry: tuple[tarfile.TarInfo, bytes], reason: str, tmp_path: Path
    ) -> None:
        with pytest.raises(InvalidAdapter, match=reason):
            AdapterArchive(pack(tmp_path / "a.tar.gz", GOOD, entry))

    def test_a_pickle_by_its_name_and_unopened(self, tmp_path: Path) -> None:
        harmless = pickle.dumps(print)
        path = pack(tmp_path / "a.tar.gz", {CONFIG: b"{}", "adapter_model.bin": harmless})
        with pytest.raises(InvalidAdapter, match=r"«adapter_model\.bin», a pickle: .* Save the adapter as safetensors"):
            AdapterArchive(path)

    @pytest.mark.parametrize(
        ("files", "reason"),
        [
            ({CONFIG: b"{}"}, f"holds no {WEIGHTS}"),
            ({WEIGHTS: b""}, f"holds no {CONFIG}"),
            ({"README.md": b""}, f"holds no {CONFIG} and {WEIGHTS}"),
            ({f"a/b/{name}": b"" for name in GOOD}, "at its top or in one folder"),
            ({f"one/{CONFIG}": b"", f"two/{WEIGHTS}": b""}, "does not hold its two files together"),
            ({f"{folder}/{name}": b"" for folder in ("one", "two") for name in GOOD}, "holds 2 adapters"),
            ({}, "holds no"),
        ],
    )
    def test_archives_without_one_adapter(self, files: dict[str, bytes], reason: str, tmp_path: Path) -> None:
        with pytest.raises(InvalidAdapter, match=reason):
            AdapterArchive(pack(tmp_path / "a.tar.gz", files))

    def test_the_same_file_twice(self, tmp_path: Path) -> None:
        entries = [file_entry(name) for name in (CONFIG, WEIGHTS, f"./{WEIGHTS}")]
        with pytest.raises(InvalidAdapter, match="twice"):
            AdapterArchive(pack_entries(tmp_path / "a.tar.gz", entries))

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\x1f\x8b",
            b"not packed at all",
            gzip.compress(b"no tar" * 200, mtime=0),
            gzip.compress(b"short", mtime=0),
            gzip.compress(b"x" * 10_000, mtime=0)[:40],
        ],
        # By number: bytes in a test's name would have to be the same in every process that collects it.
        ids=itertools.count(),
    )
    def test_what_is_no_archive(self, data: bytes, tmp_path: Path) -> None:
        path = tmp_path / "a.tar.gz"
        path.write_bytes(data)
        with pytest.raises(InvalidAdapter, match="Pack it with: tar czf"):
            AdapterArchive(path)

    def test_an_archive_that_ends_in_the_middle(self, tmp_path: Path) -> None:
        whole = gzip.decompress(pack(tmp_path / "a.tar.gz", GOOD).read_bytes())
        (tmp_path / "a.tar.gz").write_bytes(gzip.compress(whole[:3000]))
        with pytest.raises(InvalidAdapter, match="ends in the middle"):
            AdapterArchive(tmp_path / "a.tar.gz")

    @pytest.mark.parametrize("size", [10**9, 8 * 1024**4, -512])
    def test_a_size_that_is_a_lie(self, size: int, tmp_path: Path) -> None:
        info = tarfile.TarInfo(WEIGHTS)
        info.size = size
        (tmp_path / "a.tar.gz").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + b"x" * 512))
        with pytest.raises(InvalidAdapter, match=r"ends in the middle|more than|negative"):
            AdapterArchive(tmp_path / "a.tar.gz")

    def test_a_long_name_that_would_fill_the_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 1024**2)
        info = tarfile.TarInfo("././@LongLink")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2 * 1024**2
        (tmp_path / "a.tar.gz").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + b"n" * info.size))
        with pytest.raises(InvalidAdapter, match="unpacks to more than 1048576 bytes"):
            AdapterArchive(tmp_path / "a.tar.gz")

    def test_a_small_archive_that_unpacks_to_a_large_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 3 * 1024**2)
        path = pack(tmp_path / "a.tar.gz", {"zeros": bytes(4 * 1024**2), **GOOD})
        assert path.stat().st_size < 10_000
        with pytest.raises(InvalidAdapter, match="unpacks to more than"):
            AdapterArchive(path)

    def test_too_large_too_many_and_files_that_no_adapter_needs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = pack(tmp_path / "a.tar.gz", GOOD)
        opened = AdapterArchive(path)
        with pytest.raises(InvalidAdapter, match="has 7000 bytes, and no adapter for this base needs more than 6999"):
            opened.copy_weights(tmp_path / "weights", max_bytes=6999)
        assert not (tmp_path / "weights").exists()
        monkeypatch.setattr(archive, "MAX_ENTRIES", 1)
        with pytest.raises(InvalidAdapter, match="more than 1 files"):
            AdapterArchive(path)
        monkeypatch.setattr(archive, "MAX_ARCHIVE_BYTES", 10)
        with pytest.raises(InvalidAdapter, match="larger than 10 bytes"):
            AdapterArchive(path)

    def test_names_in_messages_are_short_and_printable(self, tmp_path: Path) -> None:
        entry = file_entry("../\x1b[31m\udc80" + "n" * 90)
        with pytest.raises(InvalidAdapter) as caught:
            AdapterArchive(pack(tmp_path / "a.tar.gz", GOOD, entry))
        assert str(caught.value).isprintable()
        assert "n" * 81 not in str(caught.value)


def _with_stream(info: tarfile.TarInfo, data: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    return info, io.BytesIO(data)
