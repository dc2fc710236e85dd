"""Each case of the research note gives the stated verdict, the clause and the notice; one changed fact flips it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.provenance.cases import QUIET, of, part
from vitral.provenance.component import Dossier
from vitral.provenance.gather import gather
from vitral.provenance.judge import judge
from vitral.provenance.judgement import Finding, Judgement, Outcome
from vitral.provenance.notices import notice_files, write_notices
from vitral.provenance.use import Use

LLAMA31_NOTICE = (
    "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
)


def found(judgement: Judgement, what: str, licence: str, ref: str) -> Finding:
    """The one finding at a place."""
    there = [each for each in judgement.of(what) if each.licence == licence and each.ref.startswith(ref)]
    assert there, f"no {what} at {licence} {ref}; there are {[(f.licence, f.ref) for f in judgement.of(what)]}"
    return there[0]


def shown(judgement: Judgement) -> set[str]:
    return {duty.say for duty in judgement.of("duty") if duty.duty == "display"}


def test_v1_tuned_llama31_sold_owes_name_notice_display_and_policy() -> None:
    use = replace(QUIET, users={"2024-06": 0, "now": 2_000_000}, modify=True, share_weights=True, name="AcmeChat-8B")
    judgement = judge(of(part("base", "meta-llama/Llama-3.1-8B", "llama3.1")), use)
    assert judgement.outcome is Outcome.DUTIES
    [name] = judgement.unmet
    assert (name.licence, name.ref, name.prefix) == ("llama3.1", "§1.b.i, last sentence", "Llama")
    assert found(judgement, "duty", "llama3.1", "§1.b.iii").say == LLAMA31_NOTICE
    assert found(judgement, "duty", "llama3.1", "§1.b.iv").duty == "policy"
    assert found(judgement, "duty", "llama3.1", "§1.b.i(A)").duty == "copy"
    assert shown(judgement) == {"Built with Llama"}
    assert notice_files(judgement)["Notice"].decode() == LLAMA31_NOTICE + "\n"
    renamed = judge(judgement.dossier, replace(use, name="Llama-AcmeChat-8B"))
    assert renamed.outcome is Outcome.DUTIES and not renamed.unmet


def test_v2_answers_of_llama2_may_not_train_another_model() -> None:
    data = part("outputs", "meta-llama/Llama-2-13b-chat", "llama2", generated_by="you")
    use = replace(QUIET, modify=True, share_weights=True)
    judgement = judge(of(part("base", "mistralai/Mistral-7B-v0.1", "apache-2.0"), data), use)
    assert judgement.outcome is Outcome.DENIED
    found(judgement, "denied", "llama2", "§1.b.v")
    same_family = judge(of(part("base", "meta-llama/Llama-2-7b", "llama2"), data), use)
    assert same_family.outcome is Outcome.DUTIES, "Llama 2 itself may be improved"


def test_v3_outputs_of_llama31_ask_for_the_name_but_no_copy_and_no_notice() -> None:
    use = replace(QUIET, modify=True, share_weights=True, name="Mistral-7B-Distil")
    data = part("outputs", "meta-llama/Llama-3.1-70B-Instruct", "llama3.1", generated_by="you")
    judgement = judge(of(part("base", "mistralai/Mistral-7B-v0.1", "apache-2.0"), data), use)
    assert judgement.outcome is Outcome.DUTIES
    assert [duty.licence for duty in judgement.unmet] == ["llama3.1"]
    found(judgement, "duty", "apache-2.0", "§4(a)")
    assert {duty.duty for duty in judgement.of("duty") if duty.licence == "llama3.1"} == {"name"}
    assert "Notice" not in notice_files(judgement)


def test_v4_multimodal_llama32_is_not_licensed_to_a_german_company() -> None:
    vision = part("model", "meta-llama/Llama-3.2-11B-Vision", "llama3.2", multimodal=True)
    use = replace(QUIET, domicile="DE", purpose="internal")
    judgement = judge(of(vision), use)
    assert judgement.outcome is Outcome.DENIED
    bar = found(judgement, "denied", "llama3.2-policy", "USE_POLICY, last paragraph, through §1.b.iv")
    assert "1B or 3B" in bar.instead
    for elsewhere in ("CH", "GB", "NO", "US"):
        assert judge(of(vision), replace(use, domicile=elsewhere)).outcome is Outcome.DUTIES
    assert judge(of(vision), replace(use, text_only=True)).outcome is Outcome.PERSON
    assert judge(of(vision), replace(use, received="as_service")).outcome is Outcome.PERSON
    assert judge(of(vision), replace(use, received="in_product")).outcome is Outcome.DUTIES
    assert judge(of(vision), replace(use, domicile=None)).missing == ("domicile",)


def test_v5_text_llama32_in_a_german_product_is_allowed_with_duties() -> None:
    use = replace(QUIET, domicile="DE", share_product=True)
    judgement = judge(of(part("model", "meta-llama/Llama-3.2-3B", "llama3.2")), use)
    assert judgement.outcome is Outcome.DUTIES
    assert shown(judgement) == {"Built with Llama"}
    found(judgement, "duty", "llama3.2", "§1.b.i(A)")
    assert "Llama 3.2 is licensed" in found(judgement, "duty", "llama3.2", "§1.b.iii").say


def test_v6_growth_after_the_frozen_month_does_not_count() -> None:
    use = replace(QUIET, users={"2024-06": 50_000_000, "now": 900_000_000})
    model = of(part("model", "meta-llama/Llama-3.1-8B", "llama3.1"))
    judgement = judge(model, use)
    assert judgement.outcome is Outcome.DUTIES
    assert "2024-06" in found(judgement, "note", "llama3.1", "§2").text
    before = judge(model, replace(use, users={"2024-06": 700_000_001, "now": 5}))
    assert before.outcome is Outcome.DENIED
    found(before, "denied", "llama3.1", "§2")
    assert judge(model, replace(use, users={"2024-06": 700_000_000})).outcome is Outcome.DUTIES, "above, not at"
    unknown = judge(model, replace(use, users={"now": 900_000_000}))
    assert unknown.outcome is Outcome.PERSON and unknown.missing == ("users.2024-06",)
    bought = replace(use, users={"2024-06": 900_000_000}, received="in_product")
    assert judge(model, bought).outcome is Outcome.DUTIES, "C21: the finished product of another"


def test_v7_a_bank_may_not_try_ministral_8b_for_a_paid_feature() -> None:
    use = replace(QUIET, purpose="internal", production=False)
    judgement = judge(of(part("model", "mistralai/Ministral-8B-Instruct-2410", "mrl")), use)
    assert judgement.outcome is Outcome.DENIED
    found(judgement, "denied", "mrl", "§3.2, §9 “Research Purposes”")
    assert any("Ministral 3" in each.instead for each in judgement.of("denied"))
    scholar = replace(use, actor="person", commercial=False, purpose="research")
    assert judge(judgement.dossier, scholar).outcome is Outcome.ALLOWED


def test_v8_codestral_may_be_evaluated_but_not_offered_to_the_public_even_free() -> None:
    model = of(part("model", "mistralai/Codestral-22B-v0.1", "mnpl"))
    trying = replace(QUIET, commercial=False, production=False, purpose="evaluation")
    assert judge(model, trying).outcome is Outcome.ALLOWED
    offered = judge(model, replace(trying, purpose="product", production=True, serve=True))
    assert offered.outcome is Outcome.DENIED
    assert "free of charge" in found(offered, "denied", "mnpl", "§3.2, second limb").text
    found(offered, "denied", "mnpl", "§3.2, first limb")


def test_v9_quantised_mixtral_sold_owes_what_apache_asks() -> None:
    use = replace(QUIET, modify=True, share_weights=True)
    judgement = judge(of(part("model", "mistralai/Mixtral-8x7B-Instruct-v0.1", "apache-2.0")), use)
    assert judgement.outcome is Outcome.DUTIES
    assert {duty.ref for duty in judgement.of("duty")} == {"§4(a)", "§4(b)", "§4(c)", "§4(d)"}
    unchanged = judge(judgement.dossier, replace(use, modify=False))
    assert {duty.ref for duty in unchanged.of("duty")} == {"§4(a)", "§4(c)", "§4(d)"}


def test_v10_an_apache_tag_on_codestral_is_seen_through(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nlicense: apache-2.0\nlicense_link: https://mistral.ai/licences/MNPL-0.1.md\n"
        "base_model: mistralai/Codestral-22B-v0.1\n---\n# Codestral\n"
    )
    use = replace(QUIET, serve=True)
    dossier = gather(tmp_path, "lmstudio-community/Codestral-22B-v0.1-GGUF", use)
    judgement = judge(dossier, use)
    assert judgement.outcome is Outcome.DENIED
    found(judgement, "denied", "mnpl", "§3.2")
    doubts = " ".join(question.text for question in judgement.of("question"))
    assert "The evidence disagrees" in doubts and "apache-2.0" in doubts and "mnpl" in doubts
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: mistralai/Codestral-22B-v0.1\n---\n")
    unlinked = judge(gather(tmp_path, "someone/Codestral-22B-v0.1-GGUF", use), use)
    assert unlinked.outcome is Outcome.DENIED
    assert any("Declared ≠ inherited" in question.text for question in unlinked.of("question"))


def test_v11_gemma_by_api_owes_terms_and_a_copy_but_no_notice_file() -> None:
    judgement = judge(of(part("model", "google/gemma-2-9b", "gemma")), replace(QUIET, serve=True))
    assert judgement.outcome is Outcome.DUTIES
    kinds = {duty.duty for duty in judgement.of("duty") if duty.licence == "gemma"}
    assert kinds == {"pass-through", "copy", "policy"}
    found(judgement, "duty", "gemma", "§3.1")
    given = judge(judgement.dossier, replace(QUIET, serve=True, share_weights=True))
    assert "notice" in {duty.duty for duty in given.of("duty")}


def test_v12_devstral2_is_closed_to_a_group_above_the_revenue() -> None:
    model = of(part("model", "mistralai/Devstral-2-123B-Instruct-2512", "mistral-mmit"))
    use = replace(QUIET, purpose="internal", revenue={"month": 25_000_000})
    judgement = judge(model, use)
    assert judgement.outcome is Outcome.DENIED
    assert "Devstral Small 2" in found(judgement, "denied", "mistral-mmit", "the threshold sentence").instead
    assert judge(model, replace(use, revenue={"month": 20_000_000})).outcome is Outcome.ALLOWED
    assert judge(model, replace(use, revenue={"year": 15_000_000})).outcome is Outcome.ALLOWED, "a year bounds a month"
    assert judge(model, replace(use, revenue={"year": 25_000_000})).missing == ("revenue.month",)


def test_two_names_cannot_both_come_first() -> None:
    use = replace(QUIET, modify=True, share_weights=True, name="Llama-HyperCLOVA")
    both = of(part("merged", "a/Llama-3.1-8B", "llama3.1"), part("merged", "b/HyperCLOVAX", "hyperclova"))
    judgement = judge(both, use)
    assert judgement.outcome is Outcome.DENIED
    assert found(judgement, "denied", "hyperclova+llama3.1", "§3.1; §1.b.i").clause == "name-conflict"
    versions = of(part("merged", "a/Llama-3-8B", "llama3"), part("merged", "b/Llama-3.1-8B", "llama3.1"))
    assert judge(versions, replace(use, name="Llama 3 Merge")).unmet == ()


def test_restrictions_and_copyleft_cannot_be_one_work() -> None:
    both = of(part("merged", "a/one", "gpl-3.0"), part("merged", "b/two", "gemma"))
    shared = judge(both, replace(QUIET, share_weights=True))
    assert found(shared, "denied", "gpl-3.0+gemma", "GPL-3.0 §7")
    assert judge(both, QUIET).outcome is not Outcome.DENIED


@pytest.mark.parametrize("id", ["llama3.2", "llama3.3", "llama4", "nvidia-oml"])
def test_taking_safety_out_is_denied(id: str) -> None:
    model = of(part("model", "some-model", id))
    assert judge(model, replace(QUIET, modify=True, remove_safety=True)).outcome is Outcome.DENIED
    assert judge(model, replace(QUIET, modify=True)).outcome is Outcome.DUTIES


@pytest.mark.parametrize(
    ("licence", "use", "outcome"),
    [
        ("cc-by-4.0", replace(QUIET, modify=True, share_weights=True), Outcome.DUTIES),
        ("cc-by-sa-4.0", replace(QUIET, modify=True, share_weights=True), Outcome.PERSON),
        ("cc-by-sa-4.0", replace(QUIET, modify=True), Outcome.ALLOWED),
        ("cc-by-nc-4.0", replace(QUIET, modify=True), Outcome.PERSON),
        ("cc-by-nc-4.0", replace(QUIET, modify=True, commercial=False), Outcome.ALLOWED),
        ("cc0-1.0", replace(QUIET, modify=True, share_weights=True), Outcome.DUTIES),
    ],
)
def test_a_data_set_brings_its_own_terms(licence: str, use: Use, outcome: Outcome) -> None:
    dossier = of(part("model", "own", "mit"), part("dataset", "data", licence))
    assert judge(dossier, use).outcome is outcome


def test_data_of_an_api_depends_on_who_made_it() -> None:
    model, use = part("model", "own", "mit"), replace(QUIET, modify=True)
    ours = of(model, part("dataset", "answers", "openai-tou", generated_by="you"))
    theirs = of(model, part("dataset", "answers", "openai-tou", generated_by="other"))
    assert judge(ours, replace(use, competes=True)).outcome is Outcome.DENIED
    assert judge(ours, use).outcome is Outcome.PERSON
    assert judge(theirs, replace(use, competes=True)).outcome is Outcome.PERSON


def test_what_is_known_from_descriptions_alone_is_never_a_plain_yes() -> None:
    use = replace(QUIET, commercial=False, purpose="personal", actor="person", share_weights=True)
    for id in ("falcon180b", "cohere-nc", "hai-def", "lfm"):
        assert judge(of(part("model", "m", id)), use).outcome is Outcome.PERSON


def test_the_verdict_maps_onto_the_one_shape() -> None:
    model: Dossier = of(part("model", "m", "apache-2.0"))
    assert judge(model, QUIET).verdict().passed is True
    assert judge(model, replace(QUIET, share_weights=True)).verdict().passed is True
    assert judge(model, replace(QUIET, share_weights=None)).verdict().passed is None
    denied = judge(of(part("model", "m", "mrl")), QUIET).verdict()
    assert denied.passed is False
    assert denied.reasons[0].startswith("mrl §")
    assert denied.evidence["outcome"] == "denied"


def test_the_bundle_holds_words_that_licences_order(tmp_path: Path) -> None:
    use = replace(QUIET, modify=True, share_weights=True, name="Llama-Mix")
    dossier = of(part("merged", "a/Llama-3.1-8B", "llama3.1"), part("merged", "b/Qwen2.5-72B", "qwen"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "LICENSE").write_text("the text as obtained")
    (tmp_path / "secret").write_text("nobody's business")
    (tmp_path / "model" / "LICENSE.link").symlink_to(tmp_path / "secret")
    written = write_notices(judge(dossier, use), tmp_path / "out", tmp_path / "model")
    assert {path.name for path in written} == {"DUTIES.md", "LICENSE", "Notice", "THIRD-PARTY-LICENCES.md"}
    lines = (tmp_path / "out" / "Notice").read_text("utf-8").splitlines()
    assert LLAMA31_NOTICE in lines and len(lines) == 2
    assert (tmp_path / "out" / "LICENSE").read_text() == "the text as obtained"
    duties = (tmp_path / "out" / "DUTIES.md").read_text("utf-8")
    assert "Built with Llama" in duties and "Built with Qwen" in duties
    write_notices(judge(dossier, use), tmp_path / "out", tmp_path / "model")  # the same again is no conflict


def test_apache_comes_along_where_the_model_does_not_bring_it(tmp_path: Path) -> None:
    use = replace(QUIET, share_weights=True)
    judgement = judge(of(part("model", "mistralai/Mixtral-8x7B-v0.1", "apache-2.0")), use)
    write_notices(judgement, tmp_path / "bare")
    assert "Version 2.0, January 2004" in (tmp_path / "bare" / "LICENSE-apache-2.0.txt").read_text("utf-8")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "LICENSE").write_bytes((tmp_path / "bare" / "LICENSE-apache-2.0.txt").read_bytes())
    brought = judge(gather(folder, "mistralai/Mixtral-8x7B-v0.1"), use)
    names = {path.name for path in write_notices(brought, tmp_path / "out", folder)}
    assert names == {"DUTIES.md", "LICENSE", "THIRD-PARTY-LICENCES.md"}
