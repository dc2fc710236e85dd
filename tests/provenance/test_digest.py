"""Digests and manifests: bounded memory, gguf-hash's sums, every change named."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import uuid
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.formats import tiny
from tests.provenance.models import folder_model
from vitral.errors import FormatError
from vitral.formats.checkpoint import open_checkpoint
from vitral.formats.convert import convert
from vitral.formats.gguf_write import TensorToWrite, write_gguf
from vitral.formats.quants import TYPES
from vitral.provenance.digest import DigestCache, digest_files, gguf_differences, gguf_hash, model_files, sha256_of
from vitral.provenance.manifest import check, manifest_text


def test_digests_are_those_of_the_bytes_whatever_the_threads(tmp_path: Path) -> None:
    sizes = (0, 1, 700_000, 1 << 20, (1 << 20) + 1, 18 << 20)  # the last goes round all pieces that are read ahead
    contents = {f"d{i}/f{i}": random.Random(i).randbytes(size) for i, size in enumerate(sizes)}
    for name, data in contents.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(data)
    told: list[tuple[int, int]] = []
    for threads in (1, 3):
        found = digest_files(model_files(tmp_path), threads, lambda done, total: told.append((done, total)))
        assert {name: one.sha256 for name, one in found.items()} == {
            name: hashlib.sha256(data).hexdigest() for name, data in contents.items()
        }
    total = sum(map(len, contents.values()))
    assert told[-1] == (total, total)


def test_an_error_in_reading_ends_the_digest_and_says_so() -> None:
    with pytest.raises(FormatError, match="/proc/self/mem cannot be read: Input/output error"):
        digest_files({"memory": Path("/proc/self/mem")})


def test_whoever_stops_on_the_way_leaves_no_thread_behind(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(40 << 20))

    def stop(n: int) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        sha256_of(tmp_path / "a", stop)
    assert threading.active_count() == before


LLAMA_CPP = Path(__file__).parent / "gguf-hash.manifest"
"""What gguf-hash itself printed for the test.gguf of llama.cpp (examples/gguf-hash/README.md)."""


def llama_cpp_model(folder: Path) -> Path:
    """llama.cpp's test.gguf, as far as sums see it: in tensor_i every number is 100 + i."""
    sizes = (1344, 420, 80, 147, 2, 8, 3, 192, 9, 320)
    data = [np.full(size, 100 + i, np.float32) for i, size in enumerate(sizes)]
    tensors = [
        TensorToWrite(f"tensor_{i}", (1, each.size), TYPES["F32"], partial(each.view, np.uint8))
        for i, each in enumerate(data)
    ]
    write_gguf(folder / "test.gguf", {"general.architecture": "llama"}, tensors)
    return folder / "test.gguf"


def test_the_sums_are_those_that_gguf_hash_prints(tmp_path: Path) -> None:
    lines = gguf_hash(llama_cpp_model(tmp_path)).lines("test.gguf")
    assert [line for line in lines if not line.startswith("uuid")] == LLAMA_CPP.read_text().splitlines()


def test_a_manifest_of_gguf_hash_is_checked(tmp_path: Path) -> None:
    model = llama_cpp_model(tmp_path)
    assert gguf_differences(model, LLAMA_CPP) == []
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    found = gguf_differences(model, LLAMA_CPP)
    assert {"tensor_9: sha256 differs", "the whole: xxh64 differs"} <= set(found) and len(found) == 6
    theirs = tmp_path / "m"
    theirs.write_text(LLAMA_CPP.read_text().replace("tensor_9", "tensor_x"))
    assert {"tensor_x is missing", "tensor_9 was added"} <= set(gguf_differences(llama_cpp_model(tmp_path), theirs))
    for text in ("", "md5  00  test.gguf", "one two"):
        theirs.write_text(text)
        with pytest.raises(FormatError):
            gguf_differences(model, theirs)


