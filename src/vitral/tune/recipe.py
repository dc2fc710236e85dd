"""A recipe: everything that decides a run, as one short TOML file. Unknown keys are errors."""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from vitral.errors import AdapterMismatch, RecipeError
from vitral.tune.lora_plan import LoraPlan

__all__ = [
    "DataPart",
    "MethodPart",
    "ModelPart",
    "Recipe",
    "RunPart",
    "parse_recipe",
    "read_recipe",
    "recipe_toml",
]

T = TypeVar("T")


@dataclass(frozen=True)
class ModelPart:
    """What is tuned: `base` is a path or a short name, `adapter` a PEFT folder to go on from."""

    base: str
    adapter: str = ""


@dataclass(frozen=True)
class DataPart:
    """What it learns from. Without `test`, the share `hold_out` of the training items is kept apart.

    `train` and `test` are files, folders, or data sets of the Hub (`hf:owner/name`, `hf:owner/name:file`), whose
    licence is on their card; `licence` is for those that say none. `too_long` says what happens to items over `context` tokens; `form` whether prompts become chats.
    """

    train: tuple[str, ...]
    test: tuple[str, ...] = ()
    hold_out: float = 0.0
    context: int = 512
    turns: Literal["all", "last"] = "all"
    too_long: Literal["refuse", "drop", "cut"] = "refuse"
    form: Literal["auto", "chat", "text"] = "auto"
    licence: str = ""


@dataclass(frozen=True)
class MethodPart:
    """The loss and its numbers; `teacher` is the larger model of distil, `tune` says what is trained.

    For grpo, ppo and rejection: each question is answered `group` times with at most `answer_tokens` tokens by
    the model itself, and learnt from `updates` times. `reward` says how an answer is judged: by its last number,
    by being exact, by what it contains, or by the `reward_model`, the folder of a run of the loss reward.
    `replay_routing`, for grpo and ppo on a mixture, sends each token of an answer to the experts that the engine
    sent it to (arXiv 2510.11370); the reference routes for itself. Without it the trainer's router chooses anew.
    """

    loss: Literal["sft", "dpo", "ipo", "orpo", "kto", "distil", "reward", "grpo", "ppo", "rejection"] = "sft"
    tune: Literal["lora", "full"] = "lora"
    beta: float = 0.1
    temperature: float = 1.0
    teacher: str = ""
    router: bool = False
    balance: float = 0.0
    router_z: float = 0.0
    reward: Literal["number", "exact", "contains", "model"] = "number"
    reward_model: str = ""
    group: int = 8
    answer_tokens: int = 64
    updates: int = 1
    replay_routing: bool = True


@dataclass(frozen=True)
class RunPart:
    """How long and how fast. `batch` items make a step, cut into pieces of at most `piece_tokens` ids.

    `steps` 0 means `epochs` through the data. `replay` adds that share of the base's own answers to each
    step, against forgetting. `patience` evaluations without a better test loss end the run; 0 never does.
    `shard` divides parameters, gradients and moments among the processes that torchrun started.
    """

    steps: int = 0
    epochs: float = 1.0
    batch: int = 8
    piece_tokens: int = 2048
    learning_rate: float = 2e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.03
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    recompute: bool = False
    shard: bool = False
    evaluate_every: int = 50
    save_every: int = 50
    patience: int = 0
    replay: float = 0.0
    measure_forgetting: bool = True


@dataclass(frozen=True)
class Recipe:
    """All parts. `read_recipe` and `parse_recipe` make one; it checks itself."""

    model: ModelPart
    data: DataPart
    method: MethodPart = field(default_factory=MethodPart)
    lora: LoraPlan = field(default_factory=LoraPlan)
    run: RunPart = field(default_factory=RunPart)

    @property
    def adapter_plan(self) -> LoraPlan:
        """What is adapted: `lora`, with the router where `method.router` asks for it."""
        if self.method.router and "router" not in self.lora.targets:
            return replace(self.lora, targets=(*self.lora.targets, "router"))
        return self.lora

    def __post_init__(self) -> None:
        run, data, method = self.run, self.data, self.method
        for name, value, low in (
            ("run.batch", run.batch, 1), ("run.piece_tokens", run.piece_tokens, 1), ("run.steps", run.steps, 0),
            ("run.evaluate_every", run.evaluate_every, 1), ("run.save_every", run.save_every, 1),
            ("method.group", method.group, 1 if method.loss == "ppo" else 2),
            ("method.answer_tokens", method.answer_tokens, 1), ("method.updates", method.updates, 1),
            ("run.patience", run.patience, 0), ("data.context", data.context, 2),
        ):  # fmt: skip
            if value < low:
                raise RecipeError(f"{name} is {value}; allowed: {low} or more")
        for name, number in (("run.learning_rate", run.learning_rate), ("run.clip", run.clip), ("method.beta", method.beta),
                             ("method.temperature", method.temperature), ("run.epochs", run.epochs)):  # fmt: skip
            if not 0 < number < float("inf"):
                raise RecipeError(f"{name} is {number}; allowed: a number above 0")
        for name, share in (("data.hold_out", data.hold_out), ("run.replay", run.replay), ("run.warmup", run.warmup)):
            if not 0 <= share < 1:
                raise RecipeError(f"{name} is {share}; allowed: from 0 to below 1")
        if run.shard and method.loss in ("grpo", "ppo", "rejection"):
            raise RecipeError(
                f"run.shard goes with losses over data; {method.loss} fills the engine with a whole model"
            )
        if data.test and data.hold_out:
            raise RecipeError("data.test and data.hold_out both name test data; give one of them")
        if not data.train:
            raise RecipeError("data.train is empty; name at least one file or folder")
        if (method.loss == "distil") != bool(method.teacher):
            raise RecipeError("method.teacher belongs to the loss distil, which needs it")
        if (method.reward == "model") != bool(method.reward_model):
            raise RecipeError('method.reward_model belongs to method.reward = "model", which needs it')
        if run.patience and not (data.test or data.hold_out):
            raise RecipeError("run.patience needs test data; give data.test or data.hold_out")


