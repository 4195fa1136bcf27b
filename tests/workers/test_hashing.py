import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from workers.hashing import weights_sha256

ONE, TWO = torch.tensor([1.0, 2.0]), torch.tensor([[3, 4]], dtype=torch.int32)


def folder(path: Path, *files: dict[str, torch.Tensor], note: str = "") -> Path:
    path.mkdir()
    for number, tensors in enumerate(files):
        save_file(tensors, path / f"model-{number}.safetensors", metadata={"note": note})
    (path / "config.json").write_text(note)
    return path


class TestWeights:
    def test_are_hashed_tensor_by_tensor(self, tmp_path: Path) -> None:
        one, two = ONE.numpy().tobytes(), TWO.numpy().tobytes()
        expected = hashlib.sha256(b"one: F32 [2]\n" + one + b"two: I32 [1, 2]\n" + two).hexdigest()
        assert weights_sha256(folder(tmp_path / "a", {"two": TWO, "one": ONE})) == expected

    def test_are_the_same_in_other_files_beside_other_settings(self, tmp_path: Path) -> None:
        together = folder(tmp_path / "a", {"one": ONE, "two": TWO}, note="5.17")
        apart = folder(tmp_path / "b", {"two": TWO}, {"one": ONE}, note="5.23")
        assert weights_sha256(together) == weights_sha256(apart)

    @pytest.mark.parametrize(
        "other",
        [
            {"one": ONE + 1},
            {"one": ONE.reshape(1, 2)},
            {"one": ONE.view(torch.int32)},
            {"uno": ONE},
            {"one": ONE, "two": TWO},
        ],
        ids=["values", "shape", "type", "name", "more"],
    )
    def test_are_others_where_anything_of_them_differs(self, other: dict[str, torch.Tensor], tmp_path: Path) -> None:
        assert weights_sha256(folder(tmp_path / "a", {"one": ONE})) != weights_sha256(folder(tmp_path / "b", other))

    def test_that_end_too_early_are_an_error(self, tmp_path: Path) -> None:
        path = folder(tmp_path / "a", {"one": ONE}) / "model-0.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ValueError, match="ends in the middle of one"):
            weights_sha256(tmp_path / "a")
