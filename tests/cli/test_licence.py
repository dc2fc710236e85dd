"""`vitral licence` as a pipeline meets it: exit codes, JSON, pages, one-line errors."""

from __future__ import annotations

import json
import os
import pty
import re
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.cli.test_main import ROOT
from vitral.cli.main import _code

QUIET = """
[who]
kind = "company"
domicile = "BR"
[who.users]
never_above = 1000
[what]
purpose = "product"
commercial = true
production = true
fields = []
modify = {modify}
share_weights = {share}
share_product = false
serve = false
train_on_outputs = false
remove_safety = false
name = "{name}"
"""


@pytest.fixture
def vitral(capsys: pytest.CaptureFixture[str]) -> Callable[..., CompletedProcess[str]]:
    """A command, run in this process: what a shell would see of it."""

    def run(*args: str) -> CompletedProcess[str]:
        code = _code(list(args))
        said = capsys.readouterr()
        return CompletedProcess(args, code, said.out, said.err)

    return run


Command = Callable[..., CompletedProcess[str]]


def use(tmp_path: Path, modify: bool = False, share: bool = False, name: str = "") -> str:
    path = tmp_path / "use.toml"
    path.write_text(QUIET.format(modify=str(modify).lower(), share=str(share).lower(), name=name))
    return str(path)


@pytest.mark.parametrize(
    ("model", "shared", "name", "code", "outcome"),
    [
        ("mistralai/Mixtral-8x7B-v0.1", False, "", 0, "allowed"),
        ("mistralai/Mixtral-8x7B-v0.1", True, "", 0, "allowed with duties"),
        ("mistralai/Codestral-22B-v0.1", False, "", 1, "denied"),
        ("someone/unheard-of", False, "", 3, "needs a person"),
        ("meta-llama/Llama-3.1-8B", True, "AcmeChat", 4, "allowed with duties"),
        ("meta-llama/Llama-3.1-8B", True, "Llama-AcmeChat", 0, "allowed with duties"),
    ],
)
def test_check_ends_with_a_code_for_each_outcome(
    vitral: Command, tmp_path: Path, model: str, shared: bool, name: str, code: int, outcome: str
) -> None:
    done = vitral("licence", "check", model, "--use", use(tmp_path, shared, shared, name), "--json")
    assert done.returncode == code, done.stderr
    assert json.loads(done.stdout)["outcome"] == outcome


def test_without_a_terminal_missing_facts_are_named_not_asked(vitral: Command) -> None:
    done = vitral("licence", "check", "meta-llama/Llama-3.1-8B", "--json")
    assert done.returncode == 3
    assert "users.2024-06" in {each["fact"] for each in json.loads(done.stdout)["missing"]}


def test_a_page_and_a_bundle_are_written(vitral: Command, tmp_path: Path) -> None:
    stated = use(tmp_path, True, True, "Llama-X")
    page, out = tmp_path / "report.html", tmp_path / "out"
    done = vitral(
        "licence", "check", "meta-llama/Llama-3.2-3B", "--use", stated, "--html", str(page), "--language", "pt"
    )
    assert done.returncode == 0, done.stderr
    assert 'lang="pt-BR"' in page.read_text("utf-8") and "Permitido com deveres" in done.stdout
    written = vitral("licence", "notices", "meta-llama/Llama-3.2-3B", "--use", stated, "--out", str(out), "--json")
    assert written.returncode == 0, written.stderr
    assert "Llama 3.2 is licensed under" in (out / "Notice").read_text("utf-8")
    (out / "Notice").write_text("something else")
    again = vitral("licence", "notices", "meta-llama/Llama-3.2-3B", "--use", stated, "--out", str(out))
    assert again.returncode == 2 and "something else" in again.stderr


