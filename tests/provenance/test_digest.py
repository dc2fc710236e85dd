"""Digests and manifests: bounded memory, gguf-hash's sums, every change named."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

import gguf
import pytest

from tests.formats import tiny
from tests.provenance.models import folder_model
from vitral.errors import FormatError
from vitral.formats.checkpoint import open_checkpoint
from vitral.formats.convert import convert
from vitral.provenance.digest import digest_files, gguf_hash, model_files
from vitral.provenance.manifest import check, manifest_text


def test_digests_are_those_of_the_bytes_whatever_the_threads(tmp_path: Path) -> None:
    contents = {f"d{i}/f{i}": bytes([i]) * (i * 700_000) for i in range(5)}
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


def test_gguf_hash_is_that_of_tensors_in_the_order_of_the_file(tmp_path: Path) -> None:
    """The oracle is the package `gguf`, which finds the same bytes by itself."""
    path = tiny.gguf()[0].write(tmp_path)
    tensors = gguf.GGUFReader(path).tensors
    sums = gguf_hash(path)
    assert sums.tensors == {t.name: hashlib.sha256(t.data.tobytes()).hexdigest() for t in tensors}
    every = b"".join(t.data.tobytes() for t in tensors)
    assert sums.sha256 == hashlib.sha256(every).hexdigest()
    assert sums.sha1 == hashlib.sha1(every).hexdigest()
    name = hashlib.sha1(uuid.UUID("ef001206-dadc-5f6d-a15f-3359e577d4e5").bytes + every).digest()
    assert sums.uuid == str(uuid.UUID(bytes=name[:16], version=5))
    assert sums.lines("m.gguf")[0] == f"sha256    {sums.tensors[tensors[0].name]}  m.gguf:{tensors[0].name}"


def test_split_model_has_the_sums_of_the_whole(tmp_path: Path) -> None:
    whole, split = tiny.gguf()[0].write(tmp_path / "a"), tiny.gguf()[3].write(tmp_path / "b")
    assert gguf_hash(whole).sha256 == gguf_hash(split).sha256


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
