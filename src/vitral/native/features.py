"""What this CPU offers and what was chosen."""

from __future__ import annotations

from dataclasses import dataclass

from vitral.errors import HardwareError
from vitral.native import _core

__all__ = ["InstructionSet", "available", "choose", "instruction_sets"]


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """One instruction set: whether it can be used here, and why or why not."""

    name: str
    available: bool
    reason: str


def instruction_sets() -> tuple[InstructionSet, ...]:
    """All that this build knows, from the slowest to the fastest."""
    return tuple(InstructionSet(*entry) for entry in _core.instruction_sets())


def available() -> tuple[str, ...]:
    """The names that can be used on this machine.

    >>> "scalar" in available()
    True
    """
    return tuple(isa.name for isa in instruction_sets() if isa.available)


def choose(name: str | None = None) -> str:
    """The instruction set to use: `name` if it is available, the fastest if it is None.

    Raises HardwareError with the reason and what is allowed.
    """
    if name is None:
        return available()[-1]
    for isa in instruction_sets():
        if isa.name == name and isa.available:
            return name
        if isa.name == name:
            raise HardwareError(
                f"instruction set {name} cannot be used: {isa.reason}; allowed: {', '.join(available())}"
            )
    raise HardwareError(f"instruction set {name!r} is not in this build; allowed: {', '.join(available())}")
