"""Jinja for strangers' chat templates: what `transformers` offers them, inside limits of time and size.

`jinja2.sandbox` keeps a template away from Python's insides, but not from `'a' * 10**9`, nor from three nested loops
over `range(100000)`. Here the syntax tree is changed before it is compiled, so that every loop turn, every piece of
output and every new value asks the budget; calls, filters, tests and operators ask by the hooks of the sandbox.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, wraps
from itertools import chain
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from vitral.errors import TemplateError
from vitral.tokenizer.budget import current_budget

__all__ = ["LONGEST_TEMPLATE", "compiled", "parsed"]

LONGEST_TEMPLATE = 1 << 16  # characters; the longest in use has 15,000

# Methods of Python's own types that templates may call; all others can make large things out of small ones.
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        [
            "capitalize",
            "casefold",
            "center",
            "count",
            "endswith",
            "expandtabs",
            "find",
            "format",
            "index",
            "isalnum",
            "isalpha",
            "isascii",
            "isdecimal",
            "isdigit",
            "islower",
            "isnumeric",
            "isspace",
            "istitle",
            "isupper",
            "join",
            "ljust",
            "lower",
            "lstrip",
            "partition",
            "removeprefix",
            "removesuffix",
            "replace",
            "rfind",
            "rindex",
            "rjust",
            "rpartition",
            "rsplit",
            "rstrip",
            "split",
            "splitlines",
            "startswith",
            "strip",
            "swapcase",
            "title",
            "upper",
            "zfill",
        ]
    ),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    set: frozenset({"copy", "difference", "intersection", "issubset", "issuperset", "union"}),
    int: frozenset(),
    float: frozenset({"is_integer"}),
    bytes: frozenset(),
}
_PADDING = frozenset({"center", "expandtabs", "ljust", "rjust", "zfill"})
# Filters that need no Jinja: slow on long text, or different from day to day.
_DROPPED_FILTERS = ("random", "urlize", "wordwrap", "xmlattr", "striptags", "pprint")
# A format with a width of four digits or more, or a width from elsewhere.
_WIDE = re.compile(r"\d{4}|%[^a-zA-Z%]*\*|\{[^{}]*\{")


@lru_cache(maxsize=32)
def compiled(source: str) -> Callable[[Mapping[str, Any]], Iterable[str]]:
    """A template's function from variables to pieces of text; call it under a running budget.

    Raises TemplateError for a template that is too long or does not compile.
    """
    if len(source) > LONGEST_TEMPLATE:
        raise TemplateError(f"a chat template of {len(source)} characters; at most {LONGEST_TEMPLATE} are allowed")
    return _environment().from_string(source).generate


@lru_cache(maxsize=8)
def parsed(source: str) -> nodes.Template:
    """A template's syntax tree as its author wrote it, without the questions to the budget; nothing of it runs.

    Who asks again gets the same tree: it is for reading.

    Raises jinja2's TemplateSyntaxError.
    """
    return Parser(_environment(), source).parse()


@lru_cache(maxsize=1)
def _environment() -> BoundedEnvironment:
    return BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])


class Generation(Extension):
    """`{% generation %}` marks the assistant's part for training; here it only groups."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class Box(Namespace):
    """`namespace()`: takes no underscored names, and shows nothing of what it holds when printed."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that an attribute may be called `self`
        for name in dict(*args[1:], **kwargs):
            _no_underscore(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _no_underscore(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox, with a budget behind every hook."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.globals.pop("lipsum")
        self.globals |= {"raise_exception": _raise, "namespace": Box}
        for name in _DROPPED_FILTERS:
            self.filters.pop(name)
        self.filters |= {"tojson": _tojson, "sum": _sum}
        self.filters = {name: _metered_filter(name, function) for name, function in self.filters.items()}
        tests: Mapping[str, Any] = self.tests
        self.tests = {name: _metered_test(function) for name, function in tests.items()}
        self.filters |= {"vitral_value": _value, "vitral_text": _text, "vitral_join": _join}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = Weaver().visit(super()._parse(source, name, filename))
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, allowed in _METHODS.items():
            if isinstance(obj, kind):
                return attr in allowed and super().is_safe_attribute(obj, attr, value)
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapper = super().wrap_str_format(value)
        if wrapper is not None:
            _check_format(value.__self__)
        return wrapper

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = current_budget()
        budget.tick()
        if budget.depth >= budget.limits.depth:
            raise TemplateError(f"the chat template calls itself over {budget.limits.depth} times; simplify it")
        budget.depth += 1
        try:
            args = _checked_method(function, args, kwargs)
            return budget.made(super().call(context, function, *args, **kwargs))
        finally:
            budget.depth -= 1

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_operands(operator, left, right)
        return current_budget().made(super().call_binop(context, operator, left, right))


class Weaver(NodeTransformer):
    """Puts the questions to the budget into the syntax tree."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        if node.test is not None:
            node.test = _filtered(node.test, "vitral_value")
        node.body = [nodes.Output([_filtered(nodes.Const(""), "vitral_text")]), *node.body]
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        texts: list[Any] = [nodes.Const(n.data) if isinstance(n, nodes.TemplateData) else n for n in node.nodes]
        node.nodes = [_filtered(text, "vitral_text") for text in texts]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes), "vitral_join")

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "vitral_value")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "vitral_value") if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "vitral_value")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "vitral_value") if isinstance(node.arg, nodes.Slice) else node

    def visit_ScopedEvalContextModifier(self, node: nodes.ScopedEvalContextModifier) -> nodes.Node:
        raise TemplateError(f"line {node.lineno} of the chat template: autoescape is not available")


