"""Documentation that cannot lie: its code runs, its commands exist, its links lead somewhere."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from tests.conftest import find_data
from tests.docs.pages import PAGES, ROOT, anchors, blocks, links, name_of, vitral_lines
from tools.reference import FOLDER, pages
from vitral.cli.main import _code, app

# What a command line may name to be run here: there offline, and small.
_AT_HAND = {"smollm2:135m", "stories260K.bin", "small.gguf", "stories.gguf", "README.md"}
_SETTINGS = {"VITRAL_ISA", "VITRAL_THREADS"}
_LINES = vitral_lines()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages take for granted."""
    import vitral.conversion

    folder = tmp_path_factory.mktemp("docs")
    for file in (find_data() / "model-stories260k").glob("*.bin"):
        shutil.copy(file, folder)
    shutil.copy(ROOT / "README.md", folder)
    vitral.conversion.convert(folder / "stories260K.bin", folder / "small.gguf", type="Q8_0")
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_blocks_run_in_order(
    page: Path, workplace: Path, smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    namespace: dict[str, object] = {"__name__": "docs"}
    for block in blocks(page, "python"):
        code = "\n" * (block.line - 1) + block.text  # so that a failure names the page's own line
        exec(compile(code, str(page), "exec"), namespace)


@pytest.mark.parametrize("line", _LINES)
def test_every_command_line_is_one(line: str) -> None:
    words = shlex.split(line)
    words = words[words.index("vitral") :]  # behind the settings
    command = get_command(app())
    for i, word in enumerate(words[1:], 2):
        command = command.commands[word]  # type: ignore[attr-defined]
        if not hasattr(command, "commands"):
            command.make_context(" ".join(words[:i]), words[i:])
            return
    pytest.fail("the line ends before a command")


def _runnable(line: str) -> bool:
    words = shlex.split(line)
    settings = [word.partition("=")[0] for word in words[: words.index("vitral")]]
    command, *rest = words[words.index("vitral") + 1 :]
    named = [word for word in rest if not word.startswith("-")]
    takes_model = command not in ("list", "doctor")
    return (
        _SETTINGS.issuperset(settings)
        and command not in ("rm", "serve")
        and (not takes_model or (bool(named) and named[0] in _AT_HAND))
    )


@pytest.mark.parametrize("line", filter(_runnable, _LINES))
def test_command_lines_that_need_no_network_run(
    line: str, workplace: Path, smollm2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line)
    start = words.index("vitral")
    for word in words[:start]:
        monkeypatch.setenv(*word.split("=", 1))
    args = words[start + 1 :]
    if args[0] == "run":
        args += ["--max-tokens", "3"]  # the last one counts
    if args[0] in ("quantize", "convert", "perplexity"):
        args[1] = "stories260K.bin"  # the same command on a model five hundred times smaller
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello"))
    code = _code(args)
    said = capsys.readouterr()
    assert code == 0, said.err
    assert said.out.strip()


@pytest.mark.parametrize("name", ["docs/tutorials/release-a-model.md"])
def test_a_tutorial_runs_line_by_line_and_says_what_it_shows(name: str, smollm2: Path, tmp_path: Path) -> None:
    """Each shell block runs as it stands; every line of the text block after it is in what it says, and its exit code."""
    page = ROOT / name
    shown = sorted(blocks(page, "sh") + blocks(page, "text"), key=lambda block: block.line)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    said, code = "", 0
    for block in shown:
        if block.language == "sh":
            done = subprocess.run(["bash", "-c", block.text], cwd=tmp_path, env={**os.environ, "PATH": path, "COLUMNS": "300"},
                                  capture_output=True, text=True, timeout=300)  # fmt: skip
            said, code = done.stdout + done.stderr, done.returncode
            continue
        for line in block.text.splitlines():
            if line.startswith("exit code"):
                assert line == f"exit code {code}", f"line {block.line}: {said}"
            else:
                assert line in " ".join(said.split()), f"line {block.line}: {line!r} is not in {said}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    listed = {(page.parent / link.partition("#")[0]).resolve() for page in (index, ROOT / "docs/decisions/README.md")
              for link in links(page)}  # fmt: skip
    missing = [name_of(page) for page in PAGES if page.parent != ROOT and page != index and page not in listed]
    assert not missing, f"add them to docs/index.md: {missing}"


@pytest.mark.parametrize("name", pages())
def test_the_reference_says_what_the_code_says(name: str) -> None:
    assert (FOLDER / name).read_text("utf-8") == pages()[name], "run: make docs"


def test_decisions_are_numbered_without_gaps() -> None:
    files = sorted(path.name for path in (ROOT / "docs/decisions").glob("[0-9]*.md"))
    assert [int(name[:4]) for name in files] == list(range(1, len(files) + 1))
