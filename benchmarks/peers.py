"""Other engines, each in an environment of its own, outside the project.

    python -m benchmarks.peers FOLDER [llama.cpp openvino transformers]

llama.cpp is compiled from the source archive of llama-cpp-python, for this CPU but without AMX, whose
product crashes on Q4_1 files. What is there already is left alone. vLLM's CPU wheel and ik_llama.cpp are
not on PyPI in a form that builds on every machine, so they are not here.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
from pathlib import Path

VERSIONS = {
    "llama.cpp": "llama-cpp-python==0.3.36",
    "openvino": "openvino-genai",
    "transformers": "transformers==5.24.0",
}
TORCH = "torch==2.13.0"
TOOLS = ("llama-bench", "llama-batched-bench", "llama-perplexity")
_NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    f"-DCMAKE_C_FLAGS={_NO_AMX}",
    f"-DCMAKE_CXX_FLAGS={_NO_AMX}",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
)


def environment(folder: Path, *packages: str) -> Path:
    """The Python of an environment with these packages; made if it is not there."""
    python = folder / "bin" / "python"
    done = folder / "complete"
    if not done.exists():
        _run(sys.executable, "-m", "venv", "--clear", str(folder))
        for package in packages:
            _run(str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", package)
        done.touch()
    return python


def transformers(folder: Path) -> Path:
    """The Python that has transformers and torch."""
    return environment(folder / "transformers", TORCH, VERSIONS["transformers"])


def openvino(folder: Path) -> Path:
    """The Python that has OpenVINO GenAI."""
    return environment(folder / "openvino", "numpy", VERSIONS["openvino"])


def llama_cpp(folder: Path) -> Path:
    """The folder with llama.cpp's tools; compiled if they are not there."""
    here = folder / "llama.cpp-bench"
    built = here / "build" / "bin"
    if all((built / tool).exists() for tool in TOOLS):
        return built
    here.mkdir(parents=True, exist_ok=True)
    if not list(here.glob("*.tar.gz")):
        wanted = ["--no-binary", ":all:", "--no-deps", "--no-build-isolation", VERSIONS["llama.cpp"]]
        building = environment(folder / "building", "cmake", "ninja", "scikit-build-core")
        _run(str(building), "-m", "pip", "download", "-q", "-d", str(here), *wanted)
    [archive] = here.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(here, filter="data")
    [source] = here.glob("llama_cpp_python-*/vendor/llama.cpp")
    bin_ = environment(folder / "building", "cmake", "ninja", "scikit-build-core").parent
    cmake, ninja = str(bin_ / "cmake"), f"-DCMAKE_MAKE_PROGRAM={bin_ / 'ninja'}"
    _run(cmake, "-S", str(source), "-B", str(here / "build"), "-GNinja", ninja, *_FLAGS)
    _run(cmake, "--build", str(here / "build"), "--target", *TOOLS, "-j", str(len(os.sched_getaffinity(0))))
    return built


MAKERS = {"llama.cpp": llama_cpp, "openvino": openvino, "transformers": transformers}


def _run(*command: str) -> None:
    print("+", " ".join(command), flush=True)
    subprocess.run(command, check=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="where the environments go (about 3 GB)")
    options.add_argument("names", nargs="*", help=f"of {', '.join(MAKERS)}; all if not said")
    given = options.parse_args()
    unknown = set(given.names) - set(MAKERS)
    if unknown:
        options.error(f"no peer is called {', '.join(sorted(unknown))}; allowed: {', '.join(MAKERS)}")
    for name in given.names or MAKERS:
        print(f"{name}: {MAKERS[name](given.folder.resolve())}")


if __name__ == "__main__":
    main()
