"""Constraints as text: what crosses to the worker and stands in records."""

from __future__ import annotations

import json

from vitral.engine.grammar import Constraint
from vitral.errors import RequestError

__all__ = ["constraint_from", "constraint_to"]


def constraint_to(constraint: Constraint) -> str:
    """A constraint as text, for wire and record."""
    facts = {
        "body": constraint.body,
        "control_ids": sorted(constraint.control_ids),
        "drops_space": constraint.drops_space,
    }
    return json.dumps(facts, sort_keys=True)


def constraint_from(text: str) -> Constraint:
    """The constraint again; RequestError if it is none."""
    try:
        facts = json.loads(text)
        return Constraint(facts["body"], frozenset(facts["control_ids"]), facts["drops_space"])
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"the constraint cannot be read: {error}") from None
