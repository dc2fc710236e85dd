"""On PYTHONPATH, this makes an engine end like a crash in native code when it is given the prompt [7, 7, 7]."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

if "vitral.serve.worker" in sys.orig_argv:
    from vitral.engine.engine import Engine

    add = Engine.add

    def fragile(self: Engine, prompt: Any, *arguments: Any, **options: Any) -> Any:
        if list(prompt) == [7, 7, 7]:
            os.kill(os.getpid(), signal.SIGKILL)
        return add(self, prompt, *arguments, **options)

    Engine.add = fragile  # type: ignore[method-assign, assignment]
