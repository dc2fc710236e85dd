"""A manifest: every file of a model with its digest, and what changed since it was written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitral.errors import FormatError
from vitral.formats.json_text import read_object
from vitral.provenance.digest import FileDigest, digest_files, model_files
from vitral.verdict import Verdict

__all__ = ["check", "differences", "manifest_text", "read_manifest"]

_KIND = "vitral manifest 1"


def manifest_text(files: Mapping[str, FileDigest], weights: str | None = None) -> str:
    """The text of a manifest: JSON, sorted, the same for the same files."""
    listed = {name: {"bytes": files[name].n_bytes, "sha256": files[name].sha256} for name in sorted(files)}
    content: dict[str, Any] = {"kind": _KIND, "files": listed}
    if weights is not None:
        content["weights"] = weights
    return json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def read_manifest(path: Path) -> dict[str, FileDigest]:
    """The files of a manifest; FormatError for anything else."""
    content = read_object(path)
    try:
        if content["kind"] != _KIND:
            raise KeyError
        return {name: FileDigest(str(one["sha256"]), int(one["bytes"])) for name, one in content["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise FormatError(f"{path} is no manifest; `vitral digest MODEL --out FILE` writes one") from None


def check(
    model: Path,
    manifest: Path,
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Verdict:
    """Whether a model's files are those of a manifest; each file that changed, came, went or was renamed is named."""
    wanted = read_manifest(manifest)
    here = {name: path for name, path in model_files(model).items() if path.resolve() != manifest.resolve()}
    found = digest_files(here, threads, progress)
    reasons = differences(
        {name: one.sha256 for name, one in wanted.items()}, {name: one.sha256 for name, one in found.items()}
    )
    evidence = {"files": len(found), "manifest": str(manifest)}
    return Verdict(not reasons, tuple(reasons or [f"all {len(found)} files are those of the manifest"]), evidence)


def differences(wanted: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """What became of files, by their digests: renamed, missing, added or changed, a sentence each.

    >>> differences({"a": "1", "b": "2"}, {"c": "1", "b": "3"})
    ['a was renamed to c', 'b was changed']
    """
    gone = {name: digest for name, digest in wanted.items() if name not in found}
    new = {name: digest for name, digest in found.items() if name not in wanted}
    reasons = []
    for name, digest in sorted(gone.items()):
        twin = next((other for other, theirs in sorted(new.items()) if theirs == digest), None)
        if twin is not None:
            reasons.append(f"{name} was renamed to {twin}")
            del new[twin]
        else:
            reasons.append(f"{name} is missing")
    reasons += [f"{name} was added" for name in sorted(new)]
    return reasons + [f"{name} was changed" for name in sorted(wanted.keys() & found) if wanted[name] != found[name]]
