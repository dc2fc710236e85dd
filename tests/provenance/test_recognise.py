"""Licence texts are told apart, however they come; an unknown one is unknown.

The real texts come from a package (see texts.py). Made-up families of near texts show what the method
itself can tell apart, on any machine.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from tests.provenance.texts import KEYS, UNKNOWN, WHEEL, entry, texts
from vitral.provenance.detect import of_text
from vitral.provenance.fingerprint import SHINGLE, WINDOW, winnow, words_of
from vitral.provenance.recognise import Known, Recognition, known_texts, recognise, recognised_by
from vitral.provenance.terms import catalogue


@pytest.fixture(scope="module")
def real() -> dict[str, str]:
    """Licence texts by ScanCode's key."""
    found = texts()
    if found is None:
        pytest.skip("scancode-toolkit cannot be fetched here: set VITRAL_LICENCE_TEXTS to a folder of its licences")
    return found


def only(found: Recognition) -> tuple[str, ...]:
    assert len(found.matches) == 1, found
    return found.matches[0].licences


@pytest.mark.parametrize("key", KEYS)
def test_a_real_text_is_recognised_and_nothing_else_is(real: dict[str, str], key: str) -> None:
    text, id = real[key], (KEYS[key],)
    assert only(recognise(text)) == id
    spaced = text.replace("\n", "\n  // ").replace(" ", "   ").replace("the", "THE").replace('"', "“")
    assert only(recognise(spaced)) == id
    lines = text.split("\n")
    assert only(recognise("\n".join(lines[max(4, len(lines) // 12) :]))) == id, "without its header"
    inside = "Our model answers questions about the sea. " * 300 + text + "\nWe thank all who read this page. " * 100
    assert only(recognise(inside)) == id


@pytest.mark.parametrize("key", KEYS)
def test_a_quarter_of_a_real_text_names_it_among_its_kin_or_nothing(real: dict[str, str], key: str) -> None:
    words = real[key].split()
    for at in range(4):
        found = recognise(" ".join(words[at * len(words) // 4 : (at + 1) * len(words) // 4]))
        assert found.unknown or KEYS[key] in found.matches[0].licences


@pytest.mark.parametrize("key", UNKNOWN)
def test_a_licence_that_is_not_in_the_catalogue_is_unknown(real: dict[str, str], key: str) -> None:
    assert recognise(real[key]).unknown


def test_several_licences_in_one_file_are_all_found(real: dict[str, str]) -> None:
    found = recognise(real["llama-3.2-license-2024"] + real["apache-2.0"] + real["mit"])
    assert {match.licences for match in found.matches} == {("llama3.2",), ("apache-2.0",), ("mit",)}


def test_shipped_fingerprints_are_those_of_the_texts(real: dict[str, str]) -> None:
    shipped = {known.source: known for known in known_texts()}
    for key, id in KEYS.items():
        made = entry(id, "", real[key])
        [known] = [known for source, known in shipped.items() if source.endswith(f" {key}")]
        assert (known.id, known.sha256) == (id, made["sha256"])


def test_a_sentence_added_to_mit_is_seen(real: dict[str, str]) -> None:
    added = (
        "You are not authorized to exercise any rights under this license if the global consolidated monthly revenue "
        "of your company exceeds 20 million dollars for the preceding month."
    )
    [item] = of_text(f"Modified MIT License\n{real['mit']}\n{added}", "LICENSE", is_licence=True)
    assert item.doubtful and "further terms" in item.note
    [plain] = of_text(f"Copyright (c) 2026 Somebody and others\n\n{real['mit']}", "LICENSE", is_licence=True)
    assert not plain.doubtful and plain.licences == ("mit",)


def test_apache_is_recognised_from_the_system_and_the_project() -> None:
    ours = (Path(__file__).parents[2] / "LICENSE").read_text("utf-8")
    assert only(recognise(ours)) == ("apache-2.0",)


def test_llama2_is_recognised_as_another_project_wraps_it(data_dir: Path) -> None:
    text = (data_dir / "tokenizer-llama-cpp" / "LLAMA2-LICENSE.txt").read_text("utf-8")
    assert only(recognise(text)) == ("llama2",)


@pytest.mark.parametrize(
    "text", ["", "mit", "Licensed under MIT, Apache, Llama 3.1 and Ireland Limited." * 3, "\x00" * 999, "<" * 9999]
)
def test_a_mention_is_no_licence(text: str) -> None:
    assert recognise(text).unknown


def family(seed: int, versions: int) -> dict[str, str]:
    """Versions of one made-up licence that differ in a name, a date and a sentence: nine tenths are the same."""
    source = random.Random(seed)
    words = ["".join(source.choices("abcdefghij", k=6)) for _ in range(300)]
    common = [source.choices(words, k=12) for _ in range(90)]
    made = {}
    for version in range(versions):
        own = [[f"model{version}", *source.choices(words, k=11)] for _ in range(9)]
        made[f"v{version}"] = ". ".join(" ".join(line) for line in common[:45] + own + common[45:])
    return made


def test_versions_that_share_nine_tenths_are_told_apart() -> None:
    made = family(1, 5)
    known = [
        Known(id, "made up", len(words_of(text)), "", frozenset(p.value for p in winnow(words_of(text))))
        for id, text in made.items()
    ]
    for id, text in made.items():
        assert only(recognise(text, known)) == (id,)
    shared = ". ".join(made["v0"].split(". ")[:45])
    [match] = recognise(shared, known).matches
    assert match.licences == tuple(made) and match.ambiguous, "a passage that all share names all"


def test_a_licence_of_which_passages_alone_are_known_is_found_in_its_whole_text() -> None:
    whole = family(3, 1)["v0"]
    passage = words_of(". ".join(whole.split(". ")[40:60]))
    known = [Known("mrl", "made up", len(passage), "", frozenset(p.value for p in winnow(passage)), partial=True)]
    found = recognise(f"You must not; you shall not. {whole}", known)
    assert only(found) == ("mrl",) and found.matches[0].partial
    assert found.explained < 0.5 and found.added == "", "the rest cannot be compared, so nothing counts as added"


def test_a_short_licence_is_found_beside_more_words_of_a_long_one() -> None:
    long, short = words_of(family(5, 1)["v0"]), words_of(family(6, 1)["v0"])[:90]
    known = [
        Known(id, "made up", len(words), "", frozenset(p.value for p in winnow(words)))
        for id, words in (("long", long), ("short", short))
    ]
    borrowed = " ".join([*long[:300], *short])  # a quarter of the long one is more than all of the short one
    found = recognise(f"{borrowed} {'what the weather was like on that day ' * 60}", known)
    assert only(found) == ("short",)


def test_every_shared_passage_of_guaranteed_length_shares_a_print() -> None:
    source = random.Random(7)
    for _ in range(50):
        passage = [f"w{source.randrange(10**6)}" for _ in range(SHINGLE + WINDOW - 1)]
        texts = [[f"x{source.randrange(10**6)}" for _ in range(60)] for _ in range(2)]
        prints = [{p.value for p in winnow(text[:20] + passage + text[20:])} for text in texts]
        assert prints[0] & prints[1]


def test_a_title_without_its_text_is_evidence_that_a_person_must_look_at() -> None:
    [item] = of_text(
        "Databricks Open Model License\n\nSome paragraphs that nobody can check.", "LICENSE", is_licence=True
    )
    assert item.licences == ("dbrx",) and item.doubtful
    [unknown] = of_text("You may do what we like, when we like it.", "LICENSE", is_licence=True)
    assert unknown.licences == () and unknown.doubtful


def test_every_fingerprint_is_of_a_licence_in_the_catalogue() -> None:
    assert {known.id for known in known_texts()} <= set(catalogue())
    assert {"llama3", "mrl", "mnpl", "dbrx", "yi1", "opt", "qwen-research"} <= {known.id for known in known_texts()}
    assert {known.id for known in known_texts() if known.partial} == {"mnpl", "mistral-mmit"}, "of others the whole"


def test_texts_that_no_package_has_are_told_from_all_others() -> None:
    """By words of their own, also from other versions of the same policy that share nearly all of it."""
    known = known_texts()
    alone = [one for one in known if WHEEL not in one.source]
    policies = {f"llama{version}-policy" for version in ("2", "3", "3.1", "3.2", "3.3")}
    assert policies | {"apple-amlr"} <= {one.id for one in alone}
    for one in alone:
        others = set().union(*(other.prints for other in known if other.id != one.id))
        assert len(one.prints - others) >= 8, one.id


def test_modified_mit_of_mistral_is_mit_and_the_sentence_that_changes_it(real: dict[str, str]) -> None:
    sentence = (
        "You are not authorized to exercise any rights under this license if the global consolidated monthly revenue of "
        "your company (or that of your employer) exceeds $20 million (or its equivalent in another currency) for the "
        "preceding month. This restriction in (b) applies to the Model and any derivatives, modifications, or combined "
        "works based on it, whether provided by Mistral AI or by a third party."
    )
    found = of_text(f"Modified MIT License\n{real['mit']}\n{sentence}", "LICENSE", is_licence=True)
    assert {id for item in found for id in item.licences} == {"mit", "mistral-mmit"}


def test_the_documents_say_which_licences_files_do_not_show_by_their_text() -> None:
    """The table of the reference is what the data says."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "licence.md").read_text("utf-8")
    for how, wanted in (("passages", "passages"), ("title", "title"), ("labels", "labels")):
        [row] = re.findall(rf"^\| {how} \|.*\|(.*)\|$", page, re.MULTILINE)
        assert sorted(re.findall(r"`([^`]+)`", row)) == sorted(id for id in catalogue() if recognised_by(id) == wanted)
    assert all(catalogue()[id].sure == "primary" for id in catalogue() if recognised_by(id) == "text")
