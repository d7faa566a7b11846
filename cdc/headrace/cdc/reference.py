"""docs/configuration.md, made from the structs that parse headrace.yaml: field, type, default, meaning, example.

A field is declared once (config.py and the entry points' own structs); a test holds that the committed page is what this makes.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from headrace.cdc.config import (
    PROCESSES,
    Choice,
    Duration,
    EventConfig,
    LogChoice,
    PipelineConfig,
    PrivacyConfig,
    ServerConfig,
    Size,
    SourceChoice,
    consumer_sections,
    plugins,
)

_HEAD = """# headrace.yaml

One file configures the whole process. Unknown keys are refused, and all problems are told at once, each with its path.
`${VARIABLE}` and `${VARIABLE:-default}` in any text are replaced by environment variables. Relative paths start at the
file's own folder. This page is made by `headrace schema --markdown`; `headrace schema` prints the same as JSON Schema.

| key | what it holds |
|---|---|
"""


def configuration_page() -> str:
    """The whole page as Markdown, ending with a line feed."""
    consumers = consumer_sections()
    top: dict[str, tuple[str, Any]] = {
        "log": ("", LogChoice),
        "sources": ("required; a mapping of your names to sources: ", SourceChoice),
        "events": ("a mapping of `schema.table` to: ", EventConfig),
        "pipeline": ("", PipelineConfig),
        "privacy": ("", PrivacyConfig),
        "server": ("", ServerConfig),
        **{key: _consumer(kind) for key, kind in consumers.items()},
    }
    processes, meta = _annotation(PROCESSES)
    assert meta is not None and meta.description
    lines = [_HEAD.rstrip("\n")]
    lines += [f"| [`{key}`](#{key}) | {before}{_plain_doc(kind)} |" for key, (before, kind) in top.items()]
    lines.append(f"| `processes` | {_type(processes, meta)}, default `1`: {meta.description} |")
    seen: list[type[Choice]] = []
    paths = {"sources": "sources.NAME", "events": "events.SCHEMA.TABLE"}
    paths |= {key: f"{key}.NAME" for key, kind in consumers.items() if get_origin(kind) is dict}
    for key, (_, kind) in top.items():
        lines += ["", f"## {key}", ""]
        lines += _part(paths.get(key, key), kind, seen)
    return "\n".join(lines) + "\n"


def _consumer(kind: Any) -> tuple[str, Any]:
    return ("a mapping of your names to: ", get_args(kind)[1]) if get_origin(kind) is dict else ("", kind)


def _part(path: str, kind: Any, seen: list[type[Choice]]) -> Iterator[str]:
    """Text, table, and the parts below: of a choice every type, of a struct the structs and choices in its fields."""
    yield _plain_doc(kind)
    if not issubclass(kind, Choice):
        yield from _table(path, kind)
        for name, below in _parts_below(kind):
            yield from ("", f"### {path}.{name}", "")
            yield from _part(f"{path}.{name}", below, seen)
        return
    types_ = plugins(kind.group)
    default = "" if kind.default is None else f" Default: `{kind.default}`."
    yield ""
    yield f"`type:` picks one of {', '.join(f'`{name}`' for name in sorted(types_))}.{default}"
    if kind in seen:
        return
    seen.append(kind)
    for name in sorted(types_):
        yield from ("", f"### {path}, type {name}", "")
        yield from _part(path, types_[name].config_type, seen)


def _table(path: str, struct: type[msgspec.Struct]) -> Iterator[str]:
    fields = msgspec.structs.fields(struct)
    if not fields:
        yield from ("", "It has no fields.")
        return
    yield from ("", "| field | type | default | meaning |", "|---|---|---|---|")
    for field in fields:
        kind, meta = _annotation(field.type)
        below, _ = _nested(kind)
        words = meta.description if meta is not None and meta.description else None
        meaning = [_escaped(_sentence(words))] if words else [] if below is None else [_plain_doc(below)]
        if meta is not None and meta.examples:
            meaning.append("Example: " + ", ".join(f"`{_yaml(value)}`" for value in meta.examples) + ".")
        cells = (f"`{field.encode_name}`", _type(kind, meta), _default(field, kind), " ".join(meaning))
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _annotation(kind: Any) -> tuple[Any, msgspec.Meta | None]:
    if get_origin(kind) is Annotated:
        base, *more = get_args(kind)
        return base, next((each for each in more if isinstance(each, msgspec.Meta)), None)
    return kind, None


def _parts_below(struct: type[msgspec.Struct]) -> Iterator[tuple[str, Any]]:
    for field in msgspec.structs.fields(struct):
        found, is_mapping = _nested(_annotation(field.type)[0])
        if found is not None:
            yield f"{field.encode_name}.NAME" if is_mapping else field.encode_name, found


def _nested(kind: Any) -> tuple[Any, bool]:
    """The struct or choice that a field's type leads to, and whether through a mapping of names."""
    kind = _annotation(kind)[0]
    if isinstance(kind, type) and get_origin(kind) is None:
        return (kind, False) if issubclass(kind, Choice | msgspec.Struct) else (None, False)
    for each in get_args(kind):
        found, _ = _nested(each)
        if found is not None:
            return found, get_origin(kind) is dict
    return None, False


