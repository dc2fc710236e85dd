"""Regular expressions of JSON Schema (ECMA 262) in the dialect of the constraint library (Rust's).

The two agree on most of what people write. Where they don't, the same text would mean something else
without a word of warning: here it is written anew, or refused.
"""

from __future__ import annotations

from vitral.errors import RequestError

__all__ = ["FORMATS", "from_ecma"]

# ECMA 262, WhiteSpace and LineTerminator. Rust's \s has U+0085 as well and lacks U+FEFF.
_SPACE = r"\t\n\x0b\x0c\r \x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}"
_DOT = r"[^\n\r\x{2028}\x{2029}]"
_SAME = frozenset("dDwWfnrtv" + "^$\\.*+?()[]{}|/-" + "\"',:;=!@#%&~`<>")  # escapes that mean the same in both
_SET_OPERATORS = ("&&", "--", "~~")


def from_ecma(pattern: str, where: str) -> str:
    """The same language in Rust's syntax; RequestError, with `where`, for what has no equal there.

    >>> from_ecma("^.$", "pattern") == "^" + _DOT + "$"
    True
    """
    out: list[str] = []
    at, in_class = 0, False
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            text, at = _escape(pattern, at, in_class, where)
            out.append(text)
            continue
        if in_class and (char == "[" or pattern[at : at + 2] in _SET_OPERATORS):
            raise _refused(where, pattern, f"{char!r} inside a class; write it with a backslash")
        if not in_class and pattern.startswith("(?", at) and not _plain_group(pattern, at):
            raise _refused(where, pattern, "a look-around, an inline flag or a group that ECMA 262 does not have")
        if char == "[":
            in_class = True
            if pattern[at + 1 : at + 2] == "]" or pattern[at + 1 : at + 3] == "^]":
                raise _refused(where, pattern, "an empty class")
        elif char == "]":
            in_class = False
        out.append(_DOT if char == "." and not in_class else char)
        at += 1
    return "".join(out)


def _plain_group(pattern: str, at: int) -> bool:
    """Whether (?: or (?<name> stands here."""
    if pattern.startswith("(?:", at):
        return True
    return pattern.startswith("(?<", at) and pattern[at + 3 : at + 4] not in ("=", "!", "")


def _escape(pattern: str, at: int, in_class: bool, where: str) -> tuple[str, int]:
    """An escape in the other dialect, and where the pattern goes on."""
    char = pattern[at + 1 : at + 2]
    if char in ("s", "S"):
        if not in_class:
            return ("[" if char == "s" else "[^") + _SPACE + "]", at + 2
        if char == "s":
            return _SPACE, at + 2
        raise _refused(where, pattern, "\\S inside a class")
    if char in ("p", "P"):
        end = pattern.find("}", at)
        if pattern[at + 2 : at + 3] == "{" and end > 0:
            return pattern[at : end + 1], end + 1
    if char == "x" and _is_hex(pattern[at + 2 : at + 4], 2):
        return pattern[at : at + 4], at + 4
    if char == "u" and _is_hex(pattern[at + 2 : at + 6], 4):
        return _unit(pattern, at, where)
    if char in _SAME and char:
        return pattern[at : at + 2], at + 2
    raise _refused(where, pattern, f"the escape \\{char}")


def _unit(pattern: str, at: int, where: str) -> tuple[str, int]:
    """\\uXXXX, or two of them that make one character."""
    code = int(pattern[at + 2 : at + 6], 16)
    if not 0xD800 <= code < 0xE000:
        return f"\\x{{{code:x}}}", at + 6
    low = pattern[at + 6 : at + 12]
    if code < 0xDC00 and low[:2] == "\\u" and _is_hex(low[2:], 4) and 0xDC00 <= int(low[2:], 16) < 0xE000:
        return f"\\x{{{0x10000 + (code - 0xD800) * 0x400 + int(low[2:], 16) - 0xDC00:x}}}", at + 12
    raise _refused(where, pattern, "half a surrogate pair")


def _is_hex(text: str, n: int) -> bool:
    return len(text) == n and all(char in "0123456789abcdefABCDEF" for char in text)


def _refused(where: str, pattern: str, found: str) -> RequestError:
    short = pattern if len(pattern) <= 60 else pattern[:57] + "..."
    return RequestError(f"{where} {short!r} holds {found}; it cannot be honoured, write the pattern without it")


_DATE = (
    r"(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    r"|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    r"|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
# A label of RFC 1123 that is no A-label (RFC 5890): no two hyphens at its third and fourth place.
_EDGE, _INNER = "[A-Za-z0-9]", "[A-Za-z0-9-]"
_LABEL = f"(?:{_EDGE}(?:{_INNER}?{_EDGE})?|{_EDGE}{_INNER}(?:{_EDGE}|-){_EDGE}|{_EDGE}{_INNER}(?:{_EDGE}{_INNER}|-{_EDGE}){_INNER}{{0,58}}{_EDGE})"  # fmt: skip

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = f"{_OCTET}(?:\\.{_OCTET}){{3}}"
_H16 = "[0-9A-Fa-f]{1,4}"
_LAST32 = f"(?:{_H16}:{_H16}|{_IPV4})"
# RFC 3986, section 3.2.2: `::` stands for one group of zeros or more, and once.
_IPV6 = "(?:" + "|".join([
    f"(?:{_H16}:){{6}}{_LAST32}",
    f"::(?:{_H16}:){{5}}{_LAST32}",
    *(f"(?:{_H16}(?::{_H16}){{0,{n}}})?::(?:{_H16}:){{{4 - n}}}{_LAST32}" for n in range(5)),
    f"(?:{_H16}(?::{_H16}){{0,5}})?::{_H16}",
    f"(?:{_H16}(?::{_H16}){{0,6}})?::",
]) + ")"  # fmt: skip
# RFC 5321, section 4.1.2 and 4.1.3: a mailbox.
_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_QUOTED = r'"(?:[ !#-\[\]-~]|\\[ -~])*"'
_NAME = f"{_LABEL}(?:\\.{_LABEL})*"
_EMAIL = f"(?:{_ATOM}(?:\\.{_ATOM})*|{_QUOTED})@(?:{_NAME}|\\[(?:{_IPV4}|IPv6:{_IPV6})\\])"

# Formats whose own grammar in the library lets wrong strings through (30 February, names that are
# too long) or none of a kind (IPv4 within IPv6), and the greatest length. Leap seconds and A-labels are never produced.
FORMATS: dict[str, tuple[str, int | None]] = {
    "date": (f"^{_DATE}$", None),
    "time": (f"^{_TIME}$", None),
    "date-time": (f"^{_DATE}[Tt]{_TIME}$", None),
    "hostname": (f"^{_NAME}$", 253),
    "ipv6": (f"^{_IPV6}$", None),
    "email": (f"^{_EMAIL}$", 254),
}
