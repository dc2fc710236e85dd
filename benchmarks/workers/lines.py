"""How a worker talks: a JSON document a line comes in, one goes out. Needs nothing but Python."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any


def serve(about: Mapping[str, Any], runs: Mapping[str, Callable[..., float]]) -> None:
    """Say what is there, then answer `{"run": name, ...arguments}` with `{"value": ...}` until the input ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no answer

    def tell(value: Mapping[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    tell({"ready": True, **about})
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            tell({"value": runs[asked.pop("run")](**asked)})
        except Exception as error:  # noqa: BLE001  (whatever it is, the harness shall name it)
            traceback.print_exc()
            tell({"error": f"{type(error).__name__}: {error}"})