def read_recipe(path: Path) -> Recipe:
    """Read a TOML file. Relative paths count from its folder and are made whole. Raises RecipeError."""
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as a recipe: {error}") from None
    return parse_recipe(values, path.parent.resolve())


def parse_recipe(values: Mapping[str, Any], folder: Path = Path()) -> Recipe:
    """A recipe from nested values as TOML gives them.

    >>> recipe = parse_recipe({"model": {"base": "smollm2:135m"}, "data": {"train": ["a.jsonl"]}})
    >>> recipe.lora.rank, recipe.data.train
    (16, ('a.jsonl',))
    >>> parse_recipe({"model": {"base": "x"}, "data": {"train": ["a"]}, "run": {"lerning_rate": 1}})
    Traceback (most recent call last):
    vitral.errors.RecipeError: run.lerning_rate is not known; the nearest is run.learning_rate
    """
    data = dict(values.get("data") or {})
    for key in ("train", "test"):
        if isinstance(data.get(key), str):
            data[key] = [data[key]]
        if isinstance(data.get(key), list):
            data[key] = [_place(folder, name) for name in data[key]]
    named = {"data": data} if data else {}
    for part, keys in (("model", ("base", "adapter")), ("method", ("teacher", "reward_model"))):
        if isinstance(values.get(part), Mapping):
            named[part] = {**values[part], **_paths(values[part], keys, folder)}
    return _made(Recipe, {**values, **named}, "")


def _place(folder: Path, name: object) -> object:
    """A path made whole; a data set of the Hub (`hf:owner/name`) stays a name."""
    return str(folder / name) if isinstance(name, str) and not name.startswith("hf:") else name


def _paths(values: Mapping[str, Any], keys: tuple[str, ...], folder: Path) -> dict[str, str]:
    """Those of the keys that name something beside the recipe; a short name stays one."""
    given = {key: values[key] for key in keys if isinstance(values.get(key), str) and values[key]}
    return {key: str(folder / name) for key, name in given.items() if folder != Path() and (folder / name).exists()}


def _made(cls: type[T], values: Any, where: str) -> T:
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where.rstrip('.')} is a {type(values).__name__}; a table [{where.rstrip('.')}] is wanted")
    hints = get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    names = list(known)
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, 1)
            hint = f"; the nearest is {where}{near[0]}" if near else f"; allowed: {', '.join(names)}"
            raise RecipeError(f"{where}{key} is not known{hint}")
    given = {key: _value(hints[key], value, f"{where}{key}") for key, value in values.items()}
    try:
        return cls(**given)
    except TypeError:
        missing = [
            name
            for name, f in known.items()
            if name not in given and f.default is MISSING and f.default_factory is MISSING
        ]
        raise RecipeError(f"{', '.join(where + name for name in missing)} is missing") from None
    except AdapterMismatch as error:
        raise RecipeError(f"{where}: {error}") from None


def _value(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        return _made(typing.cast(type, hint), value, where + ".")
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise RecipeError(f"{where} is {value!r}; allowed: {', '.join(map(str, get_args(hint)))}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise RecipeError(f"{where} is {value!r}; a list is wanted")
        return tuple(_value(get_args(hint)[0], item, where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[hint]
        raise RecipeError(f"{where} is {value!r}; {wanted} is wanted")
    return value


def recipe_toml(recipe: Recipe) -> str:
    """The recipe as TOML, every value written out; reading it gives the same recipe.

    >>> recipe = parse_recipe({"model": {"base": "m"}, "data": {"train": ["a"]}})
    >>> parse_recipe(tomllib.loads(recipe_toml(recipe))) == recipe
    True
    """
    lines: list[str] = []
    for part, values in asdict(recipe).items():
        lines.append(f"[{part}]")
        lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped) + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    assert isinstance(value, int | float) and not isinstance(value, types.NoneType)
    return repr(value)
