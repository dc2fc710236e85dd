"""From evidence and an intended use to a judgement: which clause decides, what is owed, what is missing.

Every clause of every licence of every part is asked whether it applies. Permissions are intersected and
duties joined: a clause can only add a duty, a question or a denial, never take one away. An unknown fact
that a clause turns on becomes a question, never a yes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from vitral.provenance.component import INSIDE, Component, Dossier
from vitral.provenance.conditions import Answer, evaluate
from vitral.provenance.doubts import about_evidence, conflicts
from vitral.provenance.judgement import Finding, Judgement, Outcome
from vitral.provenance.terms import Act, Clause, Licence, Right, Threshold, catalogue
from vitral.provenance.use import Use, passes

__all__ = ["judge"]

_SEVERITY = {"denied": Outcome.DENIED, "question": Outcome.PERSON, "duty": Outcome.DUTIES, "note": Outcome.ALLOWED}

_DOING: Mapping[Act, str] = {
    "use": "inside",
    "commercial": "inside and commercial",
    "modify": "inside and modifies",
    "share": "inside and shares_weights",
    "product": "inside and shares_product",
    "serve": "inside and serves",
    "outputs": "inside and trains_on_outputs or as_outputs",
}
ACT_NAMES: Mapping[Act, tuple[str, str]] = {
    "use": ("use", "uso"),
    "commercial": ("commercial use", "uso comercial"),
    "modify": ("changing the model", "alterar o modelo"),
    "share": ("giving the weights to others", "entregar os pesos a terceiros"),
    "product": ("giving others a product with the weights inside", "entregar um produto com os pesos dentro"),
    "serve": ("serving the model over a network", "servir o modelo pela rede"),
    "outputs": ("training other models on what it writes", "treinar outros modelos com o que ele escreve"),
}


def judge(dossier: Dossier, use: Use) -> Judgement:
    """Judge what is meant to be done with a model, clause by clause."""
    findings: list[Finding] = []
    for part in dossier.components:
        findings += about_evidence(part, dossier)
        for claim in part.claims:
            findings += _mildest([list(_of_licence(part, catalogue()[id], dossier, use)) for id in claim])
    findings += conflicts(dossier, use, findings)
    unique = sorted(set(findings), key=_order)
    return Judgement(_severity(unique), dossier, use, tuple(unique))


def _mildest(options: Sequence[list[Finding]]) -> list[Finding]:
    """Of alternatives, the one that asks least: that is what "or" grants."""
    return min(options, key=lambda found: (_severity(found), len(found)))


def _severity(findings: Sequence[Finding]) -> Outcome:
    return max((_SEVERITY[finding.what] for finding in findings), default=Outcome.ALLOWED)


def _order(found: Finding) -> tuple[object, ...]:
    return -_SEVERITY[found.what], found.part, found.licence, found.clause, found.text


def _of_licence(part: Component, terms: Licence, dossier: Dossier, use: Use) -> Iterator[Finding]:
    facts = _facts(part, terms, dossier, use)
    for act, right in terms.rights.items():
        yield from _of_right(part, terms, act, right, facts)
    policy = catalogue().get(terms.policy)
    for source in (terms, policy) if policy else (terms,):
        for clause in source.clauses:
            yield from _of_clause(part, source, clause, facts, use, dossier)


def _facts(part: Component, terms: Licence, dossier: Dossier, use: Use) -> dict[str, object]:
    inside = [other for other in dossier.components if other.role in INSIDE]
    families = {catalogue()[id].family for other in inside for id in other.licences}
    facts = use.facts()
    if part.safety_removed or any(other.safety_removed for other in inside if part.role in INSIDE):
        facts["removes_safety"] = True
    wrote = part.role == "outputs" or (part.role == "dataset" and terms.kind == "model")
    return facts | {
        "inside": part.role in INSIDE,
        "as_outputs": wrote,
        "as_data": part.role == "dataset" or (part.role == "outputs" and terms.kind != "model"),
        "derived": True if part.role in ("base", "adapter", "merged") else facts["modifies"],
        "multimodal": use.multimodal if use.multimodal is not None and part.role == "model" else part.multimodal,
        "same_family": bool(inside) and families == {terms.family} and all(other.licences for other in inside),
        "generated_by_you": {"you": True, "other": False}.get(part.generated_by),
    }


def _of_right(
    part: Component, terms: Licence, act: Act, right: Right, facts: Mapping[str, object]
) -> Iterator[Finding]:
    if right.answer == "silent" or (right.answer == "yes" and right.sure != "secondary"):
        return
    done = evaluate(_DOING[act], facts)
    spared = evaluate(right.unless, facts) if right.unless else Answer(False)
    if done.holds is False or spared.holds is True:
        return
    name, name_pt = ACT_NAMES[act]
    text = right.text or f"The licence does not grant {name}."
    pt = right.pt or f"A licença não concede: {name_pt}."
    found = Finding("denied", part.name, terms.id, f"right:{act}", right.ref, text, pt, right.sure)
    if done.holds is None or spared.holds is None:
        yield replace(found, what="question", missing=done.missing + spared.missing)
    elif right.answer == "no":
        yield found
    else:
        yield replace(
            found,
            what="question",
            text=f"What the licence says of {name} is known from descriptions alone: read its text.",
            pt=f"O que a licença diz sobre {name_pt} é conhecido só por descrições: leia o texto.",
        )


def _of_clause(
    part: Component, terms: Licence, clause: Clause, facts: Mapping[str, object], use: Use, dossier: Dossier
) -> Iterator[Finding]:
    if clause.does == "term":
        return
    found = Finding("note", part.name, terms.id, clause.id, clause.ref, clause.text, clause.pt, clause.sure)
    applies = evaluate(clause.when, facts)
    if clause.thresholds and applies.holds is not False:
        applies, kept = _with_thresholds(applies, clause, use)
        if kept:
            yield replace(found, text=kept[0], pt=kept[1])
    if applies.holds is False:
        return
    found = replace(found, instead=clause.instead, instead_pt=clause.instead_pt)
    if applies.holds is None:
        yield replace(found, what="question", missing=applies.missing)
    elif clause.does != "duty":
        yield replace(found, what="denied" if clause.does == "deny" else "question")
    else:
        own = clause.prefix and clause.id != "name-of-students"
        met = _begins(clause.prefix, use.name or _own_name(dossier)) if own else None
        yield replace(
            found, what="duty", met=met, duty=clause.duty, say=clause.say, file=clause.file, prefix=clause.prefix
        )
        if clause.sure == "secondary":
            yield replace(
                found,
                what="question",
                text="This duty is known from descriptions alone: read the licence before you rely on it.",
                pt="Este dever é conhecido só por descrições: leia a licença antes de confiar nele.",
            )


def _with_thresholds(applies: Answer, clause: Clause, use: Use) -> tuple[Answer, tuple[str, str] | None]:
    """Whether any threshold is passed, and what to keep where one frozen in the past is not."""
    found = [(threshold, *passes(threshold, use)) for threshold in clause.thresholds]
    if all(passed is False for _, passed, _ in found):
        frozen = [(threshold, figure) for threshold, _, figure in found if threshold.at != "now"]
        return Answer(False), _to_keep(*frozen[0]) if frozen else None
    if any(passed for _, passed, _ in found):
        return applies, None
    return Answer(None, applies.missing + tuple(figure for _, passed, figure in found if passed is None)), None


def _to_keep(threshold: Threshold, figure: str) -> tuple[str, str]:
    month, exact = threshold.at, figure.endswith(threshold.at)
    counted, counted_pt = {"users": ("users a month", "usuários por mês"), "revenue": ("US$", "US$")}[threshold.metric]
    figure_en, figure_pt = (
        (f"your figure for {month}", f"o seu número de {month}") if exact else ("your figures", "os seus números")
    )
    return (
        f"The threshold of {threshold.above:,} {counted} counts for {month} alone: keep evidence of {figure_en}; "
        "today's numbers do not matter.",
        f"O limite de {threshold.above:,} ".replace(",", ".") + f"{counted_pt} conta só para {month}: guarde prova que "
        f"sustente {figure_pt}; os números de hoje não importam.",
    )


def _own_name(dossier: Dossier) -> str:
    """The model's own name, without its owner, where the model is made from something else."""
    made = any(part.role != "model" for part in dossier.components)
    return dossier.model.rsplit("/", 1)[-1] if made else ""


def _begins(prefix: str, name: str) -> bool | None:
    """Whether a name begins with what it must; hyphens and spaces are alike, capitals do not count.

    >>> _begins("Llama 3", "Llama-3.1-Acme"), _begins("Llama", "AcmeChat-8B"), _begins("Llama", "")
    (True, False, None)
    """
    if not name:
        return None
    name, prefix = (" ".join(text.lower().replace("-", " ").replace("_", " ").split()) for text in (name, prefix))
    return name.startswith(prefix)
