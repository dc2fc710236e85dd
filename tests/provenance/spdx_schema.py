"""The JSON schema of SPDX 3.0.1 as the SPDX project generates it; data/README.md says where it is from."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

_FILE = Path(__file__).parent / "data" / "spdx-3.0.1.schema.json.gz"
_SHA256 = "873ff9d3177a0c12495fe585c5012f7bec0aa70aabed1f2f1e79f25bd95eb107"


def spdx_schema() -> dict[str, Any]:
    """The schema, checked to be the official one."""
    text = gzip.decompress(_FILE.read_bytes())
    assert hashlib.sha256(text).hexdigest() == _SHA256, "the schema was changed"
    schema: dict[str, Any] = json.loads(text)
    return schema
