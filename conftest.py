"""What the examples in docstrings find under the name `model`: the 260,000-parameter Llama of the data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import find_data

DOCUMENTED = "vitral.language_model.LanguageModel"


@pytest.fixture(scope="session")
def stories() -> Iterator[object]:
    """A model small enough to load in a moment."""
    import vitral

    with vitral.load(find_data() / "model-stories260k" / "stories260K.bin") as model:
        yield model


@pytest.fixture(autouse=True)
def _model_for_docstrings(request: pytest.FixtureRequest) -> None:
    if isinstance(request.node, pytest.DoctestItem) and request.node.name.startswith(DOCUMENTED):
        namespace: dict[str, Any] = request.getfixturevalue("doctest_namespace")
        namespace["model"] = request.getfixturevalue("stories")
