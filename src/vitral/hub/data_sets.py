"""Data sets of the Hugging Face Hub by name: `hf:owner/name`, `hf:owner/name@revision`, `hf:owner/name:file`.

They come into huggingface_hub's own cache (HF_HOME), so that what is there already is found without a network
(HF_HUB_OFFLINE). Code that a data set brings along is never run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vitral.errors import DigestMismatch, HubError, ModelNotFound
from vitral.hub.remote import Progress
from vitral.provenance.digest import sha256_of
from vitral.provenance.lineage import licence_beside

__all__ = ["HubDataSet", "fetch_data_set"]

_NAME = re.compile(r"hf:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w.-]+))?(?::(.+))?")
_DATA = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_TEXTS = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
_NO_DATA = re.compile(r"(.*/)?(dataset_infos?|package|config|tokenizer\w*)\.json")


@dataclass(frozen=True, slots=True)
class HubDataSet:
    """What was fetched: `repo` (owner/name) at commit `revision`, data files by their name there, and its licence.

    licence: what the card says, else what the LICENSE file is, "" where neither says one.
    """

    repo: str
    revision: str
    files: dict[str, Path]
    licence: str


def fetch_data_set(name: str, progress: Progress = lambda line: None) -> HubDataSet:
    """Fetch a data set's files, or find them in the cache. `name` ends in `:file` where a set has several.

    Raises ModelNotFound for a name that is none or that leaves open which file is meant, HubError where it cannot be
    fetched, DigestMismatch for bytes that were not promised.
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise ModelNotFound(f"{name!r} is not hf:owner/name, hf:owner/name@revision or hf:owner/name:file")
    repo, revision, wanted = parts[1], parts[2] or "main", parts[3] or ""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    transport_error: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        if constants.HF_HUB_OFFLINE:
            return _cached(name, repo, revision, wanted)
        return _fetched(name, repo, revision, wanted, progress)
    except (transport_error, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HubError(
            f"{name} could not be fetched: {text[:300]}; check name and network, set HF_ENDPOINT, or HF_HUB_OFFLINE=1 "
            "if it was fetched before"
        ) from error


def _fetched(name: str, repo: str, revision: str, wanted: str, progress: Progress) -> HubDataSet:
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi().dataset_info(repo, revision=revision, files_metadata=True)
    siblings = {file.rfilename: file for file in info.siblings or []}
    chosen = _choose(name, list(siblings), wanted)
    files: dict[str, Path] = {}
    for file in [*chosen, *(text for text in _TEXTS if text in siblings)]:
        if file.startswith("/") or "\\" in file or ".." in file.split("/"):
            raise HubError(f"{name} lists a file {file!r} that lies outside its folder: nothing was fetched")
        progress(f"fetching {repo}/{file}")
        path = Path(hf_hub_download(repo, file, repo_type="dataset", revision=revision))
        if path.parents[file.count("/")].name != info.sha:  # a branch is asked for, so that it is known offline too
            raise HubError(f"{name} changed while it was fetched; fetch it again")
        promised = siblings[file].lfs
        if promised is not None and sha256_of(path) != promised.sha256:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise DigestMismatch(
                f"{repo}/{file} has not the SHA-256 {promised.sha256} that was promised: it was not kept"
            )
        files[file] = path
    folder = files[chosen[0]].parents[chosen[0].count("/")]
    return HubDataSet(repo, str(info.sha), {file: files[file] for file in chosen}, licence_beside(folder))


def _cached(name: str, repo: str, revision: str, wanted: str) -> HubDataSet:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(repo, repo_type="dataset", revision=revision, local_files_only=True))
    there = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    chosen = _choose(name, there, wanted)
    return HubDataSet(repo, folder.name, {file: folder / file for file in chosen}, licence_beside(folder))


def _choose(name: str, files: list[str], wanted: str) -> list[str]:
    """The data files meant: those that `wanted` names, or all parts of the only one there is."""
    data = sorted(file for file in files if file.lower().endswith(_DATA) and not _NO_DATA.fullmatch(file))
    if not data:
        raise ModelNotFound(f"{name} holds no data files that Vitral reads ({', '.join(_DATA)})")
    if wanted:
        data = [file for file in data if file == wanted] or [file for file in data if wanted in file]
    kinds = sorted({re.sub(r"-\d+-of-\d+", "", file) for file in data})
    if len(kinds) != 1:
        there = ", ".join(kinds or sorted(files))[:400]
        raise ModelNotFound(f"{name} has {len(kinds)} files that could be meant; add one after a colon: {there}")
    return data
