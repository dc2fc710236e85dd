"""The store shows whole models or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitral.errors import HubError, ModelNotFound
from vitral.hub import at_hand
from vitral.hub.store import Store
from vitral.provenance.digest import sha256_of


def put(store: Store, name: str, content: bytes) -> Path:
    with store.staging() as folder:
        staged = folder / "files"
        staged.mkdir()
        (staged / "model.gguf").write_bytes(content)
        return store.add(name, staged, "model.gguf", "test")


def test_what_is_added_is_found_with_its_digest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = put(store, "a:1", b"weights")
    assert store.path("a:1") == path
    assert path.read_bytes() == b"weights"
    entry = store.entries()["a:1"]
    assert entry.files == {"model.gguf": sha256_of(path)}
    assert entry.n_bytes == 7


def test_a_model_of_the_store_is_found_by_where_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAL_HOME", str(tmp_path))
    store = Store(tmp_path)
    with store.staging() as folder:
        staged = folder / "files"
        staged.mkdir()
        (staged / "model.gguf").write_bytes(b"weights")
        path = store.add("mine", staged, "model.gguf", "hf:Acme/Base@c0ffee:q8")
    assert at_hand("mine") == at_hand("acme/base") == path
    assert at_hand("acme/other") is None


def test_a_failed_fetch_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(RuntimeError), store.staging() as folder:
        (folder / "half").write_bytes(b"half")
        raise RuntimeError("cut")
    assert list(store.models.iterdir()) == []
    assert store.entries() == {}


def test_equal_files_under_two_names_are_kept_until_both_go(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store, "a", b"same")
    kept = put(store, "a", b"same")
    put(store, "b", b"other")
    store.remove("b")
    assert kept.exists()
    store.remove("a")
    assert not kept.exists()
    with pytest.raises(ModelNotFound, match="nothing"):
        store.remove("a")


def test_a_file_that_vanished_is_reported(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store, "a", b"x").unlink()
    with pytest.raises(HubError, match="vitral rm a"):
        store.path("a")


@pytest.mark.parametrize("text", ["{", "[]", '{"models": {"a": {}}}'])
def test_a_broken_index_is_an_error_that_names_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(HubError, match=r"index\.json"):
        Store(tmp_path).entries()
