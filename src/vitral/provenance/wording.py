"""The words of reports in English and Brazilian Portuguese, and the questions that fill unknown facts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from vitral.provenance.judgement import Finding, Outcome
from vitral.provenance.use import ACTORS, FIELDS, PURPOSES, RECEIVED

__all__ = [
    "CHOICES",
    "DUTY_GROUPS",
    "Language",
    "OUTCOMES",
    "QUESTIONS",
    "ROLES",
    "SURE",
    "WORDS",
    "choice",
    "place",
    "question",
    "source_text",
    "text_of",
    "value",
]

Language = Literal["en", "pt"]

WORDS: Mapping[str, tuple[str, str]] = {
    "title": ("May you use {model} for this?", "Você pode usar {model} para isto?"),
    "stated": ("What you said", "O que você informou"),
    "decides": ("What decides", "O que decide"),
    "open": ("To settle first", "A resolver antes"),
    "facts": ("Facts that are missing", "Fatos que faltam"),
    "duties": ("What you must do", "O que você deve fazer"),
    "records": ("Keep with your records", "Guarde nos seus registros"),
    "rests": ("What this rests on", "Em que isto se baseia"),
    "licences": ("Licences that were read", "Licenças lidas"),
    "part": ("part", "parte"),
    "role": ("role", "papel"),
    "licence": ("licence", "licença"),
    "evidence": ("what says so", "evidência"),
    "version": ("version of", "versão de"),
    "source": ("where its text was read", "onde o texto foi lido"),
    "read": ("read on", "lida em"),
    "sure": ("how sure", "grau de certeza"),
    "none": ("no licence found", "nenhuma licença encontrada"),
    "inherited": (
        "no label of its own: the terms of what it is made from apply",
        "sem rótulo próprio: valem os termos daquilo de que é feito",
    ),
    "instead": ("Instead:", "Alternativa:"),
    "state": (
        "Not yet. The answer turns on facts that nobody has stated; they are listed below.",
        "Ainda não. A resposta depende de fatos que ninguém informou; estão listados abaixo.",
    ),
    "state_duties": (
        "Nothing that was read forbids it. Which duties you owe turns on facts that nobody has stated; they are listed below.",
        "Nada do que foi lido o proíbe. Quais deveres você tem depende de fatos que ninguém informou; estão listados abaixo.",
    ),
    "untouched": ("no clause that applies here limits them", "nenhuma cláusula aplicável aqui os limita"),
    "unmet": ("not kept: the name is “{name}”", "não cumprido: o nome é “{name}”"),
    "met": ("kept: the name is “{name}”", "cumprido: o nome é “{name}”"),
    "turns": ("{n} clauses turn on it: {refs}", "{n} cláusulas dependem disto: {refs}"),
    "turns_one": ("one clause turns on it: {refs}", "uma cláusula depende disto: {refs}"),
    "advice": (
        "This is an engineer's reading of published terms, not legal advice; a lawyer can check each clause at the place given.",
        "Esta é a leitura de um engenheiro sobre termos publicados, não aconselhamento jurídico; um advogado pode conferir cada cláusula no lugar indicado.",
    ),
    "made": ("Made by vitral licence check on {day}.", "Feito por vitral licence check em {day}."),
    "nothing": ("nothing", "nada"),
    "yes": ("yes", "sim"),
    "no": ("no", "não"),
}

OUTCOMES: Mapping[Outcome, tuple[tuple[str, str], tuple[str, str]]] = {
    Outcome.ALLOWED: (
        ("Allowed", "Permitido"),
        (
            "Yes. No clause stands in the way, and none asks anything of you.",
            "Sim. Nenhuma cláusula impede, e nenhuma lhe exige algo.",
        ),
    ),
    Outcome.DUTIES: (
        ("Allowed with duties", "Permitido com deveres"),
        ("Yes, as long as you keep the duties below.", "Sim, desde que você cumpra os deveres abaixo."),
    ),
    Outcome.PERSON: (
        ("Needs a person", "Requer decisão humana"),
        (
            "Not yet. The points below are open; a person must settle them before you go ahead.",
            "Ainda não. Os pontos abaixo estão em aberto; uma pessoa deve resolvê-los antes de você seguir.",
        ),
    ),
    Outcome.DENIED: (
        ("Denied", "Negado"),
        (
            "No. At least one clause forbids this use as you describe it.",
            "Não. Ao menos uma cláusula proíbe este uso como você o descreve.",
        ),
    ),
}

DUTY_GROUPS: tuple[tuple[tuple[str, str], tuple[str, ...]], ...] = (
    (("The name of the model", "O nome do modelo"), ("name",)),
    (("Where users see it", "Onde os usuários veem"), ("display",)),
    (("In the package", "No pacote"), ("copy", "notice", "attribution", "changes", "documentation")),
    (
        ("In contracts and terms of service", "Nos contratos e termos de serviço"),
        ("pass-through", "share-alike", "contract"),
    ),
    (("In how you use it", "No modo de usar"), ("policy", "register")),
)

ROLES: Mapping[str, tuple[str, str]] = {
    "model": ("the model itself", "o próprio modelo"),
    "base": ("its base", "sua base"),
    "adapter": ("adapter", "adaptador"),
    "merged": ("merged parent", "modelo mesclado"),
    "dataset": ("data set", "conjunto de dados"),
    "outputs": ("wrote training data", "escreveu dados de treino"),
}

SURE: Mapping[str, tuple[str, str]] = {
    "primary": ("the text itself", "o próprio texto"),
    "quoted": ("clauses as quoted", "cláusulas como citadas"),
    "secondary": ("descriptions alone", "só descrições"),
}

QUESTIONS: Mapping[str, tuple[str, str]] = {
    "commercial": ("Is the use commercial: for money, or in the work of a business?", "O uso é comercial: por dinheiro, ou no trabalho de uma empresa?"),
    "production": ("Is it production: do real users or real work depend on it?", "É produção: usuários ou trabalho reais dependem disto?"),
    "modifies": ("Do you change the weights (tune, merge, quantise, convert)?", "Você altera os pesos (ajustar, mesclar, quantizar, converter)?"),
    "shares_weights": ("Do you give the weights, or changed ones, to others?", "Você entrega os pesos, ou pesos alterados, a terceiros?"),
    "shares_product": ("Do you give others a product with the weights inside?", "Você entrega a terceiros um produto com os pesos dentro?"),
    "serves": ("Do others use the model over a network, without getting the weights?", "Outros usam o modelo pela rede, sem receber os pesos?"),
    "trains_on_outputs": ("Is what the model writes used to improve another language model?", "O que o modelo escreve é usado para melhorar outro modelo de linguagem?"),
    "removes_safety": ("Is safety training, or a guardrail, taken out?", "Algum treino de segurança ou salvaguarda é removido?"),
    "purpose": ("What is the purpose ({choices})?", "Qual é a finalidade ({choices})?"),
    "fields": ("Which of these fields of use does it touch ({choices}; none)?", "Quais destes campos de uso alcança ({choices}; nenhum)?"),
    "text_only": ("Does only text go in and out?", "Só texto entra e sai?"),
    "received": ("How was it received ({choices})?", "Como foi recebido ({choices})?"),
    "competes": ("Does the result compete with the maker of the model?", "O resultado concorre com quem fez o modelo?"),
    "company": ("Who acts ({choices})?", "Quem age ({choices})?"),
    "domicile": ("In which country is the seat (two letters, such as BR)?", "Em que país é a sede (duas letras, como BR)?"),
    "multimodal": ("Does the model take images or sound, not text alone?", "O modelo recebe imagens ou som, não só texto?"),
    "generated_by_you": ("Did you generate this data yourself? Say so in [[made_from]] generated_by.", "Você mesmo gerou estes dados? Diga em [[made_from]] generated_by."),
    "users.now": ("How many people a month use the products of your group now?", "Quantas pessoas por mês usam os produtos do seu grupo hoje?"),
    "users.product": ("How many people a month use this product now?", "Quantas pessoas por mês usam este produto hoje?"),
    "revenue.month": ("What did your group, or your employer's, take in last month (US dollars)?", "Quanto seu grupo, ou o do seu empregador, faturou no mês passado (dólares)?"),
    "revenue.year": ("What does your group take in a year (US dollars)?", "Quanto seu grupo fatura por ano (dólares)?"),
    "revenue.product_month": ("What does this product take in a month (US dollars)?", "Quanto este produto fatura por mês (dólares)?"),
}  # fmt: skip

CHOICES: Mapping[str, tuple[str, ...]] = {
    "purpose": PURPOSES,
    "company": ACTORS,
    "received": RECEIVED,
    "fields": FIELDS,
}
"""What a question offers, as use files spell it."""

_IN_PORTUGUESE = (
    ("last sentence", "última frase"),
    ("last paragraph", "último parágrafo"),
    ("the threshold sentence", "a frase do limiar"),
    ("first limb", "primeira parte"),
    ("second limb", "segunda parte"),
    ("through §1.b.iv of the licence", "por meio do §1.b.iv da licença"),
    ("your statement", "sua declaração"),
    ("what is known of ", "o que se sabe de "),
    ("its card", "seu cartão"),
    ("the card of", "o cartão de"),
    ("LICENSE of", "LICENSE de"),
    ("README of", "README de"),
    ("items 1 and 2", "itens 1 e 2"),
    ("the maker's card, read on", "o cartão de quem o fez, lido em"),
    (", read on ", ", lido em "),
    ("the name ", "o nome "),
    (" beside the file", " ao lado do arquivo"),
    ("text of ", "texto de "),
    ("of the text of", "do texto de"),
    ("of the texto de", "do texto de"),
    (" at ", " em "),
)
_SOURCES_IN_PORTUGUESE = (
    ("descriptions by others; the text was not to be had", "descrições de terceiros; o texto não pôde ser obtido"),
    ("the rest from descriptions", "o resto, de descrições"),
    ("the whole text was not to be had", "o texto completo não pôde ser obtido"),
    ("the whole text as Cloud-Temple/docs keeps it", "o texto completo como Cloud-Temple/docs o guarda"),
    ("full text in the card of", "texto completo no cartão de"),
    ("and in a public repository's translation file", "e no arquivo de tradução de um repositório público"),
    ("the language-model text only from descriptions", "o texto dos modelos de linguagem, só de descrições"),
    ("an edit of 2026-04-01 is known from others only", "uma edição de 2026-04-01 só é conhecida por terceiros"),
    ("later edits of 2025-09 and 2025-10 not read", "edições posteriores de 2025-09 e 2025-10 não foram lidas"),
    ("as quoted in the discussion of", "como citados na discussão de"),
    ("as quoted in discussion 3 of", "como citado na discussão 3 de"),
    ("as quoted from", "como citados de"),
    ("as quoted on", "como citada em"),
    ("quoted in Qwen cards", "citado em cartões da Qwen"),
    ("and in a dated third-party check", "e em uma verificação datada de terceiros"),
    ("LICENSE of ", "LICENSE de "),
    ("read in part", "lido em parte"),
    ("legal code", "texto legal"),
    (" of Debian", " do Debian"),
    ("simonwillison.net of ", "simonwillison.net de "),
    (" branch ", " ramo "),
    (" and on ", " e em "),
    (" and ", " e "),
    (" at ", " em "),
)
_CHOICES_IN_PORTUGUESE: Mapping[str, str] = {
    "research": "pesquisa",
    "evaluation": "avaliação",
    "personal": "pessoal",
    "internal": "interno",
    "product": "produto",
    "company": "empresa",
    "person": "pessoa",
    "public": "público",
    "direct": "direto",
    "in_product": "em_produto",
    "as_service": "como_serviço",
}
_VALUES: Mapping[str, tuple[str, str]] = {
    "company": ("a company", "uma empresa"),
    "person": ("a person", "uma pessoa"),
    "research": ("research", "pesquisa"),
    "public": ("a public body", "um órgão público"),
    "evaluation": ("evaluation", "avaliação"),
    "personal": ("personal use", "uso pessoal"),
    "internal": ("internal work", "trabalho interno"),
    "product": ("a product", "um produto"),
    "now": ("now", "hoje"),
    "never_above": ("never above", "nunca acima de"),
    "month": ("last month", "no mês passado"),
    "year": ("a year", "por ano"),
    "product_month": ("this product, last month", "este produto, no mês passado"),
}
_FIELDS_PT = dict(
    zip(
        FIELDS,
        (
            *("militar", "armas", "nuclear", "espionagem", "infraestrutura crítica", "vigilância", "biometria"),
            *("medicina", "direito", "finanças", "emprego", "crédito", "imigração", "segurança pública"),
            *(
                "decisões automatizadas",
                "desinformação",
                "personificação",
                "texto de máquina não revelado",
                "código malicioso",
                "adulto",
            ),
        ),
        strict=True,
    )
)


def place(text: str, language: Language) -> str:
    """A clause's place or the place of evidence, in a language.

    >>> place("§1.b.i, last sentence", "pt")
    '§1.b.i, última frase'
    """
    if language == "pt":
        for english, portuguese in _IN_PORTUGUESE:
            text = text.replace(english, portuguese)
    return text


def source_text(text: str, language: Language) -> str:
    """Where a licence's text was read, in a language.

    >>> source_text("databricks/dbrx, LICENSE at 7cbcf4ec", "pt")
    'databricks/dbrx, LICENSE em 7cbcf4ec'
    """
    if language == "pt":
        for english, portuguese in _SOURCES_IN_PORTUGUESE:
            text = text.replace(english, portuguese)
    return text


def choice(name: str, language: Language) -> str:
    """A value of a use file as it is offered and understood at a prompt.

    >>> choice("internal", "pt"), choice("medical", "pt")
    ('interno', 'medicina')
    """
    if language == "pt":
        return _CHOICES_IN_PORTUGUESE.get(name) or _FIELDS_PT[name].replace(" ", "-")
    return name


def value(name: str, language: Language) -> str:
    """A value of a stated use as people write it."""
    if name in _VALUES:
        return _VALUES[name][language == "pt"]
    return _FIELDS_PT.get(name, name) if language == "pt" else name


_MONTH = re.compile(r"users\.(\d{4}-\d{2})")


def question(fact: str, language: Language = "en") -> str:
    """The question that settles a fact.

    >>> question("users.2024-06")
    'How many people used the products of your group, affiliates included, in 2024-06?'
    """
    if month := _MONTH.fullmatch(fact):
        return (
            f"How many people used the products of your group, affiliates included, in {month[1]}?",
            f"Quantas pessoas usaram os produtos do seu grupo, coligadas incluídas, em {month[1]}?",
        )[language == "pt"]
    choices = ", ".join(choice(each, language) for each in CHOICES.get(fact, ()))
    return QUESTIONS[fact][language == "pt"].format(choices=choices)


def text_of(finding: Finding, language: Language) -> str:
    """What a finding says, in a language."""
    return finding.pt if language == "pt" else finding.text
