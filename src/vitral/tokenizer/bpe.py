"""Merge-list BPE on the library `tokenizers`: GGUF's `gpt2` vocabularies, and `tokenizer.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from vitral.errors import TokenizerError
from vitral.native import Merges, Texts
from vitral.tokenizer.pretokenizer import PreTokenizer
from vitral.tokenizer.special import Special, Specials
from vitral.tokenizer.stream import SpaceRule
from vitral.tokenizer.tokenizer import END_OF_TURN, Codec, Tokenizer, is_control, token_ids_by_text
from vitral.tokenizer.vocab import (
    MOST_PIECES,
    NEVER_TEXT,
    SPACE_MARK,
    AlphabetBytes,
    Kind,
    Vocabulary,
    byte_alphabet,
    byte_piece,
    from_byte_alphabet,
    from_space_mark,
    kept_apart,
    looks_like_control,
)

__all__ = ["LibraryCodec", "MergesCodec", "Named", "from_json", "from_merges", "guarded"]

T = TypeVar("T")

_ADDED = (*NEVER_TEXT, Kind.USER)  # kinds that are found in a text before the merges begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What a checkpoint says of its special tokens beside the vocabulary; None where it says nothing."""

    bos_id: int | None = None
    eos_id: int | None = None
    unk_id: int | None = None
    pad_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    add_bos: bool | None = None
    add_eos: bool | None = None


class LibraryCodec:
    """`tokenizers` behind the Codec protocol; `definition` is what it is made of, as a tokenizer.json has it."""

    def __init__(self, definition: Mapping[str, Any], rule: SpaceRule) -> None:
        self.definition, self._rule = definition, rule
        self._main = _load(definition)

    @cached_property
    def _without_prefix(self) -> Any:
        return _load({**self.definition, "pre_tokenizer": _unprefixed(self.definition["pre_tokenizer"])})

    def encode(self, text: str, after_special: bool) -> list[int]:
        backend = self._without_prefix if after_special and self._rule is SpaceRule.START else self._main
        return _encode(backend, text)


class MergesCodec:
    """The same over byte-level merges. The library takes some 50 ms to read 50,000 pieces: until it has been asked for a
    few texts, or for a long one, it gets those that are parts of the text, which are all that merging comes by.
    """

    def __init__(self, rules: Mapping[str, Any], pieces: Texts, merges: Texts) -> None:
        self.rules, self._pieces, self._texts = rules, pieces, merges
        self._merges = Merges(pieces, merges)
        if (id := self._merges.twice) >= 0:
            raise TokenizerError(
                f"the piece {pieces[id]!r} stands in the vocabulary twice; which id is meant cannot be known"
            )
        if (place := self._merges.odd) >= 0:
            raise TokenizerError(f"the merge {merges[place]!r} is not two pieces with a space between them")
        if (unknown := self._merges.unknown) is not None:
            raise TokenizerError(f"a merge is of or to {unknown!r}, which is no piece of the vocabulary")
        self._n_encoded, self._part = 0, ("", self._of_part(""))

    @cached_property
    def definition(self) -> Mapping[str, Any]:
        """All of it, as a tokenizer.json has it."""
        vocab = dict(zip(self._pieces, range(len(self._pieces)), strict=True))
        return self._with(vocab, _pairs(self._texts.tolist()))

    @cached_property
    def _main(self) -> Any:
        return _load(self.definition)

    def encode(self, text: str, after_special: bool) -> list[int]:
        self._n_encoded += 1
        if self._n_encoded > _FEW_TEXTS or len(text) > _SHORT_TEXT:
            return _encode(self._main, text)
        part = self._part
        if text not in part[0]:  # what a text has, all that stand in it have
            part = self._part = (text, self._of_part(text))
        return _encode(part[1], text)

    def _of_part(self, text: str) -> Any:
        alphabet = byte_alphabet()
        vocab, merges = self._merges.within("".join(alphabet[byte] for byte in text.encode()))
        added = {entry["content"]: entry["id"] for entry in self.rules["added_tokens"]}
        return _load(self._with({**vocab, **added}, merges))

    def _with(self, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> dict[str, Any]:
        return {**self.rules, "model": {**self.rules["model"], "vocab": vocab, "merges": merges}}


_FEW_TEXTS, _SHORT_TEXT = 16, 256  # a chat is some texts, with control tokens between them


def _encode(backend: Any, text: str) -> list[int]:
    ids: list[int] = guarded(lambda: backend.encode(text, add_special_tokens=False).ids, "the text")
    return ids


def from_merges(pieces: Texts, kinds: Sequence[Kind], merges: Texts, pre: PreTokenizer, named: Named) -> Tokenizer:
    """A byte-level BPE tokenizer from its lists, as GGUF holds them. Raises TokenizerError."""
    kinds = _marked(kinds, named, pieces)
    literal = [id for id in kept_apart(kinds) if kinds[id] in _ADDED]
    added = [
        {"id": id, "content": pieces[id], "special": is_control(kinds[id]), "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for id in literal
        if pieces[id]
    ]
    split = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in pre.patterns
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    rules = {
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*split, level]},
        "model": {"type": "BPE", "ignore_merges": pre.ignore_merges},
    }
    data = AlphabetBytes(pieces, {id: pieces[id].encode() for id in literal})
    vocabulary = Vocabulary(pieces, data, tuple(kinds))
    codec = MergesCodec(rules, pieces, merges)
    return _assemble(rules, vocabulary, codec, [], SpaceRule.NEVER, named, lambda: map(str.encode, merges))


