"""`vitral licence` as a pipeline meets it: exit codes, JSON, pages, one-line errors."""

from __future__ import annotations

import json
import os
import pty
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


def test_on_a_terminal_only_facts_that_clauses_turn_on_are_asked() -> None:
    """Mixtral's Apache licence asks whether copies leave and whether they were changed, and for nothing else."""
    answers = iter((b"y\n", b"n\n"))
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"PYTHONPATH": str(ROOT / "src"), "TERM": "dumb", "COLUMNS": "100"}
        os.execv(sys.executable, [sys.executable, "-m", "vitral", "licence", "check", "mistralai/Mixtral-8x7B-v0.1"])
    said = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # the other end has closed
            break
        said += piece
        if piece.rstrip().endswith(b"(y/n):"):
            os.write(terminal, next(answers))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    text = said.decode()
    assert text.count("(y/n)") == 2 and "Allowed with duties" in text and "§4(a)" in text
