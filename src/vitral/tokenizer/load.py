"""The door: a tokenizer from whatever a checkpoint brings along. What a file is, its content says, not its name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitral.errors import TokenizerError
from vitral.tokenizer.bpe import Named, from_json
from vitral.tokenizer.gguf import from_gguf
from vitral.tokenizer.protobuf import looks_like_model
from vitral.tokenizer.ranks import from_tekken, from_tiktoken, looks_like_tekken, looks_like_tiktoken
from vitral.tokenizer.spm import from_llama2c, from_model_bytes, looks_like_llama2c
from vitral.tokenizer.tokenizer import Tokenizer
from vitral.tokenizer.vocab import looks_like_control

__all__ = ["from_gguf", "from_path", "load_tokenizer", "looks_like_vocabulary", "read_definition"]

_LARGEST_FILE = 64 << 20  # bytes; the largest tokenizer.json in use has 33 MB
_LARGEST_CONFIG = 4 << 20
_LARGEST_TEMPLATE = 1 << 20
_MOST_BRACKETS = 1 << 21  # in a JSON file, so that parsing takes little memory
_MOST_COMMAS = 1 << 23
# Where a folder has several vocabularies, the first of these counts.
_VOCABULARIES = (
    "tokenizer.json",
    "tekken.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "*tokenizer*.model*",
    "*tok*.bin",
)


def load_tokenizer(source: Mapping[str, Any] | Path | str) -> Tokenizer:
    """A tokenizer from GGUF metadata (a mapping), or from a checkpoint's folder or vocabulary file (a path)."""
    return from_gguf(source) if isinstance(source, Mapping) else from_path(source)


def from_path(path: Path | str) -> Tokenizer:
    """A tokenizer from a checkpoint's folder, or from one vocabulary file and the configuration files beside it.

    Reads tokenizer.json, tekken.json, tokenizer.model (SentencePiece or Llama 3's rank list) and llama2.c vocabularies;
    beside them tokenizer_config.json, special_tokens_map.json, added_tokens.json, generation_config.json and chat
    templates. Raises TokenizerError.
    """
    path = Path(path)
    file = _vocabulary_in(path) if path.is_dir() else path
    data = _read(file, _LARGEST_FILE)
    try:
        tokenizer = _from_bytes(file, data, _Beside(file.parent))
    except TokenizerError as error:
        raise type(error)(f"{file}: {error}") from None
    return tokenizer


def read_definition(path: Path) -> dict[str, Any]:
    """The object in a tokenizer's JSON file, of bounded size; TokenizerError for anything else."""
    return _json(_read(path, _LARGEST_FILE))


def looks_like_vocabulary(data: bytes) -> bool:
    """Whether bytes are a vocabulary that is no JSON: SentencePiece's, tiktoken's or llama2.c's."""
    return looks_like_model(data) or looks_like_tiktoken(data[:4096]) or looks_like_llama2c(data)


def _from_bytes(file: Path, data: bytes, beside: _Beside) -> Tokenizer:
    if data[:4] == b"GGUF":
        raise TokenizerError("this is a GGUF model; its vocabulary is in its metadata, give that to from_gguf")
    if data.lstrip()[:1] == b"{":
        definition = _json(data)
        if looks_like_tekken(definition):
            return from_tekken(definition).with_templates(beside.templates())
        tokenizer = from_json(definition, beside.named(beside.ids_in(definition)))
    elif looks_like_model(data):
        tokenizer = _configured(from_model_bytes(data, beside.added()), beside)
    elif looks_like_tiktoken(data[:4096]):
        tokenizer = _configured(from_tiktoken(data), beside)
    elif looks_like_llama2c(data):
        tokenizer = from_llama2c(data)
    else:
        kinds = "tokenizer.json, tekken.json, a SentencePiece model, a tiktoken rank list or a llama2.c vocabulary"
        raise TokenizerError(f"begins with {data[:12]!r}, which is no vocabulary that can be read; allowed: {kinds}")
    return tokenizer.with_templates(beside.templates())


def _configured(tokenizer: Tokenizer, beside: _Beside) -> Tokenizer:
    """The tokenizer, with what the configuration files say of BOS, EOS and ends of turn."""
    named = beside.named(tokenizer.vocabulary.specials())
    ends = {id for id in (named.eos_id, *named.eos_ids) if id is not None}
    bos_id = tokenizer.bos_id if named.bos_id is None else named.bos_id
    return replace(
        tokenizer,
        bos_id=bos_id,
        eos_id=tokenizer.eos_id if named.eos_id is None else named.eos_id,
        pad_id=tokenizer.pad_id if named.pad_id is None else named.pad_id,
        eos_ids=tokenizer.eos_ids | ends,
        add_bos=tokenizer.add_bos if named.add_bos is None else named.add_bos and bos_id is not None,
        add_eos=tokenizer.add_eos if named.add_eos is None else named.add_eos,
    )