def from_json(definition: Mapping[str, Any], named: Named) -> Tokenizer:
    """A tokenizer from the content of a `tokenizer.json`.

    Raises TokenizerError for another model than BPE, and for what contradicts itself.
    """
    model = _section(definition, "model")
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise TokenizerError(f"tokenizer.json holds a model of type {model.get('type')!r}; Llama and Mistral use 'BPE'")
    added = [_added(entry) for entry in definition.get("added_tokens") or []]
    pieces, kinds = _table(model["vocab"], added)
    if isinstance(unknown := model.get("unk_token"), str) and unknown in model["vocab"]:
        kinds[model["vocab"][unknown]] = Kind.UNKNOWN
        named = replace(named, unk_id=model["vocab"][unknown] if named.unk_id is None else named.unk_id)
    byte_level = "ByteLevel" in _types(definition.get("pre_tokenizer")) | _types(definition.get("normalizer"))
    if not byte_level:
        kinds = [
            Kind.BYTE if k == Kind.NORMAL and byte_piece(p) is not None else k
            for p, k in zip(pieces, kinds, strict=True)
        ]
    before, after = _frame(definition.get("post_processor"))
    named = _completed(named, {piece: id for id, piece in enumerate(pieces)}, before, after)
    kinds = _marked(kinds, named, pieces)
    rule = SpaceRule.NEVER if byte_level else _space_rule(definition)
    literal = {entry["id"] for entry in added}
    data = []
    for id, (piece, kind) in enumerate(zip(pieces, kinds, strict=True)):
        if id in literal or is_control(kind):
            data.append(piece.encode("utf-8", "surrogatepass"))
        else:
            data.append(from_byte_alphabet(piece) if byte_level else from_space_mark(piece, kind))
    vocabulary = Vocabulary(tuple(pieces), tuple(data), tuple(kinds))
    for entry in added:
        entry["special"] = is_control(vocabulary.kinds[entry["id"]])
    pairs = guarded(lambda: _pairs(model.get("merges") or []), "the merges")
    clean = {key: definition.get(key) for key in ("normalizer", "pre_tokenizer")}
    clean |= {"model": {**model, "merges": pairs}, "added_tokens": added}
    flags = [entry for entry in added if entry["special"]]
    return _assemble(clean, vocabulary, LibraryCodec(clean, rule), flags, rule, named, lambda: _merge_bytes(pairs))


def guarded(action: Callable[[], T], what: str) -> T:
    """Run a call into a Rust library; whatever it raises, a panic included, becomes a TokenizerError."""
    try:
        return action()
    except (KeyboardInterrupt, SystemExit, MemoryError, TokenizerError):
        raise
    except BaseException as error:  # noqa: BLE001  (a Rust panic is no Exception)
        told = " ".join(str(error).split())[:300]
        raise TokenizerError(f"the tokenizer library refuses {what}: {told}") from None


