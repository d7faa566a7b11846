"""headrace.yaml: one file, one tree of structs, every problem reported at once with its path.

The structs here and those that entry points bring (one per source type, log engine, consumer section) are the only declaration:
parsing, ``headrace schema`` and docs/configuration.md all come from them. ``${VAR}`` and ``${VAR:-default}`` are replaced in text
values after parsing, so that a secret can hold any character.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, cast, get_args, get_origin

import msgspec
import yaml
from msgspec import Meta, Struct

from headrace.cdc.errors import ConfigError
from headrace.cdc.pipeline_config import (
    ColumnsConfig,
    ConsentConfig,
    CreditConfig,
    EventConfig,
    EventPrivacyConfig,
    FetchConfig,
    LookupConfig,
    PipelineConfig,
    PrivacyConfig,
    TransformConfig,
    TransformWhen,
)
from headrace.cdc.section import Duration, Section, Size

_S = TypeVar("_S", bound=Struct)

_SOURCE_NAME = "[a-z][a-z0-9_]{0,39}"


class Choice:
    """A section whose ``type:`` picks one of the entry points of a group; the rest of its keys are that type's own.

    A subclass names the group, so that it can stand as a field's type in any section. type: the entry point's name.
    section: the struct that the entry point's ``config_type`` declares.
    """

    group: ClassVar[str]
    default: ClassVar[str | None] = None
    __slots__ = ("section", "type")

    def __init__(self, type: str, section: Any) -> None:
        self.type = type
        self.section = section

    @property
    def kind(self) -> Any:
        """The object that the entry point names."""
        return plugins(self.group)[self.type]

    @classmethod
    def of_default(cls) -> Self:
        """What an absent section means. Only for a group with a default whose struct needs no field."""
        assert cls.default is not None
        return cls(cls.default, plugins(cls.group)[cls.default].config_type())


class LogChoice(Choice):
    """The durable log's engine."""

    group = "headrace.logs"
    default = "sqlite"


class SourceChoice(Choice):
    """One source; its type has no default."""

    group = "headrace.sources"


class ServerConfig(Section, frozen=True):
    """The one HTTP server: subscriptions, features, health, metrics."""

    listen: Annotated[
        str,
        Meta(description="host:port to listen on. Beyond loopback, tokens are required.", examples=["127.0.0.1:8080"]),
    ] = "127.0.0.1:8080"
    tokens: Annotated[
        dict[str, str],
        Meta(description="Name -> bearer token. With any token set, every route but /healthz, /readyz wants one."),
    ] = msgspec.field(default_factory=dict[str, str])
    scopes: Annotated[
        dict[str, list[Literal["events", "features", "status", "admin"]]],
        Meta(
            description="Name of a token -> what it may: events (read and commit subscriptions), features (read them), status (and metrics),"
            " admin (everything). A token that isn't named here may everything.",
            examples=[{"mailer": ["events"]}],
        ),
    ] = msgspec.field(default_factory=dict[str, list[Literal["events", "features", "status", "admin"]]])

    def __post_init__(self) -> None:
        for name in self.scopes:
            if name not in self.tokens:
                raise ValueError(f'scopes names "{name}", which is no token')


PROCESSES = Annotated[
    Annotated[int, Meta(ge=1, le=64)] | Literal["auto"],
    Meta(
        description="How many processes `headrace run` is: the first keeps sources, log and server, features get one of their own, and sinks are dealt out "
        "over the rest. auto: one for each core, and no more than there are consumers for.",
        examples=[2],
    ),
]


class Config(Struct, frozen=True):
    """The whole file. sections holds the structs of the consumers' own top-level keys, by name."""

    log: LogChoice
    sources: dict[str, SourceChoice]
    events: dict[str, EventConfig]
    server: ServerConfig
    sections: dict[str, Any]
    folder: Path
    """Folder of the file: relative paths in it start there."""
    privacy: PrivacyConfig = msgspec.field(default_factory=PrivacyConfig)
    pipeline: PipelineConfig = msgspec.field(default_factory=PipelineConfig)
    processes: int | Literal["auto"] = 1
    text: str = ""
    """The file as it was read; "" for a configuration that was none. What it refers to by ${VARIABLE} isn't in it."""
    name: str = ""
    """Of the file, in ``folder``."""

    def path(self, text: str) -> Path:
        """A path of the file, relative ones taken from the file's own folder."""
        return (self.folder / text).resolve()


