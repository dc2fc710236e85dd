"""An intended use is read strictly: unknown keys and impossible values are named, with what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitral.errors import LicenceError
from vitral.provenance.terms import Threshold
from vitral.provenance.use import Use, answered, passes, read_use


def use_of(tmp_path: Path, text: str) -> Use:
    path = tmp_path / "use.toml"
    path.write_text(text, "utf-8")
    return read_use(path)


def test_a_file_states_who_what_and_what_from(tmp_path: Path) -> None:
    use = use_of(
        tmp_path,
        '[who]\nname = "Acme"\ndomicile = "DE"\nkind = "company"\n[who.users]\n"2024-06" = 5\nnow = 7\n'
        '[who.revenue]\nmonth = 2.5e7\n[what]\npurpose = "product"\nserve = true\nfields = ["medical"]\n'
        '[model]\nlicence = "mrl"\n[[made_from]]\nrole = "dataset"\nname = "d"\nlicence = "cc-by-4.0"\n',
    )
    assert (use.who, use.actor, use.users, use.revenue) == (
        "Acme",
        "company",
        {"2024-06": 5, "now": 7},
        {"month": 25_000_000},
    )
    assert use.facts()["eu"] is True and use.facts()["shares"] is True and use.facts()["copies_leave"] is None
    assert use.made_from[0].role == "dataset"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[what]\ncomercial = true", "did you mean 'commercial'"),
        ("[what]\npurpose = 'fun'", "allowed: research"),
        ("[what]\nserve = 'yes'", "true or false"),
        ("[what]\nfields = ['war']", "allowed: military"),
        ("[who]\ndomicile = 'Germany'", "two capital letters"),
        ("[who.users]\n'June' = 3", "unknown key who.users.June"),
        ("[who.users]\nnow = -1", "at least 0"),
        ("[[made_from]]\nname = 'x'", "made_from.role"),
        ("[who.users]\n'2024-13' = 3", "2024-13 is no month"),
        ("who = 3", "a table is wanted"),
        ("[who]\nusers = 3", r"a table is wanted: \[who.users\]"),
        ("[who]\nname = ['a']", "who.name is .*a text is wanted"),
        ("[what]\nname = 5", "what.name is 5; a text"),
        ("[model]\nlicence = 5", "model.licence is 5; a text"),
        ("[[made_from]]\nrole = 'dataset'\nname = 5", "made_from.name is 5; a text"),
        ("[what", "not valid TOML"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LicenceError, match=message) as error:
        use_of(tmp_path, text)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LicenceError, match="cannot be opened"):
        read_use(tmp_path / "none.toml")


def test_a_larger_figure_bounds_a_smaller_one() -> None:
    product = Threshold("users", 100, "product", "month", "now")
    assert passes(product, Use(users={"now": 100})) == (False, "users.now")
    assert passes(product, Use(users={"now": 101})) == (None, "users.product")
    assert passes(product, Use(users={"product": 101})) == (True, "users.product")


def test_an_answer_becomes_a_fact() -> None:
    use = answered(answered(answered(Use(), "users.2024-06", 3), "company", "person"), "modifies", True)
    assert use.users == {"2024-06": 3} and use.actor == "person" and use.modify is True
