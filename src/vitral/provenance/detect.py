"""Licence texts in a model's files as evidence: whole, edited, excerpted, named by a title alone, or unknown."""

from __future__ import annotations

from collections.abc import Iterator

from vitral.provenance.component import Evidence
from vitral.provenance.fingerprint import words_of
from vitral.provenance.recognise import Match, recognise
from vitral.provenance.terms import catalogue

__all__ = ["of_text"]

_TITLE_WITHIN = 60  # words from the top of a file


def of_text(text: str, where: str, is_licence: bool) -> Iterator[Evidence]:
    """What licence a text holds. is_licence: the file claims to be one, so that finding none is a doubt."""
    found = recognise(text)
    for match in found.matches:
        ids = tuple(id for id in match.licences if catalogue()[id].kind != "policy")
        if ids:
            yield from _of_match(match, ids, where, found.added if is_licence and match is found.matches[0] else "")
    if found.unknown and is_licence:
        yield _unknown(text, where)


def _of_match(match: Match, ids: tuple[str, ...], where: str, added: str) -> Iterator[Evidence]:
    said = f"{match.score:.0%} of the text of {ids[0]}"
    note, note_pt, doubtful = "", "", True
    if match.ambiguous:
        note = f"the excerpt fits {' and '.join(ids)} equally well, so all are kept to"
        note_pt = f"o trecho serve igualmente a {' e '.join(ids)}, então todas são cumpridas"
    elif added:
        note = (
            f"the text of {ids[0]} with further terms that no known licence has: “{added} …”; a person must read them"
        )
        note_pt = f"o texto de {ids[0]} com termos adicionais que nenhuma licença conhecida tem: “{added} …”; uma pessoa deve lê-los"
    elif not match.whole:
        note = f"only {match.score:.0%} of the text of {ids[0]} is there: it is an excerpt, or was edited"
        note_pt = f"só {match.score:.0%} do texto de {ids[0]} está ali: é um trecho, ou foi editado"
    else:
        doubtful = False
    if match.partial and not doubtful:
        note = f"recognised by the passages of {ids[0]} that are known; the rest of the file was not compared"
        note_pt = f"reconhecido pelos trechos conhecidos de {ids[0]}; o resto do arquivo não foi comparado"
    for number, id in enumerate(ids):
        first = number == 0
        yield Evidence(
            "detected", where, said, (id,), match.score, note if first else "", note_pt if first else "", doubtful
        )


def _unknown(text: str, where: str) -> Evidence:
    top = " ".join(words_of(text)[:_TITLE_WITHIN])
    titled = sorted(
        (title, entry.id)
        for entry in catalogue().values()
        for title in entry.titles
        if " ".join(words_of(title)) in top
    )
    if titled:
        title, id = max(titled, key=lambda found: len(found[0]))
        if catalogue()[id].kind == "policy":
            return Evidence(
                "detected", where, title, (), None, f"a use policy: {title}", f"uma política de uso: {title}"
            )
        why = (
            f"its title says {title}, but its text is not one that can be checked: read it",
            f"o título diz {title}, mas o texto não pode ser conferido: leia-o",
        )
        return Evidence("detected", where, title, (id,), None, *why, doubtful=True)
    why = (
        "a licence text that is not known: a person must read it",
        "um texto de licença desconhecido: uma pessoa deve lê-lo",
    )
    return Evidence("detected", where, " ".join(text.split())[:80], (), 0.0, *why, doubtful=True)
