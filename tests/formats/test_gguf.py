"""GGUF: what we write we read back, the package `gguf` agrees both ways, and damage is named."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitral.errors import FormatError, TruncatedFile
from vitral.formats import gguf as ours
from vitral.formats.gguf import GgufFile
from vitral.formats.gguf_write import TensorToWrite, write_gguf
from vitral.formats.quants import TYPES, decode, row_bytes
from vitral.model.law import Quantised

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "text.empty": "",
    "text.unicode": "vidro âmbar 🪟",
    "truth": True,
    "words": ["a", "", "ção"],
    "words.none": [],
    "u8": np.uint8(255),
    "i8": np.int8(-128),
    "u16": np.uint16(65535),
    "i16": np.int16(-32768),
    "u32": np.uint32(4294967295),
    "i32": np.int32(-2147483648),
    "u64": np.uint64(2**64 - 1),
    "i64": np.int64(-(2**63)),
    "f32": np.float32(1.1),
    "f64": np.float64(1.1),
    "truths": np.array([True, False]),
    "numbers.i32": np.array([1, -2, 3], np.int32),
    "numbers.u16": np.array([], np.uint16),
    "numbers.f32": np.array([0.5, -0.0, np.inf], np.float32),
    "numbers.i64": np.array([2**62], np.int64),
}


def tensor(name: str, type_name: str, shape: tuple[int, ...], seed: int = 0) -> TensorToWrite:
    """Random blocks of a type; float scales small enough to stay finite."""
    n = int(np.prod(shape[:-1], dtype=int)) * row_bytes(type_name, shape[-1])
    data = np.random.default_rng(seed).integers(0, 60, n, dtype=np.uint8)
    return TensorToWrite(name, shape, TYPES[type_name], lambda: data)


TENSORS = [tensor(f"t.{name}", name, (3, 256), i) for i, name in enumerate(TYPES)] + [
    tensor("vector", "F32", (5,)),
    tensor("stacked", "Q4_0", (2, 3, 32)),
    tensor("four", "F16", (2, 1, 3, 4)),
]


def same(a: Any, b: Any) -> bool:
    """Equal in value and type, arrays bit for bit."""
    if isinstance(a, np.ndarray | np.generic):
        return np.asarray(a).dtype == np.asarray(b).dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("alignment", [1, 32, 64, 4096])
def test_what_is_written_is_read_back(tmp_path: Path, alignment: int) -> None:
    path = tmp_path / "m.gguf"
    assert write_gguf(path, METADATA, TENSORS, alignment=alignment) == [path]
    file = GgufFile.open(path)
    assert file.version == 3
    exact = file.exact_metadata()
    exact.pop("general.alignment", None)
    assert list(exact) == list(METADATA)
    wrong = [key for key in METADATA if not same(METADATA[key], exact[key])]
    assert wrong == []
    assert file.metadata["truth"] is True and file.metadata["i64"] == -(2**63)
    assert list(file.tensors) == [t.name for t in TENSORS]
    for t in TENSORS:
        found = file.tensors[t.name]
        assert (found.shape, found.type) == (t.shape, t.type)
        assert found.raw().shape == (int(np.prod(t.shape[:-1], dtype=int)), row_bytes(t.type.name, t.shape[-1]))
        assert found.raw().tobytes() == t.read().tobytes()
        assert not found.raw().flags.owndata, "a view of the map, not a copy"


def test_written_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    write_gguf(first, METADATA, TENSORS)
    file = GgufFile.open(first)
    again = [TensorToWrite(t.name, t.shape, t.type, t.raw) for t in file.tensors.values()]
    write_gguf(second, file.exact_metadata(), again)
    assert first.read_bytes() == second.read_bytes()


def test_the_gguf_package_reads_our_files(tmp_path: Path) -> None:
    package = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    write_gguf(path, METADATA, TENSORS, alignment=64)
    theirs = package.GGUFReader(path)
    for key, value in METADATA.items():
        if isinstance(value, list | np.ndarray) and len(value) == 0:
            continue  # the package has no value for an empty array
        found = theirs.fields[key].contents()
        assert found == (value.tolist() if isinstance(value, np.ndarray | np.generic) else value), key
    assert [t.name for t in theirs.tensors] == [t.name for t in TENSORS]
    for mine, t in zip(TENSORS, theirs.tensors, strict=True):
        assert t.tensor_type.name == mine.type.name
        assert tuple(int(n) for n in reversed(t.shape)) == mine.shape
        assert t.data.tobytes() == mine.read().tobytes()


@pytest.mark.parametrize("split", [False, True])
def test_we_read_files_of_the_gguf_package(tmp_path: Path, split: bool) -> None:
    package = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    writer = package.GGUFWriter(path, "llama", split_max_tensors=2 if split else 0)
    writer.add_uint32("n", 7)
    writer.add_float32("x", 0.25)
    writer.add_bool("yes", True)
    writer.add_array("words", ["a", "é"])
    writer.add_array("numbers", [1, -2])
    values = {f"w{i}": np.arange(64 * (i + 1), dtype=np.float32).reshape(i + 1, 64) for i in range(5)}
    for name, value in values.items():
        writer.add_tensor(name, value)
    blocks = package.quants.quantize(values["w4"], package.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q", blocks, raw_dtype=package.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    paths = sorted(tmp_path.glob("*.gguf"))
    assert len(paths) == (3 if split else 1)
    for any_part in paths:
        file = GgufFile.open(any_part)
        metadata = file.metadata
        assert (metadata["n"], metadata["x"], metadata["yes"], metadata["words"]) == (7, 0.25, True, ["a", "é"])
        assert metadata["numbers"].tolist() == [1, -2]
        for name, value in values.items():
            assert file.tensors[name].shape == value.shape
            assert file.tensors[name].raw().tobytes() == value.tobytes()
        decoded = decode("Q8_0", file.tensors["q"].raw())
        assert isinstance(decoded, Quantised)
        assert np.array_equal(
            decoded.dequantize(), package.quants.dequantize(blocks, package.GGMLQuantizationType.Q8_0)
        )


def test_split_files_are_opened_by_any_part(tmp_path: Path) -> None:
    paths = write_gguf(tmp_path / "m.gguf", METADATA, TENSORS, split_bytes=3000)
    assert len(paths) > 3
    assert paths[0].name == f"m-00001-of-{len(paths):05d}.gguf"
    for path in paths:
        file = GgufFile.open(path)
        assert file.metadata["text.unicode"] == METADATA["text.unicode"]
        assert list(file.tensors) == [t.name for t in TENSORS]
        assert all(file.tensors[t.name].raw().tobytes() == t.read().tobytes() for t in TENSORS)


def test_a_split_set_must_be_complete_and_consistent(tmp_path: Path) -> None:
    paths = write_gguf(tmp_path / "m.gguf", METADATA, TENSORS, split_bytes=6000)
    n = len(paths)
    second = paths[1].read_bytes()
    paths[1].unlink()
    with pytest.raises(FormatError, match=f"one of {n} parts; 1 are missing beside it: {paths[1].name}"):
        GgufFile.open(paths[0])
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(FormatError, match=r"says it is part \(2, "):
        GgufFile.open(paths[0])
    paths[1].write_bytes(second)
    renamed = paths[0].rename(tmp_path / "other.gguf")
    with pytest.raises(FormatError, match="its name does not end in -00001-of-"):
        GgufFile.open(renamed)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"before")

    def fail() -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gguf(path, {}, [tensor("a", "F32", (4,)), TensorToWrite("b", (4,), TYPES["F32"], fail)])
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"a": -1}, [], "'a' is -1, which is not a uint32"),
        ({"a": [1]}, [], "list that is not all strings"),
        ({"a": None}, [], "'a' is a NoneType; allowed"),
        ({"a": np.zeros((2, 2))}, [], "one-dimensional"),
        ({"a": "\ud800"}, [], "half a surrogate pair"),
        ({"": 1}, [], "metadata key of 0 bytes"),
        ({}, [tensor("a", "F32", (1,))] * 2, "'a' is to be written twice"),
        ({}, [TensorToWrite("a", (0, 4), TYPES["F32"], lambda: np.zeros(0, np.uint8))], r"shape \(0, 4\)"),
        ({}, [TensorToWrite("a", (40,), TYPES["Q4_0"], lambda: np.zeros(9, np.uint8))], "multiples of 32"),
        ({}, [TensorToWrite("a", (4,), TYPES["F32"], lambda: np.zeros(9, np.uint8))], "gave 9 bytes of uint8"),
    ],
)
def test_the_writer_refuses(tmp_path: Path, metadata: dict[str, Any], tensors: list[Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        write_gguf(tmp_path / "m.gguf", metadata, tensors)
    assert list(tmp_path.iterdir()) == []


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def header(n_tensors: int = 0, n_keys: int = 0, version: int = 3, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + rest


def description(name: bytes = b"t", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", kind, offset)


def with_tensors(*descriptions: bytes, n_bytes: int = 1024, rest: bytes = b"") -> bytes:
    return header(len(descriptions), 0, rest=b"".join(descriptions) + bytes(n_bytes))


HOSTILE = {
    "empty": (b"", "has 0 bytes; at least 24"),
    "text": (b"Hello, I am a text file and no model at all.", "does not begin with 'GGUF'"),
    "version 1": (header(version=1), "GGUF version 1; allowed: 2 and 3"),
    "big-endian": (header(version=3 << 24), "the file is big-endian"),
    "many tensors": (header(1 << 60), "tensors; at most"),
    "many keys": (header(0, 1 << 60), "metadata keys; at most"),
    "no keys left": (header(0, 1), "byte 24: the length of a metadata key wants 8 bytes, 0 are left"),
    "long key": (header(0, 1, rest=struct.pack("<Q", 1 << 63)), "a metadata key has 9223372036854775808 bytes"),
    "short key": (header(0, 1, rest=struct.pack("<Q", 1000) + b"ab"), "wants 1000 bytes, 2 are left"),
    "key not text": (header(0, 1, rest=string(b"\xff") + bytes(8)), "a metadata key is not UTF-8"),
    "twice": (header(0, 2, rest=(string(b"a") + struct.pack("<IB", 0, 1)) * 2), "key 'a' appears twice"),
    "type 13": (header(0, 1, rest=string(b"a") + struct.pack("<I", 13)), "value type 13 of 'a' does not exist"),
    "truth": (header(0, 1, rest=string(b"a") + struct.pack("<IB", 7, 2)), "the truth value 2; allowed: 0 and 1"),
    "value not text": (header(0, 1, rest=string(b"a") + struct.pack("<I", 8) + string(b"\xc3")), "'a' is not UTF-8"),
    "nested": (header(0, 1, rest=string(b"a") + struct.pack("<IIQ", 9, 9, 1 << 40)), "none nested"),
    "long array": (header(0, 1, rest=string(b"a") + struct.pack("<IIQ", 9, 10, 1 << 61)), "array 'a' wants"),
    "many strings": (header(0, 1, rest=string(b"a") + struct.pack("<IIQ", 9, 8, 1 << 61)), "strings; at most"),
    "no strings": (header(0, 1, rest=string(b"a") + struct.pack("<IIQ", 9, 8, 9) + bytes(70)), "claims 9 strings"),
    "string ends": (
        header(0, 1, rest=string(b"a") + struct.pack("<IIQQQ", 9, 8, 2, 0, 1 << 63)),
        "string 1 of the array 'a' wants 9223372036854775808 bytes",
    ),
    "strings end": (
        header(0, 1, rest=string(b"a") + struct.pack("<IIQQ", 9, 8, 2, 3) + b"abcdefgh"),
        "string 1 of the array 'a'",
    ),
    "alignment": (
        header(0, 1, rest=string(b"general.alignment") + struct.pack("<II", 4, 33)),
        "general.alignment is 33; allowed: a power of two",
    ),
    "alignment a word": (
        header(0, 1, rest=string(b"general.alignment") + struct.pack("<I", 8) + string(b"x")),
        "general.alignment is 'x'",
    ),
    "split count": (
        header(0, 1, rest=string(b"split.count") + struct.pack("<IIQ", 9, 4, 1) + bytes(4)),
        "split.count is array",
    ),
    "tensor twice": (with_tensors(description(), description(offset=128)), "tensor 't' appears twice"),
    "no dimensions": (with_tensors(description(shape=())), "0 dimensions; allowed: 1 to 4"),
    "five dimensions": (with_tensors(description(shape=(1,) * 5)), "5 dimensions"),
    "no elements": (with_tensors(description(shape=(32, 0))), r"shape \(0, 32\); allowed: 1 to"),
    "product": (with_tensors(description(shape=(1 << 62, 1 << 62))), "allowed: 1 to"),
    "wrapped product": (with_tensors(description(shape=(1 << 32, 1 << 32, 1 << 32))), "allowed: 1 to"),
    "type": (with_tensors(description(kind=16)), r"weight type 16, which Vitral does not read; it reads F32 \(0\)"),
    "block": (with_tensors(description(shape=(40,), kind=2)), "rows of 40; Q4_0 wants multiples of 32"),
    "unaligned": (with_tensors(description(offset=4)), "begins at 4, which is not a multiple of 32"),
    "overlap": (with_tensors(description(), description(b"u", offset=96)), "'t' and 'u' overlap at 96"),
    "same place": (with_tensors(description(), description(b"u")), "overlap at 0"),
    "past the end": (with_tensors(description(shape=(999,))), "'t' ends .* bytes after the file"),
    "offset": (with_tensors(description(offset=1 << 63)), "bytes after the file"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_damage_is_named(tmp_path: Path, what: str) -> None:
    data, message = HOSTILE[what]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=message):
        GgufFile.open(path)


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, METADATA, TENSORS[:3])
    data = path.read_bytes()
    for n in [*range(1200), len(data) - 33]:
        path.write_bytes(data[:n])
        with pytest.raises(TruncatedFile):
            GgufFile.open(path)


def test_text_and_strings_have_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, {"a": ["abc", "de"], "b": "fgh"}, [])
    GgufFile.open(path)
    monkeypatch.setattr(ours, "_MOST_TEXT_BYTES", 7)
    with pytest.raises(FormatError, match="the value of 'b' has 3 bytes; at most 2"):
        GgufFile.open(path)
    monkeypatch.setattr(ours, "_MOST_TEXT_BYTES", 4)
    with pytest.raises(FormatError, match="over 4 bytes of text"):
        GgufFile.open(path)
    monkeypatch.setattr(ours, "_MOST_STRINGS", 1)
    with pytest.raises(FormatError, match="2 strings; at most 1"):
        GgufFile.open(path)


def test_what_is_no_regular_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be opened: No such file"):
        GgufFile.open(tmp_path / "missing.gguf")
    with pytest.raises(FormatError, match="is not a regular file"):
        GgufFile.open(tmp_path)


def test_a_published_vocabulary_is_read(data_dir: Path) -> None:
    file = GgufFile.open(data_dir / "tokenizer-llama-cpp" / "ggml-vocab-llama-spm.gguf")
    assert file.metadata["general.architecture"] == "llama"
    tokens = file.metadata["tokenizer.ggml.tokens"]
    assert (len(tokens), tokens[1], tokens[29871]) == (32_000, "<s>", "▁")
    assert file.metadata["tokenizer.ggml.scores"].shape == (32_000,)
    assert not file.tensors


def test_a_published_model_is_read(smollm2: Path) -> None:
    file = GgufFile.open(smollm2)
    assert file.metadata["llama.block_count"] == 30
    assert len(file.tensors) == 272
    assert file.tensors["token_embd.weight"].shape == (49152, 576)
    last = max(file.tensors.values(), key=lambda t: t.data.__array_interface__["data"][0])
    first = min(file.tensors.values(), key=lambda t: t.data.__array_interface__["data"][0])
    end = last.data.__array_interface__["data"][0] + last.data.nbytes
    start = first.data.__array_interface__["data"][0]
    assert 0.98 < (end - start) / smollm2.stat().st_size < 1
