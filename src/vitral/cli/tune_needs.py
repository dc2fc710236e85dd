"""What the commands of `vitral tune` need beyond the core install, said in one line where it is missing."""

from __future__ import annotations

from vitral.errors import TuneError

__all__ = ["need_torch"]


def need_torch() -> None:
    """Raise TuneError if torch cannot be imported."""
    try:
        import vitral.tune.forward  # noqa: F401
    except ImportError as error:
        if error.name is None or error.name.split(".")[0] != "torch":
            raise
        raise TuneError(
            "tuning needs torch, which is not installed: pip install torch==2.13.0 and then pip install 'vitral[tune]'"
        ) from None