def test_explain_compare_list_and_recognise_have_a_word_for_people_and_machines(
    vitral: Command, tmp_path: Path
) -> None:
    assert "§1.b.iii" in vitral("licence", "explain", "llama3.1").stdout
    assert "apache-2.0" in vitral("licence", "list").stdout
    assert json.loads(vitral("licence", "explain", "Apache-2.0", "--json").stdout)["spdx"] == "Apache-2.0"
    rows = json.loads(vitral("licence", "compare", "llama3", "llama3.1", "--json").stdout)
    assert any(not row["same"] for row in rows)
    text = tmp_path / "LICENSE"
    text.write_text("Nothing that anyone knows.")
    assert vitral("licence", "recognise", str(text)).stdout.strip() == "unknown"


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "no-such-thing"),
        ("explain", "no-such-licence"),
        ("check", "a/b", "--use", "none.toml"),
        ("recognise", "none.txt"),
    ],
)
def test_what_cannot_be_found_is_one_line(vitral: Command, arguments: tuple[str, ...]) -> None:
    done = vitral("licence", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def talk(arguments: list[str], answers: dict[str, list[str]]) -> tuple[int, str]:
    """A conversation on a terminal: each question that holds a key is answered by the next of its answers, else by nothing."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"PYTHONPATH": str(ROOT / "src"), "TERM": "dumb", "COLUMNS": "400"}
        os.execv(sys.executable, [sys.executable, "-m", "vitral", "licence", *arguments])
    said = asked = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # the other end has closed
            break
        said, asked = said + piece, asked + piece
        if re.search(rb"(\)|\?):? ?: ?$", asked):
            question = asked.decode().splitlines()[-1]
            waiting = next((given for key, given in answers.items() if key in question and given), [""])
            os.write(terminal, f"{waiting.pop(0)}\n".encode())
            asked = b""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.decode()


def test_on_a_terminal_only_facts_that_clauses_turn_on_are_asked() -> None:
    """Mixtral's Apache licence asks whether copies leave and whether they were changed, and for nothing else."""
    answers = {"a product with the weights": ["y"], "change the weights": ["n"]}
    code, text = talk(["check", "mistralai/Mixtral-8x7B-v0.1"], answers)
    assert code == 0
    assert text.count("(y/n)") == 2 and "Allowed with duties" in text and "§4(a)" in text


def test_a_conversation_in_portuguese_ends_in_the_verdict_of_the_same_facts(vitral: Command, tmp_path: Path) -> None:
    answers = {
        "2024-06": ["900.000.000"],
        "produto com os pesos": ["não"],
        "entrega os pesos": ["nao"],
        "altera os pesos": ["N"],
        "campos de uso": ["nenhum"],
        "pela rede": ["n"],
        "melhorar outro": ["n"],
    }
    code, text = talk(
        ["check", "meta-llama/Llama-3.1-8B", "--language", "pt"], {k: list(v) for k, v in answers.items()}
    )
    assert code == 1 and "Negado" in text and "llama3.1 §2" in text
    assert "(y/n)" not in text and "military" not in text, "questions and choices are in Portuguese"
    answers["2024-06"] = ["40.000"]
    code, text = talk(
        ["check", "meta-llama/Llama-3.1-8B", "--language", "pt"], {k: list(v) for k, v in answers.items()}
    )
    assert code == 0 and "Permitido com deveres" in text


def test_an_answer_that_means_nothing_is_said_to_and_asked_again() -> None:
    answers = {
        "2024-06": ["about a million", "1,5", "0.5", "40,000"],
        "fields of use": ["medical, foo", "none"],
        "give the weights": ["maybe", "yes"],
        "change the weights": ["n"],
        "improve another": ["n"],
    }
    code, text = talk(["check", "meta-llama/Llama-3.1-8B"], answers)
    assert code == 0 and "Allowed with duties" in text
    for said in ("'about a million' was not understood", "'1,5' was", "'0.5' was", "'medical, foo' was", "'maybe' was"):
        assert said in text
    assert "allowed: y or n" in text and "a whole number, such as" in text


def test_empty_answers_leave_facts_open_and_a_person_must_decide() -> None:
    code, text = talk(["check", "meta-llama/Llama-3.1-8B"], {})
    assert code == 3 and "Needs a person" in text and text.count("in 2024-06?") == 2, "asked once, listed once"
