"""The language of chat templates: jinja in a sandbox, as transformers sets it up, over traced strings.

Knows what expressions do and what the names of published templates mean (`strftime_now`, `raise_exception`,
`break`, `continue`, `generation`, `tojson`). Knows nothing of messages or tokens.

Each operation on strings is one of `traced_text`, or its result counts as text from outside where anything
from outside went in. Filters that hand on what they were given, such as `selectattr`, are left as they are.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import types
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, Macro

from phirt.prompt.traced_text import TracedText, as_text, changed, joined, outside, pieces_in, plain, traced

# Filters that hand on what they were given, or make numbers of it.
_HANDING_ON = frozenset(
    [
        *("abs", "attr", "batch", "count", "d", "default", "dictsort", "first", "float", "groupby", "int"),
        *("items", "last", "length", "list", "map", "max", "min", "random", "reject", "rejectattr"),
        *("reverse", "round", "select", "selectattr", "slice", "sort", "sum", "unique", "wordcount"),
    ]
)
_PERCENT = re.compile(
    r"(%(?:\((?P<key>[^)]*)\))?[#0\- +]*(?:\*|\d+)?(?:\.(?:\*|\d+))?[hlL]?(?P<kind>.))", re.S
)


class TemplateLanguage(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment that chat templates are compiled in."""

    intercepted_binops = frozenset(["%"])
    concat = staticmethod(joined)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
            finalize=as_text,
        )
        self.code_generator_class = _TracedCode
        self.filters = {name: _traced_filter(name, made) for name, made in self.filters.items()}
        self.filters |= _FILTERS
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _NewDict(),
            "namespace": _Namespace,
        }

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Formatting by `%`; other operators are those of the strings themselves."""
        if isinstance(left, str) and pieces_in((left, right)):
            return _percent(left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """A call in an expression: of a string's method, a macro, or something that makes text of its own."""
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            if type(owner) is str and (__obj.__name__ == "join" or pieces_in((args, kwargs))):
                __obj = getattr(traced(owner), __obj.__name__)
        elif isinstance(owner, bytes):
            raise SecurityError("bytes have no methods here")
        result = jinja2.sandbox.SandboxedEnvironment.call(__self, __context, __obj, *args, **kwargs)
        if isinstance(__obj, Macro | BlockReference | type | _NewDict):
            return result
        if owner is not None and not isinstance(owner, str):
            return result  # dicts and lists hand on what they hold
        return _outside_all(result, (owner, args, kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`format` and `format_map` of strings."""
        if super().wrap_str_format(value) is None:
            return None
        template, takes_map = value.__self__, value.__name__ == "format_map"

        def formatted(*args: Any, **kwargs: Any) -> str:
            if takes_map:
                (kwargs,), args = args, ()
            return _braces(self, template, args, kwargs)

        return formatted


class _TracedCode(CodeGenerator):
    """Compiles `~` to the environment's own concatenation."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concat(map(environment.finalize, (")
        for item in node.nodes:
            self.visit(item, frame)
            self.write(", ")
        self.write(")))")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, which marks the answers for training; here only what is inside counts."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _NewDict:
    """`dict(...)` of a template."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As `dict`."""
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """`namespace(...)`, whose attributes must not begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _require_public(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)


def _require_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no attribute {name!r}")


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(format: str) -> str:  # templates may name it
    return datetime.datetime.now().strftime(format)


def _outside_all(value: Any, sources: object) -> Any:
    """A result whose plain strings may have been made of what came from outside."""
    if isinstance(value, TracedText):
        return value
    if isinstance(value, str):
        return outside(value, sources)
    if isinstance(value, list | tuple) and any(type(item) is str for item in value):
        return type(value)(_outside_all(item, sources) for item in value)
    return value


def _traced_filter(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    if name in _HANDING_ON:
        return made

    @functools.wraps(made)  # with what jinja passes to it first
    def filtered(*args: Any, **kwargs: Any) -> Any:
        result = made(*args, **kwargs)
        if isinstance(result, types.GeneratorType):
            result = list(result)
        if isinstance(result, TracedText):  # the filter may have mixed it with text that it lost track of
            result = plain(result)
        return _outside_all(result, (args, kwargs))

    return filtered


def _trim(value: Any, chars: str | None = None) -> str:
    return as_text(value).strip(chars)


def _cased(method: str) -> Callable[[Any], str]:
    def cased(value: Any) -> str:
        return str(getattr(as_text(value), method)())

    return cased


def _title(value: Any) -> str:
    text = as_text(value)
    return changed(text, jinja2.filters.do_title(plain(text)))


def _replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    return traced(as_text(value)).replace(as_text(old), as_text(new), -1 if count is None else count)


@jinja2.pass_environment
def _join(
    environment: jinja2.Environment, value: Any, d: Any = "", attribute: str | int | None = None
) -> str:
    if attribute is not None:
        value = map(jinja2.filters.make_attrgetter(environment, attribute), value)
    return joined(map(as_text, value), as_text(d))


def _indent(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    margin = width if isinstance(width, str) else " " * width
    lines = (traced(as_text(value)) + "\n").splitlines()
    shown = [margin + line if line or blank else line for line in lines[1:]]
    return (margin if first else "") + joined([lines[0], *shown], "\n")


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise jinja2.exceptions.FilterArgumentError(
            "can't handle positional and keyword arguments at the same time"
        )
    return _percent(as_text(value), kwargs or args)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: jinja's own filter escapes what HTML does not take."""
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return outside(text, value)


_FILTERS: dict[str, Callable[..., Any]] = {
    "trim": _trim,
    "upper": _cased("upper"),
    "lower": _cased("lower"),
    "capitalize": _cased("capitalize"),
    "title": _title,
    "replace": _replace,
    "join": _join,
    "indent": _indent,
    "format": _format,
    "string": as_text,
    "safe": as_text,  # there is no escaping that it would spare the text
    "tojson": _to_json,
}


def _percent(template: str, values: Any) -> str:
    """`template % values`, each value where it belongs."""
    whole = str.__mod__(template, values)
    parts: list[str] = []
    at, given = 0, iter(values if isinstance(values, tuple) else (values,))
    for found in _PERCENT.finditer(template):
        if "*" in found[0]:
            return outside(whole, (template, values))
        parts.append(template[at : found.start()])
        at = found.end()
        if found["kind"] == "%":
            parts.append("%")
            continue
        value = values[found["key"]] if found["key"] is not None else next(given)
        text = as_text(value)
        if found["kind"] != "s" or found[0][1:2] not in ("s", "("):
            text = outside(
                str.__mod__(str(found[0]), values if found["key"] is not None else (value,)), value
            )
        parts.append(text)
    parts.append(template[at:])
    made = joined(parts)
    return made if made == whole else outside(whole, (template, values))


def _braces(
    environment: TemplateLanguage, template: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    """`template.format(*args, **kwargs)`, each value where it belongs."""
    formatter = jinja2.sandbox.SandboxedFormatter(environment)
    whole = formatter.vformat(plain(template), args, kwargs)
    if not pieces_in((template, args, kwargs)):
        return whole
    if isinstance(template, TracedText):
        return outside(whole, (template, args, kwargs))
    parts: list[str] = []
    numbers = iter(range(len(args)))
    for literal, field, form, conversion in formatter.parse(template):
        parts.append(literal)
        if field is None:
            continue
        value, _ = formatter.get_field(field or str(next(numbers)), args, kwargs)
        if form or conversion:
            return outside(whole, (template, args, kwargs))
        parts.append(as_text(value))
    made = joined(parts)
    return made if made == whole else outside(whole, (template, args, kwargs))


def read_names(source: str, language: TemplateLanguage) -> frozenset[str]:
    """The variables, attributes and keys that a template reads, by name. Raises as `from_string` does."""
    tree = language.parse(source)
    names = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "load"}
    names |= {node.attr for node in tree.find_all(nodes.Getattr)}
    constants: Iterable[nodes.Const] = tree.find_all(nodes.Const)
    return frozenset(names | {node.value for node in constants if isinstance(node.value, str)})
