"""A recipe says everything, refuses what it does not know, and comes back from its file the same."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from vitral.errors import AdapterMismatch, RecipeError
from vitral.tune.recipe import Recipe, parse_recipe, read_recipe, recipe_toml

GOOD: dict[str, Any] = {"model": {"base": "m.gguf"}, "data": {"train": ["a.jsonl"]}}


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("run", {"lerning_rate": 1e-3}, "nearest is run.learning_rate"),
        ("runn", {}, "nearest is run"),
        ("run", {"batch": 0}, "run.batch is 0"),
        ("run", {"batch": 1.5}, "whole number"),
        ("run", {"batch": True}, "whole number"),
        ("run", {"learning_rate": -1.0}, "above 0"),
        ("run", {"learning_rate": float("nan")}, "above 0"),
        ("run", {"schedule": "cosin"}, "cosine"),
        ("run", {"patience": 3}, "test data"),
        ("run", [], "table"),
        ("data", {"train": []}, "empty"),
        ("data", {"train": ["a"], "test": ["b"], "hold_out": 0.1}, "one of them"),
        ("data", {"train": [3]}, "text"),
        ("method", {"loss": "distil"}, "teacher"),
        ("method", {"loss": "ppo2"}, "allowed"),
        ("lora", {"targets": ["qq"]}, "qq"),
        ("lora", {"rank": 0}, "rank"),
    ],
)
def test_what_is_not_understood_is_refused(part: str, values: Any, message: str) -> None:
    with pytest.raises((RecipeError, AdapterMismatch), match=message):
        parse_recipe({**GOOD, part: values})


@pytest.mark.parametrize("missing", ["model", "data"])
def test_a_missing_part_is_named(missing: str) -> None:
    with pytest.raises(RecipeError, match=f"{missing} is missing"):
        parse_recipe({key: value for key, value in GOOD.items() if key != missing})


def test_it_comes_back_from_its_file(tmp_path: Path) -> None:
    recipe = parse_recipe(
        {
            **GOOD,
            "model": {"base": 'a "quoted"\\path'},
            "lora": {"experts": [1, 2], "kind": "dora"},
            "run": {"learning_rate": 1e-05},
        }
    )
    assert parse_recipe(tomllib.loads(recipe_toml(recipe))) == recipe


def test_paths_count_from_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    (tmp_path / "r.toml").write_text('model.base = "m.gguf"\ndata.train = "a.jsonl"\n')
    found: Recipe = read_recipe(tmp_path / "r.toml")
    assert found.data.train == (str(tmp_path / "a.jsonl"),)
    assert found.model.base == str(tmp_path / "m.gguf")


def test_text_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[model\n")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path / "r.toml")
