"""Which layout a path holds, decided by what the files contain.

A file decides by its first bytes. A folder decides by its configuration (the keys of its JSON files)
and the names of the tensors beside it. Only the order of Meta's shards is told by file names, because
nothing else tells it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitral.errors import FormatError, ModelNotFound
from vitral.formats.gguf import read_gguf
from vitral.formats.json_text import read_object
from vitral.formats.mapping import canonical_from_hf, canonical_from_meta
from vitral.formats.sniff import Kind, explain, kind_of

__all__ = ["Found", "Layout", "detect", "find"]

Layout = Literal["gguf", "safetensors", "meta", "mistral", "llama2c"]
_MOST_FILES = 10_000
_LARGEST_CONFIG = 8 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """A layout and the files that make it up: tensors, configuration, and the index of shards."""

    layout: Layout
    files: tuple[Path, ...]
    config: Path | None = None
    index: Path | None = None


def detect(path: Path) -> Layout:
    """The layout of a file or folder.

    Raises ModelNotFound for a missing path, FormatError for one that holds no model that can be read.
    """
    return find(path).layout


def find(path: Path) -> Found:
    """The layout of a file or folder, and its files."""
    path = Path(path)
    try:
        exists = path.exists()
    except OSError:  # such as a name that is too long
        exists = False
    if not exists:
        raise ModelNotFound(f"{path} does not exist; give a model file or folder")
    if path.is_dir():
        return _in_folder(path)[0]
    return _by_file(path)


def _by_file(path: Path) -> Found:
    kind = kind_of(path)
    if kind == "gguf":
        return Found("gguf", (path,))
    if kind == "llama2c":
        return Found("llama2c", (path,))
    if kind in ("safetensors", "torch"):
        every = _in_folder(path.parent)
        for found in every:
            if path in found.files:
                return found
        raise FormatError(f"{path} does not belong to the {every[0].layout} checkpoint in its folder")
    if kind == "json" and _role(path) is not None:
        every = _in_folder(path.parent)
        return next((found for found in every if path in (found.config, found.index)), every[0])
    raise FormatError(explain(path, kind))


def _in_folder(folder: Path) -> list[Found]:
    """What the folder holds, the likeliest first (Mistral publishes two layouts side by side); never empty."""
    kinds: dict[Path, Kind] = {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            kinds[file] = kind_of(file)
        if len(kinds) > _MOST_FILES:
            raise FormatError(f"{folder} has over {_MOST_FILES} files; give the model's own folder")
    roles = {file: _role(file) for file, kind in kinds.items() if kind == "json"}
    configs = {role: [f for f, r in roles.items() if r == role] for role in ("config", "params", "index", "adapter")}
    tensors = [file for file, kind in kinds.items() if kind in ("safetensors", "torch")]
    every: list[Found] = []
    if configs["config"] and (configs["index"] or tensors):
        every += _huggingface(folder, configs, tensors)
    if configs["params"] and tensors:
        every += _with_params(_only(folder, configs["params"], "params.json"), tensors)
    for kind in ("gguf", "llama2c"):
        models = [file for file, k in kinds.items() if k == kind]
        if models and not every:
            every.append(_single(folder, kind, models))
    if not every:
        raise FormatError(_nothing(folder, kinds, configs, tensors))
    return every


def _huggingface(folder: Path, configs: dict[str, list[Path]], tensors: Sequence[Path]) -> list[Found]:
    from vitral.formats.safetensors import shard_names  # here and below: a GGUF file needs none of it

    config = _only(folder, configs["config"], "config.json")
    indexes = [file for file in configs["index"] if _lists_safetensors(file)]
    if indexes:
        index = _only(folder, indexes, "index of safetensors")
        listed = sorted(set(shard_names(index).values()))
        return [Found("safetensors", tuple(folder / name for name in listed), config, index)]
    named = [file for file in tensors if kind_of(file) == "safetensors" and _dialect(file) != "meta"]
    named = named or [file for file in tensors if kind_of(file) == "torch" and _dialect(file) != "meta"]
    return [Found("safetensors", tuple(named), config)] if named else []


def _with_params(params: Path, tensors: Sequence[Path]) -> list[Found]:
    """Meta's or Mistral's own layout; Mistral's parameters state hidden_dim, Meta's do not."""
    layout: Layout = "mistral" if "hidden_dim" in read_object(params) else "meta"
    named = tuple(file for file in tensors if _dialect(file) == "meta")
    safe = tuple(file for file in named if kind_of(file) == "safetensors")
    if layout == "meta" and safe:
        raise FormatError(f"{params} is of Meta's kind, but {safe[0].name} is no torch file; Meta's are")
    return [Found(layout, safe or named, params)] if named else []


def _single(folder: Path, kind: Literal["gguf", "llama2c"], models: Sequence[Path]) -> Found:
    if len(models) > 1:
        splits = {read_gguf(model).metadata.get("split.count") for model in models} if kind == "gguf" else {None}
        if splits != {len(models)}:
            names = ", ".join(model.name for model in models[:5])
            raise FormatError(f"{folder} holds {len(models)} models ({names}); give the path of one")
    return Found(kind, (models[0],))


def _role(file: Path) -> str | None:
    """What a JSON file is to a checkpoint, by its keys; None if nothing."""
    if file.stat().st_size > _LARGEST_CONFIG:
        return None
    try:
        content = read_object(file)
    except FormatError:
        if file.name in ("config.json", "params.json"):  # it is meant to be read: say what is wrong with it
            raise
        return None
    return _role_of(content)


def _role_of(content: dict[str, Any]) -> str | None:
    if isinstance(content.get("weight_map"), dict):
        return "index"
    if "peft_type" in content:
        return "adapter"
    if "dim" in content and ("n_layers" in content or "n_heads" in content):
        return "params"
    if "hidden_size" in content or ("architectures" in content and "model_type" in content):
        return "config"
    return None


def _lists_safetensors(index: Path) -> bool:
    from vitral.formats.safetensors import shard_names

    files = [index.parent / name for name in sorted(set(shard_names(index).values()))]
    return any(file.is_file() and kind_of(file) in ("safetensors", "lfs pointer") for file in files) or not any(
        file.is_file() for file in files
    )


def _dialect(file: Path) -> str:
    """Whose names the tensors of a file have: "meta" (Mistral's are the same), or "hf" and all others."""
    from vitral.formats.pickle import read_torch
    from vitral.formats.safetensors import read_safetensors

    names = read_torch(file).tensors if kind_of(file) == "torch" else read_safetensors(file)
    ours = sum(canonical_from_hf(name) is not None for name in names)
    metas = sum(canonical_from_meta(name) is not None for name in names)
    return "meta" if metas > ours else "hf"


def _only(folder: Path, files: Sequence[Path], what: str) -> Path:
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:5])
        raise FormatError(f"{folder} has {len(files)} files that could be the {what} ({names}); keep one")
    return files[0]


def _nothing(folder: Path, kinds: dict[Path, Kind], configs: dict[str, list[Path]], tensors: Sequence[Path]) -> str:
    if not kinds:
        return f"{folder} has no files; give a model file, or a folder with one"
    if tensors:
        return (
            f"{folder} has {tensors[0].name} but no configuration beside it; "
            "Hugging Face models need config.json, Meta's and Mistral's need params.json"
        )
    for kind in ("lfs pointer", "web page", "empty", "pickle"):
        for file, found in kinds.items():
            if found == kind:
                return explain(file, kind)
    if configs["adapter"]:
        return f"{folder} holds an adapter, not a model; give the model that it was made for"
    if configs["config"] or configs["params"]:
        return f"{folder} has a configuration but no file of tensors; download the weights too"
    return f"{folder} has {len(kinds)} files, none of which is a model (GGUF, safetensors, torch or llama2.c)"
