"""Vocabularies and text that several tests here share; each is skipped, saying so, where its data is missing."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from vitral.formats.gguf import GgufFile
from vitral.tokenizer import Tokenizer, from_gguf, from_path

_TEXT_SETS = ("udhr", "literature-cc-by-sa", "literature-public-domain", "machado-dom-casmurro", "wikitext-2")
_CODE_LINES = 10_000


def need(path: Path) -> Path:
    """The path, or a skip that names it."""
    if not path.exists():
        pytest.skip(f"{path.name} is not in the development data (VITRAL_DATA)")
    return path


@pytest.fixture(scope="session")
def mistral_data() -> Path:
    """Vocabularies that come with mistral-common."""
    mistral_common = pytest.importorskip("mistral_common")
    return need(Path(mistral_common.__file__).parent / "data")


@pytest.fixture(scope="session")
def smol(smollm2: Path) -> Tokenizer:
    return from_gguf(GgufFile.open(smollm2).metadata)


@pytest.fixture(scope="session")
def llama2(data_dir: Path) -> Tokenizer:
    return from_gguf(GgufFile.open(need(data_dir / "tokenizer-llama-cpp" / "ggml-vocab-llama-spm.gguf")).metadata)


@pytest.fixture(scope="session")
def mistral_v1(data_dir: Path) -> Tokenizer:
    return from_path(need(data_dir / "tokenizer-mistral" / "tokenizer.model.v1"))


@pytest.fixture(scope="session")
def mistral_v3(data_dir: Path) -> Tokenizer:
    return from_path(need(data_dir / "tokenizer-mistral" / "mistral_instruct_tokenizer_240323.model.v3"))


@pytest.fixture(scope="session")
def tekken(mistral_data: Path) -> Tokenizer:
    return from_path(need(mistral_data / "tekken_240718.json"))


@pytest.fixture(scope="session")
def stories(data_dir: Path) -> Tokenizer:
    return from_path(need(data_dir / "model-stories260k" / "tok512.bin"))


@pytest.fixture(scope="session")
def lines(data_dir: Path) -> list[str]:
    """At least 20,000 different lines of prose in many languages and of Python code, spaces as they stand."""
    prose = [
        line for name in _TEXT_SETS for file in sorted(need(data_dir / name).glob("*.txt")) for line in _lines(file)
    ]
    code = list(islice(_code_lines(), _CODE_LINES))
    return list(dict.fromkeys(line for line in prose + code if line.strip()))


def _lines(file: Path) -> list[str]:
    return file.read_text("utf-8", "replace").split("\n")


def _code_lines() -> Iterator[str]:
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        yield from _lines(file)
