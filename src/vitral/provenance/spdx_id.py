"""Licence tags and the identifiers of the SPDX list: the one place that says which tag is which."""

from __future__ import annotations

import re
from contextlib import suppress

from vitral.errors import LicenceError
from vitral.provenance.terms import licence

__all__ = ["expression", "spdx_id"]

# Tags of the Hugging Face Hub that stand for exactly one licence of the SPDX list (hub-docs, repositories-licenses.md).
# Vendors' licences (llama3.1, gemma, mrl ...) are on no list, and `cc`, `gpl`, `bsd` and `other` are no licence.
_IDS = {
    one.lower(): one
    for one in [
        "Apache-2.0",
        "MIT",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSD-3-Clause-Clear",
        "ISC",
        "Zlib",
        "Unlicense",
        "WTFPL",
        "CC0-1.0",
        "CC-BY-2.0",
        "CC-BY-2.5",
        "CC-BY-3.0",
        "CC-BY-4.0",
        "CC-BY-SA-3.0",
        "CC-BY-SA-4.0",
        "CC-BY-NC-2.0",
        "CC-BY-NC-3.0",
        "CC-BY-NC-4.0",
        "CC-BY-ND-4.0",
        "CC-BY-NC-ND-3.0",
        "CC-BY-NC-ND-4.0",
        "CC-BY-NC-SA-2.0",
        "CC-BY-NC-SA-3.0",
        "CC-BY-NC-SA-4.0",
        "CDLA-Sharing-1.0",
        "CDLA-Permissive-1.0",
        "CDLA-Permissive-2.0",
        "AFL-3.0",
        "Artistic-2.0",
        "BSL-1.0",
        "ECL-2.0",
        "EPL-1.0",
        "EPL-2.0",
        "EUPL-1.1",
        "EUPL-1.2",
        "MPL-2.0",
        "MS-PL",
        "NCSA",
        "OFL-1.1",
        "OSL-3.0",
        "PostgreSQL",
        "LPPL-1.3c",
        "ODbL-1.0",
        "ODC-By-1.0",
        "PDDL-1.0",
        "C-UDA-1.0",
    ]
}


def spdx_id(tag: str) -> str | None:
    """The SPDX identifier of a licence tag, None for a licence that is not on the list.

    >>> spdx_id("apache-2.0"), spdx_id("llama3.1")
    ('Apache-2.0', None)
    """
    return _IDS.get(tag.strip().lower())


def expression(tag: str) -> str:
    """An SPDX expression for any tag: an id of the list, the catalogue's reference, or one made of the tag.

    >>> expression("llama3.1")
    'LicenseRef-llama3.1'
    >>> expression("mit AND llama3.1")
    'MIT AND LicenseRef-llama3.1'
    """
    if " AND " in tag:
        return " AND ".join(expression(part) for part in tag.split(" AND "))
    known = spdx_id(tag)
    if known is None:
        with suppress(LicenceError):
            known = licence(tag).spdx
    return known or "LicenseRef-" + (re.sub(r"[^A-Za-z0-9.-]+", "-", tag).strip("-") or "unnamed")
