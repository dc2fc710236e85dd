"""When a clause applies: a small expression over facts, each of which may be unknown.

Three values (Kleene): True, False, and None for "it depends on a fact that nobody gave". Terms are data,
so a condition is read by our own evaluator, never by Python's.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from vitral.errors import LicenceError

__all__ = ["FACTS", "Answer", "evaluate", "facts_of"]

FACTS: Mapping[str, str] = {
    # the act
    "commercial": "for money, or in the work of a business, directly or indirectly",
    "production": "outside a test environment: real users or real work depend on it",
    "modifies": "you change the weights: tune, merge, quantise or convert",
    "shares_weights": "you give the weights, or changed ones, to others",
    "shares_product": "you give others a product that has the weights inside",
    "serves": "others use the model over a network and get no weights",
    "trains_on_outputs": "what the model writes is used to improve another language model",
    "removes_safety": "safety training or guardrails are taken out",
    "purpose": "research, evaluation, personal, internal or product",
    "fields": "fields of use, such as military or medical",
    "text_only": "only text goes in and out, though the model can do more",
    "received": "direct, in_product, or as_service",
    "competes": "the result competes with the maker of the model that wrote the data",
    # the actor
    "company": "a company acts, not a person or a research body",
    "domicile": "country of the seat, two letters",
    "eu": "the seat is in the European Union",
    # the component
    "inside": "this component's weights are in the model",
    "as_outputs": "the model was trained on what this component's model wrote",
    "as_data": "this component is a data set that the model was trained on",
    "derived": "the model differs from this component: changed, adapted, merged",
    "multimodal": "the component takes images or sound, not text alone",
    "same_family": "every model inside is of this licence's own family",
    "generated_by_you": "you, not a third party, generated these outputs",
    # derived from the above
    "copies_leave": "copies of the weights reach others",
    "shares": "others get weights, a product or a service",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether a condition holds, and, where that is not known, which facts would decide it."""

    holds: bool | None
    missing: tuple[str, ...] = ()


def evaluate(condition: str, facts: Mapping[str, object]) -> Answer:
    """Whether `condition` holds for `facts`; a fact that is absent or None is unknown.

    >>> evaluate("inside and shares_weights", {"inside": True, "shares_weights": None})
    Answer(holds=None, missing=('shares_weights',))
    >>> evaluate("inside and shares_weights", {"inside": False}).holds
    False
    >>> evaluate("'military' in fields", {"fields": ("medical", "military")}).holds
    True
    """
    if not condition:
        return Answer(True)
    holds, missing = _walk(_parsed(condition), facts)
    return Answer(holds, tuple(dict.fromkeys(missing)) if holds is None else ())


def facts_of(condition: str) -> frozenset[str]:
    """The facts that a condition asks about; LicenceError where it cannot be read.

    >>> sorted(facts_of("inside and not eu"))
    ['eu', 'inside']
    """
    if not condition:
        return frozenset()
    return frozenset(node.id for node in ast.walk(_parsed(condition)) if isinstance(node, ast.Name))


@cache
def _parsed(condition: str) -> ast.expr:
    try:
        tree = ast.parse(condition, mode="eval").body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise LicenceError(f"condition {condition!r} cannot be read: {error}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in FACTS:
            raise LicenceError(f"condition {condition!r} asks for {node.id!r}; known facts: {', '.join(FACTS)}")
        if not isinstance(node, _ALLOWED):
            raise LicenceError(f"condition {condition!r} uses {type(node).__name__}; allowed: and, or, not, ==, in")
    return tree


_ALLOWED = (
    *(ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.Name, ast.Load),
    *(ast.Compare, ast.Eq, ast.NotEq, ast.In, ast.NotIn, ast.Constant, ast.Tuple),
)


def _walk(node: ast.expr, facts: Mapping[str, object]) -> tuple[bool | None, list[str]]:
    if isinstance(node, ast.BoolOp):
        return _joined([_walk(part, facts) for part in node.values], isinstance(node.op, ast.Or))
    if isinstance(node, ast.UnaryOp):
        holds, missing = _walk(node.operand, facts)
        return (None if holds is None else not holds), missing
    if isinstance(node, ast.Compare):
        return _compared(node, facts)
    assert isinstance(node, ast.Name), "anything else was refused when the condition was read"
    value = facts.get(node.id)
    return (None, [node.id]) if value is None else (bool(value), [])


def _joined(parts: list[tuple[bool | None, list[str]]], decisive: bool) -> tuple[bool | None, list[str]]:
    """`or` is decided by one True, `and` by one False, whatever is unknown beside it."""
    if any(holds is decisive for holds, _ in parts):
        return decisive, []
    missing = [fact for holds, facts in parts if holds is None for fact in facts]
    return (None, missing) if missing else (not decisive, [])


def _compared(node: ast.Compare, facts: Mapping[str, object]) -> tuple[bool | None, list[str]]:
    left, right = (_value(side, facts) for side in (node.left, node.comparators[0]))
    unknown = [
        side.id
        for side in (node.left, node.comparators[0])
        if isinstance(side, ast.Name) and facts.get(side.id) is None
    ]
    if unknown:
        return None, unknown
    match node.ops[0]:
        case ast.Eq():
            return left == right, []
        case ast.NotEq():
            return left != right, []
        case ast.In():
            return left in right, []  # type: ignore[operator]
        case _:
            return left not in right, []  # type: ignore[operator]


def _value(node: ast.expr, facts: Mapping[str, object]) -> object:
    if isinstance(node, ast.Name):
        return facts.get(node.id)
    return ast.literal_eval(node)
