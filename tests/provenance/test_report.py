"""Reports say the answer first, each clause once, in both languages, and what a file says stays text."""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tests.provenance.cases import QUIET, of, part
from vitral.provenance.component import Component, Evidence
from vitral.provenance.datasets import of_data_set
from vitral.provenance.judge import judge
from vitral.provenance.judgement import Judgement
from vitral.provenance.labels import of_name
from vitral.provenance.report import report, to_html, to_json
from vitral.provenance.terms import catalogue

DAY = datetime.date(2026, 11, 25)


def judged() -> Judgement:
    data = part("dataset", "acme/answers", "llama3.1", generated_by="you")
    base = part("base", "mistralai/Mixtral-8x7B-v0.1", "apache-2.0")
    use = replace(QUIET, modify=True, share_weights=True, name="Mixtral-Clinic", domicile=None)
    return judge(of(base, data, part("dataset", "<script>alert(1)</script>"), model="Mixtral-Clinic"), use)


class Outline(HTMLParser):
    """Tags in order, and which are open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


@pytest.mark.parametrize(
    ("language", "code", "first"), [("en", "en", "Needs a person"), ("pt", "pt-BR", "Requer decisão humana")]
)
def test_the_page_stands_alone_in_either_language(language: str, code: str, first: str) -> None:
    page = to_html(report(judged(), language, DAY))  # type: ignore[arg-type]
    outline = Outline(page)
    assert ("lang", code) in outline.attributes
    assert not {"script", "link", "img", "iframe"} & set(outline.tags)
    assert "alert(1)" in page and "<script>" not in page
    assert outline.tags.count("h1") == 1 and outline.tags.count("main") == 1
    assert outline.tags.count("th") == [name for name, _ in outline.attributes].count("scope")
    assert page.index(first) < page.index("Mixtral-8x7B-v0.1")
    assert ("not legal advice" in page) + ("não aconselhamento jurídico" in page) == 1
    assert page.count("not legal advice") + page.count("não aconselhamento jurídico") == 1
    assert "@media print" in page


ENGLISH = re.compile(r"\b(at|of|and|which|wrote|read|quoted|from|the|name|is|not)\b")


@pytest.mark.parametrize("id", sorted(catalogue()))
def test_no_english_is_left_in_the_portuguese_report(id: str) -> None:
    """But for names of licences and headings in them, which stand in quotation marks."""
    data = Component("dataset", "tatsu-lab/alpaca", tuple(of_data_set("tatsu-lab/alpaca")))
    named = Component("base", "a/Llama-3.1-8B", tuple(of_name("meta-llama/Llama-3.1-8B")))
    use = replace(QUIET, modify=True, share_weights=True, serve=None, name="x")
    own = Component("model", "m", (Evidence("stated", "your statement", id, (id,)),))
    found = report(judge(of(own, named, data), use), "pt", DAY)
    lines = [found.answer, *found.stated, found.made, *(source for _, _, _, source, *_ in found.licences)]
    points = [*found.decides, *found.open, *found.facts, *found.records, *found.readings]
    points += [point for _, some in found.duties for point in some]
    lines += [text for point in points for text in (point.text, point.ref, point.more)]
    lines += [cell for row in found.parts for cell in row[1:]]
    for line in lines:
        plain = re.sub(r"“[^”]*”|`[^`]*`|\S*[/.]\S*", "", line)
        assert not ENGLISH.search(plain.replace("Notice", "")), line


def test_a_duty_that_several_parts_bring_is_said_once() -> None:
    twice = of(part("model", "a", "apache-2.0"), part("base", "b", "apache-2.0"))
    found = report(judge(twice, replace(QUIET, share_weights=True)), "en", DAY)
    copies = [point for _, points in found.duties for point in points if point.ref == "apache-2.0 §4(a)"]
    assert [point.parts for point in copies] == [("a", "b")]


def test_a_name_that_fails_is_marked_and_the_answer_says_so() -> None:
    found = report(judged(), "en", DAY)
    [bad] = [point for _, points in found.duties for point in points if point.bad]
    assert "Mixtral-Clinic" in bad.more
    assert "does not begin with “Llama”" in found.answer


def test_json_holds_every_finding_with_its_place() -> None:
    found = json.loads(json.dumps(to_json(judged())))
    assert found["outcome"] == "needs a person" and found["passed"] is None
    assert all(each["text"] and ("licence" in each or each["clause"] == "evidence") for each in found["findings"])
    assert found["unmet"][0]["prefix"] == "Llama"


def test_facts_that_only_duties_wait_for_are_no_doubt_about_the_permission() -> None:
    mild = judge(of(part("model", "m", "apache-2.0")), replace(QUIET, modify=True, share_weights=None))
    found = report(mild, "en", DAY)
    assert found.answer.startswith("Nothing that was read forbids it.")
    assert any("apache-2.0 §4(a), §4(b), §4(c), §4(d)" in fact.more for fact in found.facts)
    strict = judge(of(part("model", "m", "mrl")), replace(QUIET, commercial=None, purpose=None))
    assert report(strict, "en", DAY).answer.startswith("Not yet.")


def test_duties_stand_in_the_order_of_the_licence() -> None:
    shared = judge(of(part("model", "m", "apache-2.0")), replace(QUIET, modify=True, share_weights=True))
    [(_, duties)] = report(shared, "en", DAY).duties
    assert [duty.ref for duty in duties] == [f"apache-2.0 §4({letter})" for letter in "abcd"]


def test_a_field_that_nothing_limits_says_so_and_one_that_is_limited_does_not() -> None:
    use = replace(QUIET, fields=("medical",), share_weights=False)
    said = [" ".join(report(judge(of(part("model", "m", id)), use), "en", DAY).stated) for id in ("mit", "llama3.1")]
    assert "medical (no clause that applies here limits them)" in said[0]
    assert "medical" in said[1] and "no clause" not in said[1]


def test_a_threshold_in_the_past_says_how_much_and_when() -> None:
    use = replace(QUIET, users={"never_above": 40_000})
    records = report(judge(of(part("model", "m", "llama3.1")), use), "pt", DAY).records
    assert any("700.000.000 usuários por mês conta só para 2024-06" in record.text for record in records)