@cache
def plugins(group: str) -> dict[str, Any]:
    """The objects of one entry point group by name, ours and third parties'; looked up once.

    Groups: headrace.sources, headrace.logs, headrace.consumers, headrace.stores, headrace.commands.
    """
    return {point.name: point.load() for point in entry_points(group=group)}


def consumer_sections() -> dict[str, Any]:
    """Top-level keys that belong to consumers, with their structs, or ``dict[str, Choice]`` for a mapping of the user's names."""
    return {
        kind.section: kind.config_type
        for kind in plugins("headrace.consumers").values()
        if kind.section is not None and kind.config_type is not None
    }


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Read and check the file.

    Raises ConfigError with every problem found, each as ``path.to.field: what is wrong``.
    """
    return parse_text(_text_of(path), path, environ)


def parse_text(text: str, path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """As load, of a file that has been read. Raises ConfigError."""
    config = parse(_mapping(text, path), folder=path.resolve().parent, name=str(path), environ=environ)
    return msgspec.structs.replace(config, text=text, name=path.name)


def load_part(path: Path, kind: type[_S], environ: Mapping[str, str] = os.environ) -> _S:
    """A file that the configuration names, of one struct, by the same rules. Raises ConfigError with every problem found."""
    problems: list[str] = []
    try:
        tree = _substitute(read_mapping(path), "", environ, problems)
    except RecursionError as error:
        raise _too_deep(str(path)) from error
    made = _build(kind, tree, path.name, problems)
    if problems:
        count = len(problems)
        raise ConfigError(f"{path} has {count} problem{'s' if count > 1 else ''}", problems=tuple(sorted(problems)))
    assert isinstance(made, kind)
    return made


def read_mapping(path: Path) -> Any:
    """What a YAML file holds, no key twice; a mapping or whatever else stands there. Raises ConfigError."""
    return _mapping(_text_of(path), path)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"configuration file {path} can't be read: {error.strerror}",
            advice='give the path of a headrace.yaml; "headrace demo" writes one to look at',
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration file {path} is not UTF-8 text", advice="save it as UTF-8") from error


def _mapping(text: str, path: Path) -> Any:
    try:
        return yaml.load(text, _UniqueKeys)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise ConfigError(
            f"configuration file {path} is not valid YAML{where}: {problem}", advice="correct that line"
        ) from error
    except ValueError as error:  # 2024-02-30 without quotes: YAML makes a date of it, and there is none
        raise ConfigError(
            f"configuration file {path} is not valid YAML: {error}", advice="put such a value into quotes"
        ) from error
    except RecursionError as error:
        raise _too_deep(str(path)) from error


def _too_deep(name: str) -> ConfigError:
    return ConfigError(
        f"configuration file {name} is nested too deeply, or an anchor in it holds itself",
        advice="take the nesting or the anchor out",
    )


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping that names a key twice: YAML's loader would silently take the last, and a whole source be gone."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                name = str(key.value)
                if name in seen:
                    raise yaml.constructor.ConstructorError(None, None, f'"{name}" is there twice', key.start_mark)
                seen.add(name)
        return super().construct_mapping(node, deep)


def parse(tree: Any, *, folder: Path, name: str = "headrace.yaml", environ: Mapping[str, str] = os.environ) -> Config:
    """Check an already parsed tree; see load."""
    problems: list[str] = []
    if not isinstance(tree, dict):
        raise ConfigError(f"configuration file {name} is not a mapping", advice='start it with "sources:"')
    try:
        tree = cast("dict[str, Any]", _substitute(tree, "", environ, problems))
    except RecursionError as error:
        raise _too_deep(name) from error
    sections = consumer_sections()
    known = ["log", "sources", "events", "pipeline", "privacy", "server", "processes", *sections]
    for key in tree:
        if key not in known:
            problems.append(_unknown(str(key), str(key), known))
    log = _build(LogChoice, _or_empty(tree.get("log")), "log", problems)
    raw_sources = tree.get("sources")
    sources: dict[str, SourceChoice] = {}
    if not isinstance(raw_sources, dict) or not raw_sources:
        problems.append("sources: at least one source is needed, as name: {type: postgres, dsn: ...}")
    else:
        for source, value in cast("dict[Any, Any]", raw_sources).items():
            if not re.fullmatch(_SOURCE_NAME, str(source)):
                problems.append(
                    f"sources.{source}: a source's name is 1 to 40 of a-z, 0-9 and _, starting with a letter"
                )
            sources[str(source)] = _build(SourceChoice, value, f"sources.{source}", problems)
    events = _build(dict[str, EventConfig], _or_empty(tree.get("events")), "events", problems)
    privacy = _build(PrivacyConfig, _or_empty(tree.get("privacy")), "privacy", problems)
    if privacy is not None and not privacy.salt:
        problems += [
            f'events.{table}.columns.hash: needs a secret under privacy.salt, such as "${{SALT}}"'
            for table, event in events.items()
            if event is not None and event.columns.hash
        ]
    pipeline = _build(PipelineConfig, _or_empty(tree.get("pipeline")), "pipeline", problems)
    server = _build(ServerConfig, _or_empty(tree.get("server")), "server", problems)
    processes = _build(PROCESSES, _number_or_text(tree.get("processes", 1)), "processes", problems)
    built = {
        key: _build(struct, tree[key], key, problems) for key, struct in sections.items() if tree.get(key) is not None
    }
    problems += [
        f"{key}.{name}: a name is 1 to 40 of a-z, 0-9 and _, starting with a letter"
        for key, found in built.items()
        if isinstance(found, dict)
        for name in cast("dict[str, Any]", found)
        if not re.fullmatch(_SOURCE_NAME, name)
    ]
    if problems:
        count = len(problems)
        raise ConfigError(f"{name} has {count} problem{'s' if count > 1 else ''}", problems=tuple(sorted(problems)))
    return Config(
        log=log,
        sources=sources,
        events=events,
        server=server,
        sections=built,
        folder=folder,
        privacy=privacy or PrivacyConfig(),
        pipeline=pipeline or PipelineConfig(),
        processes=processes or 1,
    )


def _number_or_text(value: Any) -> Any:
    """How many processes often comes by ${VARIABLE}, which makes a text."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    return 1 if value is None else value


