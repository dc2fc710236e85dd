"""Damage to the containers of weights, as a careful attacker would do it.

GGUF with other counts, types and offsets, safetensors with other headers, ZIP members packed again so that their
checksums pass, opcodes of pickles rearranged, other sizes for llama2.c.
"""

from __future__ import annotations

import io
import pickletools
import re
import struct
import warnings
import zipfile
import zlib
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from random import Random

from tests.formats.mutate_bytes import BLIND, NUMBERS, blind
from tests.formats.mutate_text import json_text
from tests.formats.tiny import GgufParts, assemble_gguf, assemble_safetensors, gguf_string, gguf_value


def safetensors_file(data: bytes, rng: Random) -> bytes:
    """The header changed as JSON, its length put right (nearly always)."""
    n = int.from_bytes(data[:8], "little")
    out = assemble_safetensors(json_text(data[8 : 8 + n], rng), data[8 + n :])
    return out if rng.random() < 0.95 else struct.pack("<Q", rng.choice(NUMBERS)) + out[8:]


# --- GGUF ------------------------------------------------------------------------------------------


def gguf_file(parts: GgufParts, rng: Random) -> bytes:
    """Metadata and descriptions changed, the file put together again."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        parts = _gguf_metadata(parts, rng) if rng.random() < 0.5 or not parts.tensors else _gguf_tensors(parts, rng)
    out = bytearray(assemble_gguf(parts))
    if rng.random() < 0.1:  # version, number of tensors, number of keys
        at, form = rng.choice(((4, "<I"), (8, "<Q"), (16, "<Q")))
        old = struct.unpack_from(form, out, at)[0]
        number = rng.choice([*NUMBERS, old - 1, old + 1, 2 * old, old << 24]) & ((1 << 8 * struct.calcsize(form)) - 1)
        struct.pack_into(form, out, at, number)
    return bytes(out)


def _gguf_metadata(parts: GgufParts, rng: Random) -> GgufParts:
    entries = list(parts.metadata)
    i = rng.randrange(len(entries)) if entries else 0
    match rng.randrange(8):
        case 0 if entries:
            del entries[i]
        case 1 if entries:
            entries.insert(i, rng.choice(entries))
        case 2 if entries:
            entries[i] = (entries[i][0], rng.choice(entries)[1])
        case 3:
            key = rng.choice(["general.alignment", "split.count", "split.no", "split.tensors.count", *_GGUF_KEYS])
            entries.append((key, _gguf_value(rng)))
        case 4 if entries:
            entries[i] = (entries[i][0] + rng.choice(("x", "\0", "é")), entries[i][1])
        case _ if entries:
            entries[i] = (entries[i][0], _gguf_value(rng))
    return replace(parts, metadata=tuple(entries))


_GGUF_KEYS = [
    "llama.rope.freq_base", "llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.expert_count",
    "llama.expert_used_count", "llama.attention.sliding_window", "llama.vocab_size", "llama.rope.scale_linear",
    "llama.rope.scaling.original_context_length", "llama.expert_gating_func", "llama.use_parallel_residual",
    "llama.rope.scaling.yarn_beta_fast", "llama.rope.scaling.attn_factor", "llama.unknown",
]  # fmt: skip


def _gguf_value(rng: Random) -> bytes:
    number = rng.choice([*NUMBERS, *range(40)])
    match rng.randrange(10):
        case 0:
            return gguf_value(rng.choice(["", "none", "linear", "yarn", "qwen2", "a" * 3000, "é"]))
        case 1:
            return gguf_value(rng.choice([True, False]))
        case 2:
            return gguf_value(rng.choice([0.0, -1.0, 1e-30, 1e30, float("inf"), float("nan"), 0.5]))
        case 3:
            return struct.pack("<Id", 12, rng.choice([1e300, -1e300, float("nan"), 1e-320]))
        case 4:
            return struct.pack("<IQ", 10, number)
        case 5:
            return struct.pack("<Iq", 11, -(number >> 1))
        case 6:
            return gguf_value(rng.choice([["a", "b"], [1], [1, 1, 1], [2, 3], [1.5, 2.5]]))
        case 7:
            kind = rng.randrange(14)
            return struct.pack("<IIQ", 9, kind, number) + rng.randbytes(rng.randrange(64))
        case 8:
            return struct.pack("<IIQ", 9, 8, 3) + gguf_string("a") + gguf_string(b"\xff\xc3") + gguf_string("b")
        case 9 if rng.random() < 0.5:  # arrays in arrays; strings and arrays of impossible lengths
            depth = rng.choice((1, 2, 40, 3000))
            text = struct.pack("<IQ", 8, number) + b"a"
            count = struct.pack("<IIQ", 9, rng.choice((0, 4, 7, 8, 12)), number)
            nested = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", 4, 0)
            return rng.choice((text, count, nested))
    return gguf_value(number & 0xFFFFFFFF)


def _gguf_tensors(parts: GgufParts, rng: Random) -> GgufParts:
    tensors = list(parts.tensors)
    i = rng.randrange(len(tensors))
    name, dims, kind, offset = tensors[i]
    number = rng.choice(NUMBERS)
    match rng.randrange(12):
        case 0:
            del tensors[i]
        case 1:
            tensors.append(rng.choice(tensors))
        case 2:
            tensors[i] = (rng.choice(tensors)[0], dims, kind, offset)
        case 3:
            tensors[i] = (name + rng.choice(("x", "\0", ".0", "é" * 40)), dims, kind, offset)
        case 4:
            tensors[i] = (name, dims, rng.randrange(45), offset)
        case 5:
            tensors[i] = (name, dims, kind, rng.choice([number, offset + 32, offset - 32 & (1 << 64) - 1, 0]))
        case 6:
            tensors[i] = (name, (*dims, number) if rng.random() < 0.7 else dims[:-1], kind, offset)
        case 10:  # over another tensor, or a few bytes into it
            other = rng.choice(tensors)
            tensors[i] = (name, dims, kind, other[3] + rng.choice((0, 1, 16, 32)))
        case 11:  # the same number of bytes as another type or shape
            tensors[i] = (
                name,
                rng.choice((dims[::-1], (*dims, 1), (1, *dims), (dims[0] * 2, *dims[1:]))),
                kind,
                offset,
            )
        case 7:
            tensors.append((rng.choice(["rope_freqs.weight", "blk.99.attn_q.weight", "x"]), dims, kind, offset))
        case _:
            at = rng.randrange(len(dims)) if dims else 0
            tensors[i] = (name, (*dims[:at], number, *dims[at + 1 :]), kind, offset)
    return replace(parts, tensors=tuple(tensors))


# --- zip and pickle --------------------------------------------------------------------------------


def zip_file(data: bytes, rng: Random) -> bytes:
    """Members changed and packed again with right checksums."""
    members = _members(data)
    names = list(members)
    pickled = next(name for name in names if name.endswith("data.pkl"))
    compressed = ""
    match rng.randrange(24):
        case 20 | 21 | 22 | 23:
            return _directory_trick(_packed(members, ""), rng)
        case 0:
            members.pop(rng.choice(names))
        case 1:
            name = rng.choice(names)
            members[name] = rng.choice([b"", members[name] * 2, members[name][:-1], members[rng.choice(names)]])
        case 2:
            name = rng.choice(names)
            members[rng.choice([name + "x", "/" + name, "../" + name, name.upper(), "data.pkl"])] = members.pop(name)
        case 3:
            compressed = rng.choice(names)
        case 4 if rng.random() < 0.1:
            return _packed(members, "", bomb=rng.choice(names))
        case 5:
            name = rng.choice(names)
            members[name] = blind(members[name], rng, len(members[name]))
        case 6 | 7 | 8:
            members[pickled] = blind(members[pickled], rng, len(members[pickled]))
        case _:
            members[pickled] = pickle_bytes(members[pickled], rng)
    return _packed(members, compressed, twice=rng.choice(names) if rng.random() < 0.02 else "")


def _directory_trick(data: bytes, rng: Random) -> bytes:
    """Sizes, places, flags, names or the end of the archive's directory changed; the members stay."""
    out = bytearray(data)
    end = out.rfind(b"PK\x05\x06")
    entries = [m.start() for m in re.finditer(rb"PK\x01\x02", data)]
    heads = [m.start() for m in re.finditer(rb"PK\x03\x04", data)]
    entry, number = rng.choice(entries), rng.choice([*NUMBERS, len(data), len(data) - 1, *heads])
    small = number & 0xFFFF
    match rng.randrange(9):
        case 0:  # version, flags, method, checksum, sizes, place of one entry
            at, form = rng.choice(((6, "<H"), (8, "<H"), (10, "<H"), (16, "<I"), (20, "<I"), (24, "<I"), (42, "<I")))
            struct.pack_into(form, out, entry + at, small if form == "<H" else number & 0xFFFFFFFF)
        case 1:  # both sizes of a stored member alike
            struct.pack_into("<II", out, entry + 20, *[number & 0xFFFFFFFF] * 2)
        case 2:  # lengths of name, extra fields and comment
            struct.pack_into("<H", out, entry + rng.choice((28, 30, 32)), small)
        case 3:  # counts, size and start of the directory
            at, form = rng.choice(((4, "<H"), (6, "<H"), (8, "<H"), (10, "<H"), (12, "<I"), (16, "<I")))
            struct.pack_into(form, out, end + at, small if form == "<H" else number & 0xFFFFFFFF)
        case 4:  # an entry that points at another member's head: two members over each other
            struct.pack_into("<I", out, entry + 42, rng.choice(heads))
        case 5:  # the head of a member disagrees with the directory
            struct.pack_into("<H", out, rng.choice(heads) + rng.choice((26, 28)), small)
        case 6:  # a comment with another end in it
            struct.pack_into("<H", out, end + 20, 22)
            out += struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, small, number & 0xFFFFFFFF, 0)
        case 7:  # zip64 records that say something else
            counts = [rng.choice([*NUMBERS, len(entries)]) for _ in range(4)]
            record = struct.pack("<IQHHII4Q", 0x06064B50, 44, 45, 45, 0, 0, *counts)
            place = rng.choice((end, number & ((1 << 64) - 1)))
            out[end:end] = record + struct.pack("<IIQI", 0x07064B50, 0, place, 1)
        case 8:  # bytes before the archive
            out[0:0] = rng.randbytes(rng.choice((1, 4, 64)))
    return bytes(out)


