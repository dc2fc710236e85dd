"""What must hold for every use and every mix of parts."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.provenance.cases import of, part
from vitral.provenance.component import Component, Dossier
from vitral.provenance.judge import judge
from vitral.provenance.judgement import Outcome
from vitral.provenance.terms import catalogue
from vitral.provenance.use import FIELDS, Use

IDS = sorted(id for id, entry in catalogue().items() if entry.kind != "policy")
FLAGS = (
    "commercial",
    "production",
    "modify",
    "share_weights",
    "share_product",
    "serve",
    "train_on_outputs",
    "remove_safety",
    "competes",
)

flags = st.dictionaries(st.sampled_from(FLAGS), st.booleans())
numbers = st.sampled_from([0, 999, 10**6, 10**7 + 1, 2 * 10**7 + 1, 10**8 + 1, 7 * 10**8, 7 * 10**8 + 1])


@st.composite
def uses(draw: Any) -> Use:
    """A use with any facts known and any unknown."""
    users = draw(
        st.dictionaries(st.sampled_from(["2023-06", "2024-06", "2024-08", "now", "product", "never_above"]), numbers)
    )
    revenue = draw(st.dictionaries(st.sampled_from(["month", "year", "product_month"]), numbers))
    return Use(
        actor=draw(st.sampled_from([None, "company", "person"])),
        domicile=draw(st.sampled_from([None, "US", "DE", "KR"])),
        purpose=draw(st.sampled_from([None, "research", "personal", "internal", "product"])),
        fields=draw(st.none() | st.sets(st.sampled_from(FIELDS), max_size=2).map(lambda found: tuple(sorted(found)))),
        text_only=draw(st.sampled_from([None, False])),
        users=users,
        revenue=revenue,
        **draw(flags),
    )


parts = st.builds(
    lambda role, id, multimodal, by: part(role, f"{role}-{id}", id, multimodal=multimodal, generated_by=by),
    st.sampled_from(["base", "merged", "adapter", "dataset", "outputs"]),
    st.sampled_from(IDS),
    st.booleans(),
    st.sampled_from(["you", "other"]),
)
dossiers = st.lists(parts, min_size=1, max_size=4, unique_by=lambda each: each.name).map(lambda found: of(*found))


MONTHS = ("2023-06", "2024-02", "2024-03", "2024-06", "2024-08", "2024-11", "2024-12", "2025-03", "now", "product")


def stated(use: Use) -> Use:
    """The use with every fact known. With facts unknown, one more known fact may turn a question into a mere duty."""
    known: dict[str, Any] = {flag: bool(getattr(use, flag)) for flag in FLAGS}
    return replace(
        use,
        **known,
        actor=use.actor or "person",
        domicile=use.domicile or "US",
        purpose=use.purpose or "personal",
        fields=use.fields or (),
        text_only=False,
        users={month: use.users.get(month, 0) for month in MONTHS},
        revenue={key: use.revenue.get(key, 0) for key in ("month", "year", "product_month")},
    )


def more_demanding(use: Use, flag: str) -> Use:
    return replace(use, **{flag: True})


@settings(max_examples=80, deadline=None)
@given(dossiers, uses(), st.sampled_from(FLAGS))
def test_doing_more_never_gets_a_milder_verdict(dossier: Dossier, use: Use, flag: str) -> None:
    less = replace(stated(use), **{flag: False})
    assert judge(dossier, more_demanding(less, flag)).outcome >= judge(dossier, less).outcome


@settings(max_examples=50, deadline=None)
@given(dossiers, uses(), st.sampled_from(FIELDS))
def test_one_more_field_of_use_never_gets_a_milder_verdict(dossier: Dossier, use: Use, field: str) -> None:
    known = stated(use)
    wider = replace(known, fields=tuple(sorted({*known.fields, field})))  # type: ignore[misc]
    assert judge(dossier, wider).outcome >= judge(dossier, known).outcome


@settings(max_examples=80, deadline=None)
@given(dossiers, uses(), st.sampled_from(["2023-06", "2024-06", "2024-08", "now", "product"]), numbers, numbers)
def test_more_users_never_get_a_milder_verdict(dossier: Dossier, use: Use, key: str, one: int, other: int) -> None:
    few, many = sorted((one, other))
    known = stated(use)
    small, large = (replace(known, users={**known.users, key: number}) for number in (few, many))
    assert judge(dossier, large).outcome >= judge(dossier, small).outcome


@settings(max_examples=80, deadline=None)
@given(dossiers, parts, uses())
def test_one_more_part_removes_no_duty_and_mends_no_verdict(dossier: Dossier, new: Component, use: Use) -> None:
    before = judge(dossier, use)
    after = judge(of(*dossier.components, new), use)
    kept = {(duty.licence, duty.clause, duty.part) for duty in after.of("duty")}
    assert kept >= {(duty.licence, duty.clause, duty.part) for duty in before.of("duty")}
    assert after.outcome >= before.outcome


@settings(max_examples=40, deadline=None)
@given(dossiers, uses(), st.randoms())
def test_the_order_of_parts_changes_nothing(dossier: Dossier, use: Use, random: Any) -> None:
    shuffled = list(dossier.components)
    random.shuffle(shuffled)
    assert judge(of(*shuffled), use).findings == judge(dossier, use).findings


@settings(max_examples=80, deadline=None)
@given(
    dossiers,
    uses(),
    st.sampled_from(
        [
            entry.name
            for entry in fields(Use)
            if entry.name in FLAGS or entry.name in ("domicile", "purpose", "fields", "actor")
        ]
    ),
)
def test_a_fact_that_becomes_unknown_never_gives_a_milder_verdict_than_any_value(
    dossier: Dossier, use: Use, name: str
) -> None:
    """Unknown lies between the mildest and the strictest that the fact could bring, and is never allowed if that differs."""
    values: dict[str, tuple[object, ...]] = {
        "domicile": ("US", "DE", "GB", "KR"),
        "purpose": ("research", "evaluation", "personal", "internal", "product"),
        "fields": ((), FIELDS),
        "actor": ("company", "person"),
    }
    outcomes = [judge(dossier, replace(use, **{name: value})).outcome for value in values.get(name, (False, True))]
    unknown = judge(dossier, replace(use, **{name: None})).outcome
    assert unknown >= min(outcomes)
    if max(outcomes) > min(outcomes):
        assert unknown is not Outcome.ALLOWED


@settings(max_examples=40, deadline=None)
@given(dossiers, uses())
def test_every_consequence_of_a_clause_names_where_it_stands(dossier: Dossier, use: Use) -> None:
    for finding in judge(dossier, use).findings:
        assert finding.text and finding.pt
        if finding.licence and "+" not in finding.licence:
            entry = catalogue()[finding.licence]
            if finding.clause.startswith("right:"):
                assert finding.clause.removeprefix("right:") in entry.rights
            else:
                assert entry.clause(finding.clause).ref == finding.ref