def test_gguf_hash_is_that_of_tensors_in_the_order_of_the_file(tmp_path: Path) -> None:
    """The oracle is the package `gguf`, which finds the same bytes by itself."""
    path = tiny.gguf()[0].write(tmp_path)
    tensors = gguf.GGUFReader(path).tensors
    sums = gguf_hash(path)
    assert {name: each["sha256"] for name, each in sums.tensors.items()} == {
        t.name: hashlib.sha256(t.data.tobytes()).hexdigest() for t in tensors
    }
    every = b"".join(t.data.tobytes() for t in tensors)
    assert sums.whole["sha256"] == hashlib.sha256(every).hexdigest()
    name = hashlib.sha1(uuid.UUID("ef001206-dadc-5f6d-a15f-3359e577d4e5").bytes + every).digest()
    assert sums.whole["uuid"] == str(uuid.UUID(bytes=name[:16], version=5))


def test_split_model_has_the_sums_of_the_whole(tmp_path: Path) -> None:
    whole, split = tiny.gguf()[0].write(tmp_path / "a"), tiny.gguf()[3].write(tmp_path / "b")
    assert gguf_hash(whole).whole == gguf_hash(split).whole


def test_a_file_is_read_again_only_when_it_has_changed(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in "abc"}
    for name, path in files.items():
        path.write_text(name * 10)
    cache = DigestCache()
    first, read = cache.digests(files)
    assert read == 30 and first == digest_files(files)
    assert cache.digests(files) == (first, 0)
    before = files["b"].stat()
    files["b"].write_text("B" * 10)  # as long, and dated as it was
    os.utime(files["b"], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.digests(files) == (digest_files(files), 10)
    files["c"].unlink()
    with pytest.raises(FormatError, match="cannot be read"):
        cache.digests(files)


def test_the_cache_is_bounded_and_forgets_the_oldest(tmp_path: Path) -> None:
    files = {str(i): tmp_path / str(i) for i in range(4)}
    for path in files.values():
        path.write_text("12345")
    cache = DigestCache(most=3)
    cache.digests(files)
    assert cache.digests({"3": files["3"]})[1] == 0
    assert cache.digests({"0": files["0"]})[1] == 5


def test_the_same_weights_in_another_container_have_the_same_digest(tmp_path: Path) -> None:
    """Also where GGUF keeps as float32 what was bfloat16: vectors and routers."""
    for i, sample in enumerate((tiny.safetensors()[0], tiny.mistral()[1])):
        source = sample.write(tmp_path / f"a{i}")
        convert(source, tmp_path / f"{i}.gguf")
        convert(tmp_path / f"{i}.gguf", tmp_path / f"b{i}", layout="safetensors")
        digests = {
            open_checkpoint(path).weights.digest() for path in (source, tmp_path / f"{i}.gguf", tmp_path / f"b{i}")
        }
        assert len(digests) == 1


def test_every_change_of_files_is_named(tmp_path: Path) -> None:
    model, manifest = folder_model(tmp_path / "m"), tmp_path / "manifest.json"
    manifest.write_text(manifest_text(digest_files(model_files(model))))
    assert check(model, manifest)
    data = bytearray((model / "model.safetensors").read_bytes())
    for at in (0, len(data) // 2, len(data) - 1):
        data[at] ^= 1
        (model / "model.safetensors").write_bytes(data)
        assert check(model, manifest).reasons == ("model.safetensors was changed",)
        data[at] ^= 1
    (model / "model.safetensors").write_bytes(data)
    (model / "README.md").rename(model / "READ.md")
    (model / "config.json").unlink()
    (model / ".hidden").write_text("x")
    assert check(model, manifest).reasons == (
        "README.md was renamed to READ.md", "config.json is missing", ".hidden was added",
    )  # fmt: skip


def test_what_is_no_manifest_says_so(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text("{}")
    with pytest.raises(FormatError, match="is no manifest"):
        check(tmp_path, tmp_path / "m.json")
