"""`hf:` sources against a hub of our own on loopback, through the real huggingface_hub client."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.workers.tiny import save_tiny_model

REPO, COMMIT = "maker/tiny-chat", "c0ffee" * 6 + "beef"
FETCH = """
import json, sys
from pathlib import Path
from workers.modeling.errors import SourceError
from workers.modeling.sources import fetch
try:
    found = fetch(sys.argv[1], Path(sys.argv[2]), on_status=lambda sentence: print(sentence, file=sys.stderr))
    print(json.dumps([str(found.directory), found.source]))
except SourceError as error:
    print(json.dumps({"refused": str(error)}))
"""


class Hub:
    """Serves one repository the way the hub does: what it is, and its files."""

    def __init__(self, folder: Path) -> None:
        self.paths: list[str] = []
        files = {p.name: p.read_bytes() for p in folder.iterdir()}
        paths = self.paths

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                paths.append(path)
                siblings = [{"rfilename": name} for name in files]
                info = {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings, "private": False}
                name = path.rsplit("/", 1)[-1]
                if path in (f"/api/models/{REPO}/revision/main", f"/api/models/{REPO}/revision/{COMMIT}"):
                    self._answer(json.dumps(info).encode(), "application/json")
                elif path.startswith(f"/api/models/{REPO}/tree/{COMMIT}"):
                    tree = [
                        {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                        for n, b in files.items()
                    ]
                    self._answer(json.dumps(tree).encode(), "application/json")
                elif path == f"/{REPO}/resolve/{COMMIT}/{name}" and name in files:
                    self._answer(files[name], "application/octet-stream")
                else:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "RepoNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            do_HEAD = do_GET

            def _answer(self, body: bytes, kind: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """The paths are kept instead."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def fetch(self, source: str, cache: Path) -> object:
        """`fetch` in a process that takes this for the hub."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        environment |= {"HF_ENDPOINT": self.url, "HF_HOME": str(cache / "home"), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", FETCH, source, str(cache)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = save_tiny_model(tmp_path / "repository")
    (folder / "pytorch_model.bin").write_bytes(b"pickled weights that nobody may load")
    hub = Hub(folder)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


class TestHub:
    def test_a_branch_is_pinned_to_its_commit_and_fetched_once(self, hub: Hub, tmp_path: Path) -> None:
        first = hub.fetch(f"hf:{REPO}@main", tmp_path / "cache")
        assert isinstance(first, list)
        folder, source = Path(first[0]), first[1]
        assert source == f"hf:{REPO}@{COMMIT}"
        assert (folder / "model.safetensors").is_file()
        assert (folder / "tokenizer.json").is_file()
        asked = len(hub.paths)
        assert hub.fetch(f"hf:{REPO}@main", tmp_path / "cache") == first
        assert len(hub.paths) == asked

    def test_pickled_weights_are_not_even_downloaded(self, hub: Hub, tmp_path: Path) -> None:
        found = hub.fetch(f"hf:{REPO}@main", tmp_path / "cache")
        assert isinstance(found, list)
        assert not (Path(found[0]) / "pytorch_model.bin").exists()
        assert not any(path.endswith(".bin") for path in hub.paths)

    def test_a_repository_that_is_not_there_is_refused_with_its_name(self, hub: Hub, tmp_path: Path) -> None:
        found = hub.fetch("hf:maker/nothing@main", tmp_path / "cache")
        assert isinstance(found, dict)
        assert "maker/nothing@main could not be had" in found["refused"]
