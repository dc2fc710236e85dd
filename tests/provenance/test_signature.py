"""Signatures: every change is found and named; the library's own command line and ours understand each other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.formats import tiny
from tests.provenance.models import folder_model
from vitral.errors import SettingsError, SignatureError
from vitral.provenance import signature
from vitral.provenance.gate import admit
from vitral.provenance.signature import make_key, sign, signature_path, verify

pytest.importorskip("model_signing.signing")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "key", make_key(tmp_path / "key")


def command(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """The library's own command line."""
    return subprocess.run(
        [sys.executable, "-m", "model_signing", *map(str, args)], capture_output=True, text=True, timeout=120
    )


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "first byte": (lambda m: flip(m / "model.safetensors", 0), "model.safetensors was changed"),
    "last byte": (lambda m: flip(m / "model.safetensors", -1), "model.safetensors was changed"),
    "a byte of the template": (lambda m: flip(m / "tokenizer_config.json", 30), "tokenizer_config.json was changed"),
    "added": (lambda m: (m / "new.bin").write_text("x"), "new.bin was added"),
    "added, hidden": (lambda m: (m / ".gitattributes").write_text("x"), ".gitattributes was added"),
    "removed": (lambda m: (m / "config.json").unlink(), "config.json is missing"),
    "renamed": (lambda m: (m / "README.md").rename(m / "READ.md"), "README.md was renamed to READ.md"),
    "emptied": (lambda m: (m / "LICENSE").write_text(""), "LICENSE was changed"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_found_and_named(change: str, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    model = folder_model(tmp_path / "m")
    sign(model, keys[0])
    assert verify(model, keys[1])
    alter, name = CHANGES[change]
    alter(model)
    verdict = verify(model, keys[1])
    assert verdict.passed is False
    assert verdict.reasons == (name,)


def test_another_key_and_a_changed_signature_are_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    model = folder_model(tmp_path / "m")
    path = sign(model, keys[0])
    assert verify(model, make_key(tmp_path / "other")).passed is False
    text = path.read_text()
    path.write_text(text.replace('"payload": "e', '"payload": "f').replace('"payload":"e', '"payload":"f'))
    assert path.read_text() != text
    assert verify(model, keys[1]).passed is False


def test_ours_verifies_with_the_command_and_theirs_with_us(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    ours, theirs = folder_model(tmp_path / "ours"), folder_model(tmp_path / "theirs")
    sign(ours, keys[0])
    done = command("verify", "key", ours, "--signature", signature_path(ours), "--public_key", keys[1])
    assert done.returncode == 0, done.stderr
    done = command("sign", "key", theirs, "--signature", signature_path(theirs), "--private_key", keys[0])
    assert done.returncode == 0, done.stderr
    assert verify(theirs, keys[1])


def test_a_single_file_has_its_signature_beside_it(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    model = tiny.gguf()[0].write(tmp_path / "m")
    assert sign(model, keys[0]) == model.with_name("model.gguf.sig")
    assert verify(model, keys[1])
    flip(model, 500)
    assert verify(model, keys[1]).reasons == ("model.gguf was changed",)


def test_a_file_of_a_signed_folder_is_verified_with_the_folder(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    folder = tmp_path / "m"
    model = tiny.gguf()[0].write(folder)
    sign(folder, keys[0])
    assert verify(model, keys[1])
    (folder / "more.txt").write_text("x")
    assert verify(model, keys[1]).reasons == ("more.txt was added",)


def test_loading_verifies_where_it_is_asked_to(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    model = folder_model(tmp_path / "m")
    with pytest.raises(SignatureError, match="has no signature"):
        admit(model, tmp_path, keys[1])
    sign(model, keys[0])
    admit(model, tmp_path, keys[1])
    flip(model / "tokenizer.json", -2)
    with pytest.raises(SignatureError, match=r"is not what was signed: .*tokenizer\.json"):
        admit(model, tmp_path, keys[1])


def test_keys_are_never_overwritten_and_are_ones_own(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    assert keys[0].stat().st_mode & 0o077 == 0
    with pytest.raises(SettingsError, match="never overwritten"):
        make_key(keys[0])
    keys[1].write_text("no key")
    model = folder_model(tmp_path / "m")
    sign(model, keys[0])
    with pytest.raises(SignatureError, match="no key that can be used"):
        verify(model, keys[1])


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> object:
        raise ImportError("No module named 'OpenSSL'", name="OpenSSL")

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(SettingsError, match=r"OpenSSL.*vitral\[sign\]"):
        signature._library("signing")
