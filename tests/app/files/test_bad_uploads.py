"""Every broken or tricky upload of the shared collection, through the API: refused with the line, or accepted."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from app.contracts.datasets import MAX_LISTED_PROBLEMS
from app.db import Database
from app.models import File
from app.storage import ObjectStorage
from tests.app.helpers import upload

COLLECTION = Path(__file__).resolve().parents[4] / "shared" / "data" / "bad"

POLICY = {
    "09_utf8_bom.jsonl": "bom",
    "30_chat_template_tokens.jsonl": "special_tokens",
    "36_all_duplicates.jsonl": "duplicate_row",
    "37_unknown_top_level_key.jsonl": "extra_key",
    "43_ok_blank_line_between.jsonl": "blank_line",
}
"""Uploads that may be either way by the collection, and that we accept with this warning; others we refuse."""

OTHER_FORMATS = {"22_prompt_completion_format.jsonl": "completion"}
"""The collection knows conversations alone, and would have these refused."""


def _cases() -> list[Any]:
    expectations = COLLECTION / "expect.json"
    if expectations.is_file():
        return [pytest.param(case, id=case["file"]) for case in json.loads(expectations.read_text(encoding="utf-8"))]
    assert os.environ.get("CI") != "true", f"CI needs the collection of bad uploads in {COLLECTION}"
    return [pytest.param(None, marks=pytest.mark.skip(reason=f"no collection of bad uploads in {COLLECTION}"))]


@pytest.mark.parametrize("case", _cases())
def test_bad_upload(case: dict[str, Any], client: TestClient, database: Database, storage: ObjectStorage) -> None:
    data = (COLLECTION / case["file"]).read_bytes()
    response = upload(client, data)
    is_accepted = case["verdict"] == "accept" or case["file"] in POLICY or case["file"] in OTHER_FORMATS
    if is_accepted:
        assert response.status_code == 200, response.text
        assert client.get(f"/v1/files/{response.json()['id']}/content").content == data
        validation = client.get(f"/v1/files/{response.json()['id']}/validation").json()
        assert validation["format"] == OTHER_FORMATS.get(case["file"], "chat")
        warning = POLICY.get(case["file"])
        assert warning is None or warning in {found["code"] for found in validation["warnings"]}
        return
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["code"] == "invalid_training_file"
    assert len(error["lines"]) <= MAX_LISTED_PROBLEMS
    assert len(response.content) < 64_000
    if case["verdict"] == "reject":
        lines = sorted({found["line"] for found in error["lines"] if found["line"] is not None})
        assert lines == case["lines"][:MAX_LISTED_PROBLEMS]
        assert case["code"] in {found["code"] for found in error["lines"]}
        if lines:
            assert f"Line {lines[0]}" in error["message"]
    with database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(File)) == 0
    assert storage.keys() == []