def _filtered(node: Any, name: str) -> nodes.Filter:
    made = nodes.Filter(node, name, [], [], None, None)
    made.set_lineno(node.lineno or 1)
    return made


# `pass_context` also keeps Jinja from computing these while it compiles, when no budget runs.


@pass_context
def _value(context: Context, value: Any) -> Any:
    return current_budget().made(value)


@pass_context
def _text(context: Context, value: Any) -> str:
    budget = current_budget()
    if not isinstance(value, str):
        budget.charge(budget.size(value))
    text: str = value if isinstance(value, str) else str(value)
    return budget.made(text)


@pass_context
def _join(context: Context, values: list[Any]) -> str:
    texts = [_text(context, value) for value in values]
    current_budget().charge(sum(map(len, texts)))
    return "".join(texts)


def _metered_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        budget = current_budget()
        given = args[1:] if hasattr(function, "jinja_pass_arg") else args
        _check_filter(name, given, kwargs)
        for value in chain(given, kwargs.values()):
            budget.size(value)
        return budget.made(function(*args, **kwargs))

    return metered


def _metered_test(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        current_budget().tick()
        return function(*args, **kwargs)

    return metered


def _check_filter(name: str, given: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse, before it runs, a filter that would make something large out of small arguments."""
    budget = current_budget()
    value, rest = given[0] if given else None, (*given[1:], *kwargs.values())
    if name in ("batch", "center", "indent", "round", "slice", "tojson"):
        for argument in rest:
            _check_width(argument)
    if name == "format":
        _check_format(str(value))
    if name == "indent":
        widest = max((len(a) if isinstance(a, str) else a for a in rest if isinstance(a, (str, int))), default=4)
        text = str(value)
        budget.charge(len(text) + (text.count("\n") + 1) * widest)
    if name == "replace" and len(given) >= 3:
        _check_replace(*map(str, given[:3]))
    if name == "join" and isinstance(value, (list, tuple, str, dict)):
        separator = rest[0] if rest else ""
        budget.charge(sum(map(budget.size, value)) + len(value) * len(str(separator)))


def _checked_method(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Arguments of a call, looked at before a method of a string runs; a generator to be joined becomes a list."""
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    if not isinstance(owner, str):
        return args
    if name in _PADDING:
        for argument in (*args, *kwargs.values()):
            _check_width(argument)
        current_budget().charge(len(owner) * (8 if name == "expandtabs" else 1))
    if name == "expandtabs":
        tab = next((a for a in (*args, *kwargs.values()) if isinstance(a, int)), 8)
        current_budget().charge(owner.count("\t") * max(tab, 0))
    if name == "replace" and len(args) >= 2:
        _check_replace(owner, str(args[0]), str(args[1]))
    if name == "join" and args:
        entries = list(args[0])
        current_budget().charge(sum(map(current_budget().size, entries)) + len(entries) * len(owner))
        return (entries, *args[1:])
    return args


def _check_operands(operator: str, left: Any, right: Any) -> None:
    """Refuse, before it is computed, an operation with a large result."""
    budget = current_budget()
    if operator == "%" and isinstance(left, str):
        _check_format(left)
        budget.charge(len(left) + budget.size(right))
    elif operator == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(value, (str, bytes, list, tuple)) and isinstance(times, int):
                budget.charge(len(value) * max(times, 0))
    elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
        budget.charge(len(left) + len(right))
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length()
        if operator == "**":
            bits *= abs(right) + 1
        elif operator in ("*", "+", "-"):
            bits += right.bit_length()
        if bits > budget.limits.bits:
            raise TemplateError(
                f"the chat template computes a number of {bits} bits; at most {budget.limits.bits} are allowed"
            )


def _check_width(argument: Any) -> None:
    width = current_budget().limits.width
    size = len(argument) if isinstance(argument, str) else argument
    if isinstance(size, (int, float)) and abs(size) > width:
        raise TemplateError(f"the chat template asks for a width of {str(size)[:20]}; at most {width} is allowed")


def _check_format(text: str) -> None:
    if found := _WIDE.search(text):
        raise TemplateError(f"the chat template formats with {found[0]!r}; widths of up to 3 digits are allowed")


def _check_replace(text: str, old: str, new: str) -> None:
    places = text.count(old) if old else len(text) + 1
    current_budget().charge(max(0, len(text) + places * (len(new) - len(old))))


def _no_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}; rename it")


def _raise(message: object) -> None:
    raise TemplateError(f"the chat template refuses these messages: {str(message)[:500]}")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as `transformers` writes it: Jinja's own filter would escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@pass_context
def _sum(context: Context, values: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
    """Jinja's `sum`, each addition metered."""
    environment = context.environment
    assert isinstance(environment, BoundedEnvironment)
    total = start
    for value in values:
        part = value if attribute is None else environment.getitem(value, attribute)
        total = environment.call_binop(context, "+", total, part)
    return total
