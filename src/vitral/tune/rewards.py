"""Rewards that can be verified: an answer is right or it is not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

__all__ = ["REWARDS", "RewardName"]

RewardName = Literal["number", "exact", "contains"]
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_number(answer: str, expected: str) -> float:
    """1 if the last number of the answer is the last of what was expected (GSM8K ends with `#### 42`), else 0.

    >>> last_number("3 + 4 = 7, so 1,200.0 in all", "#### 1200"), last_number("none", "7")
    (1.0, 0.0)
    """
    found, wanted = _NUMBER.findall(answer), _NUMBER.findall(expected)
    if not found or not wanted:
        return 0.0
    return float(float(found[-1].replace(",", "")) == float(wanted[-1].replace(",", "")))


def exact(answer: str, expected: str) -> float:
    """1 if both are the same words, whatever their case and punctuation, else 0.

    >>> exact("Paris.", "paris")
    1.0
    """
    return float(_words(answer) == _words(expected))


def contains(answer: str, expected: str) -> float:
    """1 if the words expected stand in the answer in a row, else 0.

    >>> contains("It is Paris, of course", "Paris"), contains("Parisian", "Paris")
    (1.0, 0.0)
    """
    return float(f" {_words(expected)} " in f" {_words(answer)} ")


REWARDS: dict[RewardName, Callable[[str, str], float]] = {"number": last_number, "exact": exact, "contains": contains}


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
