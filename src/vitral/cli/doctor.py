"""`vitral doctor`: what this machine offers, what was chosen and why, and whether it computes right."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from typing import Any

import typer

from vitral.cli.output import AsJson, console, facts, print_json, table
from vitral.verdict import Verdict
from vitral.version import version

__all__ = ["doctor", "version"]


def doctor(as_json: AsJson = False) -> None:
    """Say what this machine offers, and test every kernel.

    Instruction sets and which was chosen, threads, memory, the store; each usable instruction set is
    compared with the reference. Exit code 1 if one of them computes anything else.
    """
    from vitral import native
    from vitral.settings import read_settings

    settings = read_settings()
    chosen = native.choose(settings.isa)
    verdicts = {isa: native.self_test(isa) for isa in native.available()}
    machine: dict[str, Any] = {
        "vitral": version(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "instruction set": f"{chosen} ({'VITRAL_ISA asks for it' if settings.isa else 'the fastest available'})",
        "threads": settings.threads or len(os.sched_getaffinity(0)),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "store": settings.home,
    }
    passed = all(verdicts.values())
    if as_json:
        sets = [{**asdict(isa), "self_test": _json(verdicts.get(isa.name))} for isa in native.instruction_sets()]
        print_json({"machine": machine, "instruction_sets": sets, "passed": passed})
    else:
        facts("This machine", machine)
        rows = [
            (isa.name, "yes" if isa.available else "no", isa.reason, _text(verdicts.get(isa.name)))
            for isa in native.instruction_sets()
        ]
        table("Instruction sets", ["name", "usable", "why", "self-test"], rows)
        console.print("[green]all kernels give the law's bits[/green]" if passed else "[red]a kernel is wrong[/red]")
    if not passed:
        raise typer.Exit(1)


def _json(verdict: Verdict | None) -> dict[str, object] | None:
    return None if verdict is None else {"passed": verdict.passed, "reasons": list(verdict.reasons)}


def _text(verdict: Verdict | None) -> str:
    return "" if verdict is None else "; ".join(verdict.reasons)
