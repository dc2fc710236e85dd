"""What tests find outside the project: data sets, and a real model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def find_data() -> Path:
    """The public data sets for development: VITRAL_DATA, or ../shared/data beside the project."""
    path = Path(os.environ.get("VITRAL_DATA") or ROOT.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"the data sets are not at {path}: set VITRAL_DATA to where they are")
    return path


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The public data sets, or the test is skipped."""
    return find_data()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The embedded model, fetched as a user's is."""
    from vitral.errors import HubError
    from vitral.hub import pull

    try:
        return pull("smollm2:135m")
    except HubError as error:
        pytest.skip(f"the embedded model cannot be had here: {error}")
