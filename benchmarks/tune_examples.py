"""The long forms of the tuning examples: `python -m benchmarks.tune_examples NAME [--result] [-- ARGUMENTS]`.

NAME is an example's file without `.py`; ARGUMENTS go to it, after a folder of its own. What it prints at its end
is kept with the time that it took: by the clock, and the CPU's own, which others on the machine do not lengthen.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import versions, write

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = ("teach_vocabulary", "answer_in_portuguese", "prefer_a_tone", "experts_from_domains")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--result", action="store_true", help="keep the figures in benchmarks/results/NAME.json")
    place = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, arguments = parser.parse_args(sys.argv[1:place]), sys.argv[place + 1 :]
    shown = f"python -m benchmarks.tune_examples {options.name} --result"
    if arguments:  # texts by their names: whose machine they lay on says nothing
        shown += " -- " + " ".join(Path(each).name for each in arguments)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(EXAMPLES / f"{options.name}.py"), folder, *arguments]
        began, printed = time.monotonic(), ""
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                printed += line
        if process.returncode:
            sys.exit(process.returncode)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = {
        "command": shown,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "clock_minutes": round((time.monotonic() - began) / 60, 1),
        "cpu_minutes": round((used.ru_utime + used.ru_stime) / 60, 1),
        "peak_rss_mib": used.ru_maxrss // 1024,
        "versions": versions("torch", "numpy"),
        "found": json.loads(printed[printed.index("\n{\n") :]),
    }
    print(json.dumps({key: value for key, value in figures.items() if key != "found"}, indent=2))
    if options.result:
        write(options.name, figures)


if __name__ == "__main__":
    main()