def _assemble(
    definition: Mapping[str, Any],
    vocabulary: Vocabulary,
    codec: Codec,
    flags: Sequence[Mapping[str, Any]],
    rule: SpaceRule,
    named: Named,
    merges: Callable[[], Iterable[bytes]],
) -> Tokenizer:
    controls = vocabulary.specials()
    strips = {entry["id"]: (bool(entry.get("lstrip")), bool(entry.get("rstrip"))) for entry in flags}
    specials = Specials(Special(id, text, *strips.get(id, (False, False))) for text, id in controls.items())
    ends = {id for id in (named.eos_id, *named.eos_ids) if id is not None}
    rules = {key: value for key, value in definition.items() if key != "model"}
    rules |= {key: value for key, value in definition["model"].items() if key not in ("vocab", "merges")}
    settings = {"library": "tokenizers", "rules": rules, "space": rule.value}
    return Tokenizer(
        kind="bpe",
        vocabulary=vocabulary,
        codec=codec,
        specials=specials,
        space=rule,
        fingerprint=lambda: vocabulary.digest(settings, merges()),
        bos_id=named.bos_id,
        eos_id=named.eos_id,
        unk_id=named.unk_id,
        pad_id=named.pad_id,
        eos_ids=token_ids_by_text(vocabulary, END_OF_TURN) | ends,
        add_bos=bool(named.add_bos) and named.bos_id is not None,
        add_eos=bool(named.add_eos) and named.eos_id is not None,
    )


_MODEL_OPTIONS = (
    "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges",
)  # fmt: skip