class _Beside:
    """The configuration files that lie beside a vocabulary; any of them may be missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = self._object("tokenizer_config.json")
        self._map = self._object("special_tokens_map.json")
        self._generation = self._object("generation_config.json")

    def _object(self, name: str) -> dict[str, Any]:
        file = self._folder / name
        if not file.is_file():
            return {}
        try:
            return _json(_read(file, _LARGEST_CONFIG))
        except TokenizerError as error:
            raise TokenizerError(f"{name} beside it: {error}") from None

    def ids_in(self, definition: Mapping[str, Any]) -> dict[str, int]:
        """Text -> id of all that a tokenizer.json names."""
        model = definition.get("model")
        vocab = model.get("vocab") if isinstance(model, dict) else None
        ids = dict(vocab) if isinstance(vocab, dict) else {}
        added = definition.get("added_tokens") or []
        if not isinstance(added, list):
            raise TokenizerError(f"tokenizer.json: added_tokens is {str(added)[:80]}; expected a list")
        for entry in added:
            if isinstance(entry, dict) and isinstance(entry.get("content"), str):
                ids[entry["content"]] = entry.get("id")
        return {text: id for text, id in ids.items() if type(id) is int}

    def named(self, ids: Mapping[str, int]) -> Named:
        """Special ids, by the texts that the configuration names, looked up in `ids`."""
        found = {name: self._id(f"{name}_token", ids) for name in ("bos", "eos", "unk", "pad")}
        ends = self._generation.get("eos_token_id", [])
        ends = ends if isinstance(ends, list) else [ends]
        if not all(type(id) is int for id in ends):
            raise TokenizerError(
                f"generation_config.json: eos_token_id is {str(ends)[:80]}; allowed: ids (whole numbers)"
            )
        return Named(
            bos_id=found["bos"],
            eos_id=found["eos"],
            unk_id=found["unk"],
            pad_id=found["pad"],
            eos_ids=tuple(ends),
            add_bos=self._flag("add_bos_token"),
            add_eos=self._flag("add_eos_token"),
        )

    def added(self) -> dict[int, tuple[str, bool]]:
        """Tokens that the configuration adds to a SentencePiece model: id -> (text, control)."""
        found: dict[int, tuple[str, bool]] = {}
        for text, id in self._object("added_tokens.json").items():
            if type(id) is int:
                found[id] = (text, looks_like_control(text))
        decoder = self._config.get("added_tokens_decoder") or {}
        if not isinstance(decoder, dict):
            raise TokenizerError(
                f"tokenizer_config.json: added_tokens_decoder is {str(decoder)[:80]!r}; expected an object of ids"
            )
        for id_text, entry in decoder.items():
            if (
                id_text.isascii()
                and id_text.isdigit()
                and isinstance(entry, dict)
                and isinstance(entry.get("content"), str)
            ):
                text = entry["content"]
                found[int(id_text)] = (text, bool(entry.get("special")) or looks_like_control(text))
        return found

    def templates(self) -> dict[str, str]:
        """Chat templates by name; the one that counts is called `default`. A .jinja file goes before the configuration."""
        found = self._object("chat_template.json") | {"from config": self._config.get("chat_template")}
        templates: dict[str, str] = {}
        for source in found.values():
            if isinstance(source, str):
                templates["default"] = source
            elif isinstance(source, list):
                templates |= {
                    entry["name"]: entry["template"]
                    for entry in source
                    if isinstance(entry, dict)
                    and isinstance(entry.get("name"), str)
                    and isinstance(entry.get("template"), str)
                }
        for name, file in self._template_files():
            templates[name] = _utf8(_read(file, _LARGEST_TEMPLATE), file.name)
        return templates

    def _template_files(self) -> Iterator[tuple[str, Path]]:
        if (file := self._folder / "chat_template.jinja").is_file():
            yield "default", file
        for file in sorted(self._folder.glob("additional_chat_templates/*.jinja")):
            yield file.stem, file

    def _id(self, key: str, ids: Mapping[str, int]) -> int | None:
        value = self._config.get(key) or self._map.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        return ids.get(text) if isinstance(text, str) else None

    def _flag(self, key: str) -> bool | None:
        value = self._config.get(key)
        return value if isinstance(value, bool) else None


def _vocabulary_in(folder: Path) -> Path:
    for pattern in _VOCABULARIES:
        if found := sorted(file for file in folder.glob(pattern) if file.is_file()):
            return found[0]
    raise TokenizerError(f"{folder} has no vocabulary; expected one of {', '.join(_VOCABULARIES)}")


def _read(file: Path, largest: int) -> bytes:
    try:
        size = file.stat().st_size
        if not file.is_file():
            raise TokenizerError(f"{file} is not a file; give a vocabulary file or a checkpoint's folder")
        if size > largest:
            raise TokenizerError(f"{file.name} has {size} bytes; at most {largest} are allowed")
        return file.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{file} cannot be read: {error.strerror or error}") from None


def _utf8(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{name} is not UTF-8 at byte {error.start}") from None


def _json(data: bytes) -> dict[str, Any]:
    brackets = data.count(b"[") + data.count(b"{")
    if brackets > _MOST_BRACKETS or data.count(b",") > _MOST_COMMAS:
        raise TokenizerError(f"the JSON holds {brackets} brackets and braces; at most {_MOST_BRACKETS} are allowed")
    try:
        content = json.loads(_utf8(data, "the JSON"))
    except RecursionError:
        raise TokenizerError("the JSON is nested too deeply") from None
    except ValueError as error:
        raise TokenizerError(f"this is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise TokenizerError(f"the JSON holds a {type(content).__name__}; expected an object")
    return content