_NAMES: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
    types.NoneType: "nothing",
    Duration: "duration",
    Size: "size",
}


def _type(kind: Any, meta: msgspec.Meta | None = None) -> str:
    """A type in a user's words, with the limits that are checked."""
    if kind is Any:
        return "anything"
    kind, inner = _annotation(kind)
    meta = meta or inner
    origin = get_origin(kind)
    if origin is Literal:
        return "one of " + ", ".join(f"`{_yaml(value)}`" for value in get_args(kind))
    if origin in (Union, types.UnionType):
        return " or ".join(_type(each) for each in get_args(kind) if each is not types.NoneType)
    if origin is dict:
        return f"mapping of names to {_type(get_args(kind)[1])}"
    if isinstance(kind, type) and issubclass(kind, Choice):
        return "section with a `type`"
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return "section"
    name = (
        f"list of {_type(_annotation(get_args(kind)[0])[0])}"
        if origin in (list, tuple)
        else _NAMES.get(kind) or f"{kind}"
    )
    limits: list[str] = []
    if meta is not None:
        if meta.ge is not None:
            limits.append(f"at least {meta.ge}")
        if meta.le is not None:
            limits.append(f"at most {meta.le}")
        if meta.min_length is not None or meta.max_length is not None:
            limits.append(_length(meta.min_length, meta.max_length, "items" if origin else "characters"))
        if meta.pattern is not None:
            limits.append(f"matches `{meta.pattern}`")
    return f"{name} ({', '.join(limits)})" if limits else name


def _length(low: int | None, high: int | None, what: str) -> str:
    if high is None:
        return "not empty" if low == 1 else f"at least {low} {what}"
    return f"{low or 0} to {high} {what}"


def _default(field: msgspec.structs.FieldInfo, kind: Any) -> str:
    if field.required:
        return "required"
    if field.default_factory is not msgspec.NODEFAULT:
        if isinstance(kind, type) and issubclass(kind, Choice):
            return f"type `{kind.default}`"
        made = field.default_factory()
        return "all defaults" if isinstance(made, msgspec.Struct) else f"`{_yaml(made)}`" if made else "none"
    return "none" if field.default is None else f"`{_yaml(field.default)}`"


def _yaml(value: Any) -> str:
    """A value as one would write it in the file."""
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, Duration):
        return _with_unit(value.us, (("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)))  # fmt: skip
    if isinstance(value, Size):
        return _with_unit(
            value.bytes, (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1))
        )
    return msgspec.json.encode(value).decode()


def _with_unit(number: int, units: tuple[tuple[str, int], ...]) -> str:
    for unit, size in units:
        if number and number % size == 0:
            return f"{number // size}{unit}"
    return f"0{units[-1][0]}"


def _plain_doc(kind: Any) -> str:
    """A struct's docstring without the developers' part: its first paragraph."""
    text = (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ").replace("``", "`")
    return "`".join(part if index % 2 else _escaped(part) for index, part in enumerate(text.split("`")))


def _escaped(text: str) -> str:
    """Plain words as Markdown that shows them unchanged."""
    return text.replace("<", "&lt;").replace("*", "\\*")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


__all__ = ["configuration_page"]
