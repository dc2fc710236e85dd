"""Personal data in a text, found by form: addresses, numbers with check digits. Names are not found."""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["personal_data"]


def personal_data(text: str) -> dict[str, int]:
    """How often each kind of personal data occurs.

    >>> personal_data("Write to ana@example.org or 192.168.0.1; card 4111 1111 1111 1111, CPF 529.982.247-25")
    {'email': 1, 'ip address': 1, 'card number': 1, 'cpf': 1}
    """
    found = {name: sum(map(valid, pattern.findall(text))) for name, pattern, valid in _KINDS}
    return {name: count for name, count in found.items() if count}


def _always(match: str) -> bool:
    return True


def _luhn(match: str) -> bool:
    digits = [int(c) for c in match if c.isdigit()]
    doubled = [d * 2 - 9 * (d > 4) if i % 2 else d for i, d in enumerate(reversed(digits))]
    return len(set(digits)) > 1 and sum(doubled) % 10 == 0


def _cpf(match: str) -> bool:
    """Two check digits, each a weighted sum of those before it modulo 11 (Receita Federal)."""
    digits = [int(c) for c in match if c.isdigit()]
    if len(set(digits)) == 1:
        return False
    for n in (9, 10):
        check = sum(d * (n + 1 - i) for i, d in enumerate(digits[:n])) * 10 % 11 % 10
        if check != digits[n]:
            return False
    return True


def _iban(match: str) -> bool:
    """ISO 13616: letters become numbers, the first four characters go last, the rest modulo 97 is 1."""
    plain = match.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _octets(match: str) -> bool:
    return all(int(part) <= 255 for part in match.split("."))


_KINDS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("email", re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,4}\b"), _always),
    (
        "phone",
        re.compile(r"(?<![\w.])(?:\+\d{1,3}[ -]?\(?\d{1,4}\)?(?:[ -]?\d{2,5}){2,4}|\(\d{2,3}\) ?\d{3,5}[ -]\d{4})\b"),
        _always,
    ),
    ("ip address", re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])"), _octets),
    ("card number", re.compile(r"(?<!\d)\d{4}(?:[ -]?\d{4}){2}[ -]?\d{1,7}(?!\d)"), _luhn),
    ("cpf", re.compile(r"(?<!\d)\d{3}\.?\d{3}\.?\d{3}-?\d{2}(?!\d)"), _cpf),
    ("us social security number", re.compile(r"(?<!\d)(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?!\d)"), _always),
    ("iban", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), _iban),
)