def _or_empty(value: Any) -> Any:
    """A heading with nothing under it is an empty section, which has all its defaults."""
    return {} if value is None else value


def _build_choice(choice: type[Choice], value: Any, path: str, problems: list[str]) -> Any:
    """Build the struct that ``type:`` names among the entry points of the choice's group."""
    kinds = plugins(choice.group)
    if not isinstance(value, dict):
        problems.append(f"{path}: must be a mapping with a type")
        return None
    given = cast("dict[Any, Any]", value)
    name = given.get("type", choice.default)
    if not isinstance(name, str) or name not in kinds:
        said = "is missing" if name is None else f"{name!r} is unknown"
        problems.append(f"{path}.type: {said}; known: {', '.join(sorted(kinds))}")
        return None
    rest = {key: item for key, item in given.items() if key != "type"}
    return choice(name, _build(kinds[name].config_type, rest, path, problems))


def _build(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    """msgspec.convert, but going on after the first problem: structs field by field, mappings item by item."""
    has_secret_keys = False
    if get_origin(kind) is Annotated:
        base, *notes = get_args(kind)
        has_secret_keys = any("has_secret_keys" in (note.extra or {}) for note in notes if isinstance(note, Meta))
        if _is_struct(base) or _is_choice(base) or get_origin(base) is dict or _item_struct(base) is not None:
            kind = base
    if _is_struct(kind):
        return _build_struct(kind, value, path, problems)
    if _is_choice(kind):
        return _build_choice(kind, value, path, problems)
    if get_origin(kind) is dict:
        item_kind = get_args(kind)[1]
        if not isinstance(value, dict):
            problems.append(f"{path}: must be a mapping")
            return {}
        items = cast("dict[Any, Any]", value).items()
        return {
            str(key): _build(item_kind, item, f"{path}[{number}]" if has_secret_keys else f"{path}.{key}", problems)
            for number, (key, item) in enumerate(items)
        }
    item_struct = _item_struct(kind)
    if item_struct is not None and isinstance(value, list):  # structs, or a text in place of one
        return [
            item if isinstance(item, str) else _build(item_struct, item, f"{path}[{at}]", problems)
            for at, item in enumerate(cast("list[Any]", value))
        ]
    try:
        return msgspec.convert(value, kind, dec_hook=_decode_unit)
    except (msgspec.ValidationError, ValueError) as error:
        known = _words_of(kind) if "enum value" in str(error) else []
        problems.append(_plain(path, str(error)) + (f"; known: {', '.join(known)}" if known else ""))
        return None


def _build_struct(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(value, dict):
        problems.append(f"{path}: must be a mapping")
        return None
    given = cast("dict[Any, Any]", value)
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    before = len(problems)
    for key in given:
        if key not in fields:
            problems.append(_unknown(f"{path}.{key}", str(key), list(fields)))
    made: dict[str, Any] = {}
    for key, field in fields.items():
        if key in given:
            made[field.name] = _build(field.type, given[key], f"{path}.{key}", problems)
        elif field.required:
            problems.append(f"{path}.{key}: is required")
    if len(problems) > before:
        return None
    try:
        return kind(**made)
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return None


def _item_struct(kind: Any) -> Any:
    """The struct that a list of this type holds, perhaps beside texts; None for any other type."""
    if get_origin(kind) is not list:
        return None
    (item,) = get_args(kind)
    return next((one for one in (item, *get_args(item)) if _is_struct(one)), None)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Struct)


def _is_choice(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Choice)


def _decode_unit(kind: type[Any], value: Any) -> Any:
    if kind in (Duration, Size):
        return kind.parse(str(value))
    raise NotImplementedError(kind)


def _words_of(kind: Any) -> list[str]:
    """The words that a Literal anywhere in the type allows."""
    if get_origin(kind) is Literal:
        return [str(word) for word in get_args(kind)]
    found: list[str] = []
    for part in get_args(kind):
        found += _words_of(part)
    return found


def _plain(path: str, text: str) -> str:
    """msgspec's message in a user's words: our path in place of its ``$``, lower-case start."""
    inside = re.search(r" - at `\$(.*)`$", text)
    if inside is not None:
        text = text[: inside.start()]
        path += "" if "..." in inside[1] else inside[1]
    return f"{path}: {text[:1].lower()}{text[1:]}"


def _unknown(path: str, key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f'did you mean "{close[0]}"?' if close else f"known: {', '.join(sorted(known))}"
    return f"{path}: unknown key; {hint}"


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def _substitute(value: Any, path: str, environ: Mapping[str, str], problems: list[str]) -> Any:
    if isinstance(value, dict):
        return {
            _substitute(key, path, environ, problems): _substitute(
                item, f"{path}.{key}" if path else str(key), environ, problems
            )
            for key, item in cast("dict[Any, Any]", value).items()
        }
    if isinstance(value, list):
        items = cast("list[Any]", value)
        return [_substitute(item, f"{path}[{index}]", environ, problems) for index, item in enumerate(items)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        default: str | None = match[2]
        found = environ.get(match[1])
        if default is not None:
            found = found or default  # as in a shell: an empty variable counts as unset
        if found is None:
            problems.append(f"{path}: environment variable {match[1]} is not set")
            return ""
        return found

    return _VARIABLE.sub(replace, value)


def json_schema() -> dict[str, Any]:
    """JSON Schema of the file, made from the same structs that parse it."""
    parts: dict[str, Any] = {
        "events": EventConfig,
        "pipeline": PipelineConfig,
        "privacy": PrivacyConfig,
        "server": ServerConfig,
        **consumer_sections(),
    }
    choices: list[type[Choice]] = [LogChoice, SourceChoice]

    def hook(kind: type[Any]) -> dict[str, Any]:
        if issubclass(kind, Choice):
            if kind not in choices:
                choices.append(kind)
            return {"$ref": f"#/$defs/{kind.__name__}"}
        return _unit_schema(kind)

    schemas, definitions = msgspec.json.schema_components(
        parts.values(), schema_hook=hook, ref_template="#/$defs/{name}"
    )
    by_part = dict(zip(parts, schemas, strict=True))
    for choice in choices:  # grows while sections of a choice name further ones
        structs = {name: kind.config_type for name, kind in sorted(plugins(choice.group).items())}
        found, more = msgspec.json.schema_components(structs.values(), schema_hook=hook, ref_template="#/$defs/{name}")
        definitions |= more
        definitions[choice.__name__] = {
            "description": (choice.__doc__ or "").strip(),
            "anyOf": [
                _with_type(schema, definitions, name, is_default=name == choice.default)
                for name, schema in zip(structs, found, strict=True)
            ],
        }
    # A heading with nothing under it is null to YAML.
    empty = {"type": "null"}
    own = {
        key: {"anyOf": [by_part[key], empty]} for key in parts if key not in ("events", "pipeline", "privacy", "server")
    }
    for key, kind in consumer_sections().items():
        if get_origin(kind) is dict:
            by_part[key]["propertyNames"] = {"pattern": f"^{_SOURCE_NAME}$"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "headrace.yaml",
        "type": "object",
        "additionalProperties": False,
        "required": ["sources"],
        "properties": {
            "log": {"anyOf": [{"$ref": "#/$defs/LogChoice"}, empty]},
            "sources": {
                "type": "object",
                "propertyNames": {"pattern": f"^{_SOURCE_NAME}$"},
                "additionalProperties": {"$ref": "#/$defs/SourceChoice"},
                "minProperties": 1,
            },
            "events": {"type": ["object", "null"], "additionalProperties": by_part["events"]},
            "pipeline": {"anyOf": [by_part["pipeline"], empty]},
            "privacy": {"anyOf": [by_part["privacy"], empty]},
            "server": {"anyOf": [by_part["server"], empty]},
            "processes": msgspec.json.schema(PROCESSES),
            **own,
        },
        "$defs": definitions,
    }


def _with_type(schema: dict[str, Any], definitions: dict[str, Any], name: str, *, is_default: bool) -> dict[str, Any]:
    """A struct's schema that also has the ``type`` key, which picks the struct and isn't a field of it."""
    struct = dict(definitions[schema["$ref"].rsplit("/", 1)[1]])
    struct["properties"] = {"type": {"const": name}, **struct.get("properties", {})}
    struct["required"] = [*([] if is_default else ["type"]), *struct.get("required", [])]
    return struct


def _unit_schema(kind: type[Any]) -> dict[str, Any]:
    if kind is Duration:
        return {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?\s*(us|ms|s|m|h|d)$", "examples": ["5s", "7d"]}
    if kind is Size:
        return {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?\s*(B|KiB|MiB|GiB|TiB)$", "examples": ["64MiB"]}
    raise NotImplementedError(kind)


__all__ = [
    "PROCESSES",
    "Choice",
    "ColumnsConfig",
    "Config",
    "ConsentConfig",
    "CreditConfig",
    "Duration",
    "EventConfig",
    "EventPrivacyConfig",
    "FetchConfig",
    "LogChoice",
    "LookupConfig",
    "PipelineConfig",
    "PrivacyConfig",
    "Section",
    "ServerConfig",
    "Size",
    "SourceChoice",
    "TransformConfig",
    "TransformWhen",
    "consumer_sections",
    "json_schema",
    "load",
    "load_part",
    "parse",
    "parse_text",
    "plugins",
    "read_mapping",
]