@lru_cache(maxsize=8)
def _read_members(data: bytes) -> tuple[tuple[str, bytes], ...]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return tuple((info.filename, archive.read(info)) for info in archive.infolist())


def _members(data: bytes) -> dict[str, bytes]:
    return dict(_read_members(data))


def _packed(members: dict[str, bytes], compressed: str, twice: str = "", bomb: str = "") -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        warnings.simplefilter("ignore")
        for name, data in members.items():
            method = zipfile.ZIP_DEFLATED if name == compressed else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(name), data, method)  # of 1980: the same bytes at any time
        if twice in members:
            archive.writestr(zipfile.ZipInfo(twice), members[twice])
    out = buffer.getvalue()
    return _with_bomb(out, bomb) if bomb else out


_BOMB_BYTES = 400 << 20


@lru_cache(maxsize=1)
def _bomb() -> tuple[bytes, int]:
    """400 MB of zeros deflated to under half a megabyte, and their checksum."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    chunk, crc, out = bytes(1 << 20), 0, []
    for _ in range(_BOMB_BYTES >> 20):
        out.append(packer.compress(chunk))
        crc = zlib.crc32(chunk, crc)
    return b"".join([*out, packer.flush()]), crc


def _with_bomb(data: bytes, name: str) -> bytes:
    """One member replaced by the bomb; all others as they are."""
    packed, crc = _bomb()
    out, directory, n = bytearray(), bytearray(), 0
    for member, content in _members(data).items():
        is_bomb = member == name
        stored = packed if is_bomb else content
        size = _BOMB_BYTES if is_bomb else len(content)
        fields = (8 if is_bomb else 0, 0, 0x21, crc if is_bomb else zlib.crc32(content), len(stored), size)
        encoded = member.encode()
        directory += struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, *fields, len(encoded), 0, 0, 0, 0, 0, len(out))  # fmt: skip
        directory += encoded
        out += struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, *fields, len(encoded), 0) + encoded + stored
        n += 1
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, n, n, len(directory), len(out), 0)
    return bytes(out + directory + end)


_SNIPPETS = [
    b"0", b"1", b"2", b"(", b")", b"]", b"}", b"N", b"t", b"\x85", b"\x86", b"\x87", b"R", b"b", b"s", b"u", b"e", b"a",
    b"Q", b"\x81", b"\x92", b"\x93", b"\x94", b".", b"l", b"d", b"o", b"G" + bytes(8), b"\x88", b"\x89", b"\x8f", b"\x90",
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n", b"c__builtin__\ngetattr\n", b"ctorch\nload\n", b"P0\n", b"I1\n", b"I01\n", b"F1\n",
    b"L1L\n", b"I" + b"9" * 5000 + b"\n", b"V\\ud800\n", b"S'x'\n", b"\x82\x01", b"\x80\x05", b"\x95" + b"\xff" * 8,
    b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f", b"q\xff", b"h\xff", b"X\xff\xff\xff\xff", b"X\x02\0\0\0\xff\xfe",
    b"\x8d" + b"\xff" * 8, b"\x8e" + b"\xff" * 8, b"B\xff\xff\xff\xff", b"\x8b\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\xff",
    b"\x8a\xff" + b"\x7f" * 255, b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"M\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
    b")" + b"2\x86" * 40, b"]" + b"2\x86" * 200, b")" + b"\x85" * 50_000, b"(" * 50_000, b"]" * 50_000, b"]2a",
]  # fmt: skip


@lru_cache(maxsize=8)
def _operations(data: bytes) -> tuple[int, ...]:
    return tuple(position for _, _, position in pickletools.genops(data) if position is not None)


def pickle_bytes(data: bytes, rng: Random) -> bytes:
    """Opcodes removed, repeated, exchanged, replaced, or their arguments changed."""
    starts = [*_operations(data), len(data)]
    operations = [data[a:b] for a, b in pairwise(starts)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        i = rng.randrange(len(operations))
        match rng.randrange(7):
            case 0:
                del operations[i : i + rng.choice((1, 1, 2, 5))]
            case 1:
                operations[i:i] = operations[i : i + rng.choice((1, 2, 5))] * rng.choice((1, 1, 3, 100))
            case 2:
                j = rng.randrange(len(operations))
                operations[i], operations[j] = operations[j], operations[i]
            case 3:
                operations.insert(i, rng.choice(_SNIPPETS))
            case 4:
                operations[i] = rng.choice(_SNIPPETS)
            case 5:
                operations[i] = operations[i][:1] + _argument(operations[i], rng)
            case _:
                operations[i] = _whole_number(rng) if operations[i][:1] in b"KMJ" else operations[i][:1]
        operations = operations or [b"."]
    return b"".join(operations)


def _argument(operation: bytes, rng: Random) -> bytes:
    argument = bytearray(operation[1:])
    if argument:
        rng.choice(BLIND)(argument, rng.randrange(len(argument)), rng.choice((1, 2, 4)), rng)
    return bytes(argument)


def _whole_number(rng: Random) -> bytes:
    number = rng.choice([*NUMBERS, -1, -8, -(1 << 31), -(1 << 63)])
    if -(1 << 31) <= number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x09" + number.to_bytes(9, "little", signed=True)


# --- llama2.c --------------------------------------------------------------------------------------


def header_numbers(data: bytes, rng: Random) -> bytes:
    """One or two of the seven sizes changed, now and then the length too."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2))):
        at = 4 * rng.randrange(7)
        old = struct.unpack_from("<i", out, at)[0]
        number = rng.choice([*NUMBERS, -1, -old, old + 1, old - 1, 2 * old]) & 0xFFFFFFFF
        out[at : at + 4] = number.to_bytes(4, "little")
    if rng.random() < 0.2:
        del out[rng.randrange(len(out)) :]
    return bytes(out)
