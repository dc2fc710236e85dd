"""What a person must look at beside the clauses: missing labels, labels that contradict, duties that clash."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from vitral.provenance.component import INSIDE, Component, Dossier
from vitral.provenance.conditions import evaluate
from vitral.provenance.judgement import Finding
from vitral.provenance.terms import catalogue
from vitral.provenance.use import Use

__all__ = ["about_evidence", "conflicts"]


def about_evidence(part: Component, dossier: Dossier) -> Iterator[Finding]:
    """Doubts about which licence a part stands under; only notes and questions."""

    def doubt(text: str, pt: str) -> Finding:
        return Finding("question", part.name, "", "evidence", "", text, pt)

    for item in part.evidence:
        if item.note:
            found = doubt(f"{item.where}: {item.note}", f"{item.where}: {item.note_pt}")
            yield found if item.doubtful else replace(found, what="note")
    if part.role == "dataset" and any(catalogue()[id].kind == "model" for id in part.licences):
        names = ", ".join(id for id in part.licences if catalogue()[id].kind == "model")
        yield replace(
            doubt(
                f"This data stands under a model's licence ({names}), so it is read as what that model wrote. Its weights are "
                "not in your model: only clauses on outputs reach you, not those on copies of the weights.",
                f"Estes dados estão sob a licença de um modelo ({names}), por isso são tratados como texto que esse modelo escreveu. "
                "Os pesos dele não estão no seu modelo: só se aplicam a você as cláusulas sobre saídas, não as sobre cópias dos pesos.",
            ),
            what="note",
        )
    parents = [other for other in dossier.components if other.role in INSIDE and other.role != "model"]
    inherits = part.role == "model" and bool(parents)
    if not part.claims and not inherits and not any(item.doubtful for item in part.evidence):
        yield doubt(
            "No licence was found for this part. Without one nothing is granted: ask whoever made it.",
            "Nenhuma licença foi encontrada para esta parte. Sem licença nada é concedido: pergunte a quem a fez.",
        )
    if part.claims and {item.kind for item in part.evidence if item.licences} == {"name"}:
        yield doubt(
            "Only its name says which licence this part has, and a name is the weakest evidence: look at its card or LICENSE file.",
            "Só o nome indica a licença desta parte, e um nome é a evidência mais fraca: veja o cartão ou o arquivo LICENSE.",
        )
    if part.disagrees:
        yield doubt(
            f"The evidence disagrees: {_labels(part, 'says')}. All of it is kept to, so the strictest decides; "
            "a person must find out which is right.",
            f"As evidências divergem: {_labels(part, 'diz')}. Todas são cumpridas, logo decide a mais estrita; "
            "uma pessoa deve apurar qual está certa.",
        )
    for parent in parents if part.role == "model" and part.claims else ():
        lost = [id for id in parent.licences if catalogue()[id].restrictive and id not in part.licences]
        if lost:
            yield doubt(
                f"Declared ≠ inherited: the label ({', '.join(part.licences)}) does not carry the terms of {parent.name} "
                f"({', '.join(lost)}). A derived model keeps its base's terms whatever its label says, so both apply; "
                "a person must find out who relabelled it, and why.",
                f"Declarado ≠ herdado: o rótulo ({', '.join(part.licences)}) não carrega os termos de {parent.name} "
                f"({', '.join(lost)}). Um modelo derivado mantém os termos da base, diga o rótulo o que disser: valem "
                "ambos; uma pessoa deve apurar quem o rotulou assim e por quê.",
            )


def _labels(part: Component, verb: str) -> str:
    pairs = {(item.where, " or ".join(item.licences)) for item in part.evidence if item.licences}
    return ", ".join(f"{where} {verb} {ids}" for where, ids in sorted(pairs))


def conflicts(dossier: Dossier, use: Use, findings: Sequence[Finding]) -> Iterator[Finding]:
    """Duties that cannot both be kept: two first words of one name, a copyleft beside further restrictions."""
    named = {
        found.prefix: found
        for found in findings
        if found.what == "duty" and found.prefix and found.clause != "name-of-students"
    }
    for one in sorted(named):
        for other in sorted(named):
            if one < other and not other.lower().startswith(one.lower()):
                first, second = named[one], named[other]
                yield Finding(
                    "denied",
                    dossier.model,
                    f"{first.licence}+{second.licence}",
                    "name-conflict",
                    f"{first.ref}; {second.ref}",
                    f"One name cannot begin both with “{one}” and with “{other}”: the model may not be made available "
                    "until one of the licensors consents.",
                    f"Um nome não pode começar ao mesmo tempo por “{one}” e por “{other}”: o modelo não pode ser "
                    "disponibilizado até que um dos licenciantes consinta.",
                )
    yield from _copyleft(dossier, use)


def _copyleft(dossier: Dossier, use: Use) -> Iterator[Finding]:
    parts = [part for part in dossier.components if part.role in INSIDE]
    inside = {claim[0] for part in parts for claim in part.claims if len(claim) == 1}
    copyleft = sorted(id for id in inside if catalogue()[id].gpl)
    limiting = sorted(id for id in inside if catalogue()[id].restrictive)
    leave = evaluate("copies_leave", use.facts())
    if copyleft and limiting and leave.holds is not False:
        found = Finding(
            "denied",
            dossier.model,
            f"{copyleft[0]}+{limiting[0]}",
            "copyleft-conflict",
            "GPL-3.0 §7, §10",
            f"{copyleft[0]} forbids further restrictions on one combined work, and {', '.join(limiting)} imposes them: "
            "the whole may not be passed on.",
            f"{copyleft[0]} proíbe restrições adicionais a uma obra combinada, e {', '.join(limiting)} as impõe: "
            "o todo não pode ser repassado.",
        )
        yield found if leave.holds else replace(found, what="question", missing=leave.missing)
