import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.contracts.bases import AlignmentRecipe
from workers.data import ADAPTERS_DIR, ALIGNMENT_FILE
from workers.hashing import file_sha256, weights_sha256
from workers.modeling.adapters import CONFIG_FILE, WEIGHTS_FILE, read_pairs
from workers.modeling.errors import ModelingError
from workers.modeling.sources import FetchedModel
from workers.preparation import alignment
from workers.preparation.alignment import RECORD, copy_shipped, shipped_adapter
from workers.preparation.ship import MAX_BYTES

NAMES = sorted(path.name for path in ADAPTERS_DIR.iterdir() if path.is_dir())


def fetched(folder: Path) -> FetchedModel:
    return FetchedModel(folder, "0" * 64, "path:base")


@pytest.mark.parametrize("name", NAMES)
class TestShippedAdapters:
    def test_have_a_record_with_true_hashes(self, name: str) -> None:
        """An alignment set that has changed since needs the adapter to be made again."""
        record = json.loads((ADAPTERS_DIR / name / RECORD).read_text())
        assert record["adapter_sha256"] == file_sha256(ADAPTERS_DIR / name / WEIGHTS_FILE)
        assert record["alignment_set_sha256"] == file_sha256(ALIGNMENT_FILE)
        assert record["command"] == f"unforgotten models prepare {name} --retrain"

    def test_have_the_rank_of_their_recipe_and_fit_into_a_source_tree(self, name: str) -> None:
        recipe = AlignmentRecipe.model_validate(json.loads((ADAPTERS_DIR / name / RECORD).read_text())["alignment"])
        pairs = read_pairs(ADAPTERS_DIR / name)
        assert {pair.a.shape[0] for pair in pairs.values()} == {recipe.rank}
        assert (ADAPTERS_DIR / name / WEIGHTS_FILE).stat().st_size <= MAX_BYTES

    def test_are_taken_for_the_weights_they_were_made_for(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever else lies beside them: a library's version writes its number into the configuration."""
        found = shipped_adapter(name)
        assert found is not None
        monkeypatch.setattr(alignment, "weights_sha256", lambda _: found.weights_sha256)
        copy_shipped(name, fetched(tmp_path), tmp_path / "adapter")
        assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]

    def test_are_refused_for_other_weights(self, name: str, tmp_path: Path) -> None:
        save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
        made_for = weights_sha256(tmp_path)[:12]
        with pytest.raises(
            ModelingError, match=rf"was made for weights .* these are {made_for}; prepare with --retrain"
        ):
            copy_shipped(name, fetched(tmp_path), tmp_path / "adapter")
        assert not (tmp_path / "adapter").exists()
