"""Libraries of the engine: what each package says of its licence, and what is concluded from its texts."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from vitral.provenance.libraries import Library, libraries, library

APACHE = (Path(__file__).parents[2] / "LICENSE").read_text("utf-8")
LIMIT = "You must not show this software to any person whose revenue or whose number of users is above what we may say."
BSD = "Classifier: License :: OSI Approved :: BSD License\n"


def installed(folder: Path, said: str, files: dict[str, str] | None = None) -> Library:
    """A package with this metadata and these licence files."""
    info = folder / "one-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: One\nVersion: 1.0\n{said}")
    for name, text in (files or {}).items():
        (info / name).parent.mkdir(exist_ok=True)
        (info / name).write_text(text)
    (info / "RECORD").write_text("".join(f"{info.name}/{name},,\n" for name in files or {}))
    return library(metadata.PathDistribution(info))


def test_an_expression_is_the_packages_word(tmp_path: Path) -> None:
    found = installed(tmp_path, f"License-Expression: MIT OR Apache-2.0\n{BSD}", {"LICENSE": APACHE})
    assert (found.name, found.licence, found.basis, found.label) == ("one", "MIT OR Apache-2.0", "declared", None)


def test_a_field_that_is_an_id_is_the_packages_word(tmp_path: Path) -> None:
    found = installed(tmp_path, "License: apache-2.0\n")
    assert (found.licence, found.basis) == ("Apache-2.0", "declared")
    assert "the field License" in found.note


def test_a_classifier_stands_as_it_is_and_nothing_is_guessed_from_it(tmp_path: Path) -> None:
    found = installed(tmp_path, BSD)
    assert (found.licence, found.label) == (None, "BSD License")
    assert found.note.endswith("no licence file is installed with it")


@pytest.mark.parametrize("name", ["LICENSE.txt", "licenses/LICENSE"])
def test_the_text_of_one_licence_is_concluded_from(tmp_path: Path, name: str) -> None:
    found = installed(tmp_path, BSD, {name: APACHE})
    assert (found.licence, found.basis, found.label) == ("Apache-2.0", "concluded", "BSD License")
    assert f"concluded from {name.rpartition('/')[2]}" in found.note


def test_a_text_in_the_field_is_concluded_from(tmp_path: Path) -> None:
    found = installed(tmp_path, "License: " + "\n        ".join(APACHE.splitlines()) + "\n")
    assert (found.licence, found.basis, found.label) == ("Apache-2.0", "concluded", None)


def test_a_text_with_more_in_it_concludes_nothing(tmp_path: Path) -> None:
    found = installed(tmp_path, BSD, {"LICENSE": f"{APACHE}\n{LIMIT}"})
    assert (found.licence, found.texts) == (None, ("Apache-2.0",))
    assert "further terms" in found.note


def test_a_text_that_nobody_knows_is_said(tmp_path: Path) -> None:
    found = installed(tmp_path, BSD, {"COPYING": LIMIT})
    assert (found.licence, found.texts) == (None, ())
    assert "the text in COPYING is not known" in found.note


def test_every_library_of_the_engine_says_something_and_how_it_was_found() -> None:
    found = libraries()
    assert {"numpy", "tokenizers", "tiktoken", "jinja2", "llguidance"} <= {one.name for one in found}
    assert all((one.licence or one.label) and one.note for one in found), found
