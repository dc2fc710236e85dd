"""A look at a model before anything of it is used: every file by its content, never by what it is called.

Only headers, configurations, pickles and templates are read; nothing is unpacked or run but the chat templates,
in their sandbox. What a file may hold is listed and everything else is refused or put before a person.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from vitral.errors import FormatError, ModelNotFound, UnsupportedType, VitralError
from vitral.formats.gguf import GgufFile
from vitral.formats.sniff import kind_of
from vitral.provenance.findings import Finding, note, person, refused
from vitral.provenance.scan_content import (
    READ_BY_US,
    Content,
    read_gguf_content,
    read_json_content,
    read_safetensors_content,
)
from vitral.provenance.scan_names import hidden_archive, scan_name, walk
from vitral.provenance.scan_probes import probe
from vitral.provenance.scan_template import Capabilities, capabilities, scan_tree
from vitral.verdict import Verdict

__all__ = ["Scan", "scan"]

_HEAD = 1 << 14


@dataclass(frozen=True, slots=True)
class Scan:
    """What was found under `path`: the files by kind, the findings, and what each chat template can do.

    `gguf` are the GGUF files as they were read: who opens these opens what was scanned.
    """

    path: Path
    files: dict[str, str]
    findings: tuple[Finding, ...]
    templates: dict[str, Capabilities] = field(default_factory=dict)
    gguf: dict[Path, GgufFile] = field(default_factory=dict)

    def of(self, level: str) -> list[Finding]:
        """The findings of one level."""
        return [finding for finding in self.findings if finding.level == level]

    def verdict(self) -> Verdict:
        """Passed unless something is refused; None where a person must look."""
        wrong, unsure = self.of("refused"), self.of("person")
        reasons = [f"{finding.file}: {finding.text} [{finding.rule}]" for finding in wrong or unsure]
        evidence: dict[str, Any] = {
            "files": self.files,
            "findings": [asdict(finding) for finding in self.findings],
            "templates": {name: asdict(able) for name, able in self.templates.items()},
        }
        passed = False if wrong else None if unsure else True
        return Verdict(passed, tuple(reasons or [f"{len(self.files)} files, nothing against them"]), evidence)


def scan(path: Path, base: Path | None = None) -> Scan:
    """Scan a file or everything in a folder; with `base`, compare templates and added tokens with that model's.

    Raises ModelNotFound for a path that is not there.
    """
    contents, files, findings = _read(Path(path))
    for file, content in contents.items():
        findings += _judge_templates(file, content)
    if base is not None:
        findings += _compared(contents, _read(Path(base))[0])
    templates = {
        _named(file, name): capabilities(source)
        for file, content in contents.items()
        for name, source in content.templates.items()
        if not any(f.rule in ("template-broken", "template-size") and f.file == _named(file, name) for f in findings)
    }
    ordered = sorted(set(findings), key=lambda f: (("refused", "person", "note").index(f.level), f))
    read = {content.gguf.paths[0]: content.gguf for content in contents.values() if content.gguf is not None}
    return Scan(Path(path), files, tuple(_with_digest(Path(path), finding) for finding in ordered), templates, read)


def _read(path: Path) -> tuple[dict[str, Content], dict[str, str], list[Finding]]:
    if not path.exists():
        raise ModelNotFound(f"{path} does not exist; give a model file or folder")
    contents: dict[str, Content] = {}
    files: dict[str, str] = {}
    findings: list[Finding] = []
    entries = walk(path) if path.is_dir() else [(path, path.name, None)]
    for file, name, finding in entries:
        if finding is not None:
            findings.append(finding)
            continue
        contents[name] = Content()
        try:
            findings.extend(_scan_file(file, name, files, contents[name]))  # what comes before an error is kept
        except UnsupportedType as error:
            findings.append(person(name, "type", _plain(error, file)))
        except VitralError as error:
            findings.append(refused(name, "structure", _plain(error, file)))
        except OSError as error:
            findings.append(refused(name, "unreadable", f"cannot be read: {error.strerror}"))
    if not files and not findings:
        findings.append(person(path.name, "empty", "no files"))
    return contents, files, findings


def _scan_file(path: Path, name: str, files: dict[str, str], content: Content) -> Iterator[Finding]:
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    kind = str(kind_of(path))
    files[name] = kind
    yield from scan_name(path, name, head)
    if kind not in ("empty", "torch") and hidden_archive(path):
        yield refused(name, "polyglot", f"a {kind} file that is a ZIP archive too: programs would see different files")
    if kind == "gguf":
        yield from read_gguf_content(path, name, content)
    elif kind == "safetensors":
        yield from read_safetensors_content(path, name)
    elif kind in ("json", "text") and path.suffix in (".jinja", ".jinja2"):  # "{%" begins like JSON
        files[name] = "template"
        content.templates["default" if path.stem == "chat_template" else path.stem] = path.read_text("utf-8", "replace")
    elif kind == "json" or (kind == "text" and path.name in READ_BY_US):
        yield from read_json_content(path, name, content)
    elif kind in ("torch", "pickle", "text", "unknown"):
        from vitral.provenance.scan_other import scan_other  # a GGUF file needs none of the readers there

        files[name] = yield from scan_other(path, name, head, kind)
    elif kind in ("lfs pointer", "web page", "empty"):
        yield note(name, "no-content", f"{kind}; download it again if it should be more")


def _judge_templates(file: str, content: Content) -> Iterator[Finding]:
    for name, source in content.templates.items():
        for finding in _judged(source):
            yield replace(finding, file=_named(file, name))


@lru_cache(maxsize=64)
def _judged(source: str) -> tuple[Finding, ...]:
    """The findings of a template, which are the same wherever it stands."""
    found = list(scan_tree(source, ""))
    if not any(finding.level == "refused" for finding in found):
        found += probe(source, capabilities(source), "")
    return tuple(found)


def _compared(ours: dict[str, Content], theirs: dict[str, Content]) -> Iterator[Finding]:
    """Differences from the model that this one says it comes from."""
    import difflib

    base = {name: source for content in theirs.values() for name, source in content.templates.items()}
    tokens = {text for content in theirs.values() for _, text, _ in content.added_tokens}
    for file, content in ours.items():
        for name, source in content.templates.items():
            if base and source != base.get(name):
                changed = difflib.unified_diff(
                    (base.get(name) or "").splitlines(), source.splitlines(), n=0, lineterm=""
                )
                lines = [line for line in changed if line[:1] in "+-" and line[:3] not in ("+++", "---")]
                text = f"differs from the base model's in {len(lines)} lines: {'  '.join(lines)[:400]}"
                yield person(_named(file, name), "template-differs", text)
        more = sorted({text for _, text, _ in content.added_tokens} - tokens) if tokens else []
        if more:
            yield person(file, "tokens-differ", f"{len(more)} added tokens that the base model has not: {more[:5]}")


def _named(file: str, name: str) -> str:
    return f"{file}#{name}"


def _plain(error: Exception, path: Path) -> str:
    return " ".join(str(error).replace(str(path), "the file").split())


def _with_digest(root: Path, finding: Finding) -> Finding:
    """What is refused carries the digest by which it could be accepted."""
    if finding.level != "refused":
        return finding
    file = finding.file.partition("#")[0]
    path = root / file if root.is_dir() else root
    if not path.is_file():  # a pipe would keep us waiting
        return finding
    from vitral.provenance.digest import sha256_of

    try:
        return replace(finding, sha256=sha256_of(path))
    except (OSError, FormatError):
        return finding