def _load(definition: Mapping[str, Any]) -> Any:
    """The library's tokenizer. Vocabulary and merges go in as objects: as JSON they take three times as long."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Library
    from tokenizers.models import BPE

    model = definition["model"]
    options = {key: model[key] for key in _MODEL_OPTIONS if model.get(key) is not None}
    rules = {"version": "1.0", **definition, "model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}

    def build() -> Any:
        backend = Library.from_str(json.dumps(rules))
        backend.model = BPE(vocab=model["vocab"], merges=model["merges"], **options)
        for entry in sorted(definition["added_tokens"], key=lambda entry: int(entry["id"])):
            flags = {key: value for key, value in entry.items() if key not in ("id", "content")}
            backend.add_tokens([AddedToken(entry["content"], **flags)])
            if (id := backend.token_to_id(entry["content"])) != entry["id"]:
                raise TokenizerError(
                    f"the added token {entry['content']!r} has id {entry['id']}; by the vocabulary it is {id}"
                )
        backend.encode_special_tokens = True  # their text is text; finding them is our part
        return backend

    return guarded(build, "the vocabulary")


def _pairs(merges: Sequence[str | Sequence[str]]) -> list[tuple[str, str]]:
    """Merges as pairs; ValueError for one that is not two pieces."""
    return [(left, right) for left, right in (m.split(" ") if isinstance(m, str) else m for m in merges)]


def _merge_bytes(merges: Sequence[tuple[str, str]]) -> Iterator[bytes]:
    for pair in merges:
        yield " ".join(pair).encode("utf-8", "surrogatepass")


def _marked(kinds: Sequence[Kind], named: Named, pieces: Sequence[str]) -> list[Kind]:
    """The kinds, control where the checkpoint names an id as special or the piece is written like one."""
    marked = list(kinds)
    for id in (named.bos_id, named.eos_id, named.pad_id, *named.eos_ids):
        if id is not None and 0 <= id < len(marked) and marked[id] != Kind.UNKNOWN:
            marked[id] = Kind.CONTROL
    for id in kept_apart(marked):
        if marked[id] is Kind.USER and looks_like_control(pieces[id]):
            marked[id] = Kind.CONTROL
    return marked


def _section(definition: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = definition.get(name)
    if not isinstance(section, dict):
        raise TokenizerError(f"tokenizer.json has no {name!r} object; fetch the file anew")
    return section


def _added(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or type(entry.get("id")) is not int:
        raise TokenizerError(f"tokenizer.json: an added token is {str(entry)[:80]!r}; it needs an 'id' and a 'content'")
    flags = {key: bool(entry.get(key)) for key in ("special", "single_word", "lstrip", "rstrip", "normalized")}
    return {"id": entry["id"], "content": entry["content"], **flags}


def _table(vocab: Mapping[str, Any], added: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[Kind]]:
    """Pieces and kinds by id. Ids that no piece has are unused."""
    entries: list[tuple[Any, str, Kind]] = [(id, piece, Kind.NORMAL) for piece, id in vocab.items()]
    entries += [(e["id"], e["content"], Kind.CONTROL if e["special"] else Kind.USER) for e in added]
    if wrong := next((e for e in entries if type(e[0]) is not int or not 0 <= e[0] < MOST_PIECES), None):
        raise TokenizerError(
            f"tokenizer.json: the piece {wrong[1]!r} has id {wrong[0]!r}; allowed: 0 to {MOST_PIECES - 1}"
        )
    size = 1 + max((id for id, _, _ in entries), default=-1)
    if size > 2 * len(entries) + 1024:
        raise TokenizerError(
            f"tokenizer.json: {len(entries)} pieces with ids up to {size - 1}; too many ids are missing"
        )
    pieces, kinds = [""] * size, [Kind.UNUSED] * size
    for id, piece, kind in entries:
        if kinds[id] != Kind.UNUSED and pieces[id] != piece:
            raise TokenizerError(f"tokenizer.json: id {id} is both {pieces[id]!r} and {piece!r}")
        pieces[id], kinds[id] = piece, kind
    return pieces, kinds


def _steps(part: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """A processing part of tokenizer.json, or, if it is a sequence, the parts in it."""
    if not isinstance(part, dict) or depth > 8:
        return
    inner = next((part[key] for key in ("normalizers", "pretokenizers", "processors", "decoders") if key in part), None)
    if part.get("type") == "Sequence" and isinstance(inner, list):
        for step in inner:
            yield from _steps(step, depth + 1)
    else:
        yield part


def _types(part: Any) -> set[str]:
    return {kind for step in _steps(part) if isinstance(kind := step.get("type"), str)}


def _space_rule(definition: Mapping[str, Any]) -> SpaceRule:
    for step in _steps(definition.get("normalizer")):
        if step.get("type") == "Prepend" and step.get("prepend") == SPACE_MARK:
            return SpaceRule.FRAGMENT
    for step in _steps(definition.get("pre_tokenizer")):
        if step.get("type") == "Metaspace":
            scheme = step.get("prepend_scheme") or ("always" if step.get("add_prefix_space", True) else "never")
            return {"first": SpaceRule.START, "always": SpaceRule.FRAGMENT}.get(str(scheme), SpaceRule.NEVER)
    return SpaceRule.NEVER


def _unprefixed(part: Any) -> Any:
    """The same pre-tokeniser, without the space before the text."""
    if isinstance(part, dict) and part.get("type") == "Sequence":
        return {**part, "pretokenizers": [_unprefixed(step) for step in part.get("pretokenizers") or []]}
    if isinstance(part, dict) and part.get("type") == "Metaspace":
        return {**part, "prepend_scheme": "never", "add_prefix_space": False}
    return part


def _frame(part: Any) -> tuple[list[str], list[str]]:
    """Texts of the tokens that a post-processor puts before and after a single text."""
    for step in _steps(part):
        if step.get("type") == "TemplateProcessing":
            names = [next(iter(item), "") if isinstance(item, dict) else "" for item in step.get("single") or []]
            texts = [
                str((item.get("SpecialToken") or {}).get("id")) for item in step["single"] if isinstance(item, dict)
            ]
            if names.count("Sequence") != 1:
                raise TokenizerError("tokenizer.json: the post-processor's 'single' must hold the text exactly once")
            middle = names.index("Sequence")
            return texts[:middle], texts[middle + 1 :]
    return [], []


def _completed(named: Named, ids: Mapping[str, int], before: list[str], after: list[str]) -> Named:
    """What the checkpoint says, completed by what the post-processor does."""
    if len(before) > 1 or len(after) > 1:
        raise TokenizerError(
            f"tokenizer.json puts {before} before and {after} after a text; at most one token each is allowed"
        )
    bos_id = named.bos_id if named.bos_id is not None else ids.get(before[0]) if before else None
    eos_id = named.eos_id if named.eos_id is not None else ids.get(after[0]) if after else None
    if bos_id is None:
        bos_id = next((ids[text] for text in ("<s>", "<|begin_of_text|>") if text in ids), None)
    if eos_id is None:
        eos_id = next((ids[text] for text in END_OF_TURN if text in ids), None)
    return replace(
        named,
        bos_id=bos_id,
        eos_id=eos_id,
        add_bos=bool(before) if named.add_bos is None else named.add_bos,
        add_eos=bool(after) if named.add_eos is None else named.add_eos,
    )
