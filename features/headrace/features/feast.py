"""Registration in a Feast repository (feast 0.60 to 0.67), so that a stock Feast SDK finds the views headrace keeps fresh.

Owns what stands in Feast's registry and the check that its feature_store.yaml reads the store headrace writes. The only
module that imports Feast, and only inside apply: the import costs seconds and about 170 MB, so it runs in a short-lived
command, never in the feeder. Knows nothing of rows.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from headrace.cdc.config import Section
from headrace.cdc.errors import DefinitionError
from headrace.features.encoding import codec_of
from headrace.features.spec import ValueType, ViewSpec
from headrace.features.store.redis import RedisStoreConfig
from headrace.features.store.sqlite import SQLiteStoreConfig

KEY_VERSION: Final = 3
"""entity_key_serialization_version: the only one Feast still supports, and the only one we write."""

SPEC_TAG: Final = "headrace_spec_hash"

_PASSWORD_VARIABLE: Final = "REDIS_PASSWORD"
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def feature_store_yaml(store: Section, *, project: str, folder: Path, repo: Path, has_log: bool = False) -> str:
    """Text of a minimal feature_store.yaml that reads our store, and with has_log our feature log by DuckDB.

    store: the struct of ``features.store``. folder: where its relative paths start. repo: the folder the file will stand in.
    A Redis password is never written: the text names the environment variable REDIS_PASSWORD, which Feast fills in.
    Raises DefinitionError for a store that Feast can't read.
    """
    lines = [
        f"# Written by headrace: the store that its project {json.dumps(project)} keeps fresh. Read it with TZ=UTC.",
        f"project: {project}",
        "provider: local",
        "registry: data/registry.db",
        "online_store:",
    ]
    if isinstance(store, SQLiteStoreConfig):
        path, root = (folder / store.path).resolve(), repo.resolve()
        shown = path.relative_to(root) if path.is_relative_to(root) else path
        # A JSON string is a YAML string, whatever the path holds.
        lines += ["  type: sqlite", f"  path: {json.dumps(str(shown), ensure_ascii=False)}"]
    elif isinstance(store, RedisStoreConfig):
        lines += ["  type: redis", f"  connection_string: {json.dumps(_connection_string(store))}"]
        if store.cluster:
            lines.append("  redis_type: redis_cluster")
        if store.key_ttl is not None:
            lines.append(f"  key_ttl_seconds: {store.key_ttl.us // 1_000_000}")
    else:
        raise _unreadable(store)
    if has_log:
        lines += ["offline_store:", "  type: duckdb"]
    lines.append(f"entity_key_serialization_version: {KEY_VERSION}")
    return "\n".join(lines) + "\n"


def apply(
    views: Sequence[ViewSpec],
    *,
    project: str,
    feature_store_yaml: Path,
    store: Section,
    folder: Path,
    feature_log: Path | None = None,
) -> None:
    """Register the views in the Feast repository of that feature_store.yaml; applying again is harmless.

    Each view becomes a FeatureView (tagged with its spec hash) with one Entity a join key and a PushSource over a FileSource
    ``<feature_log>/<view>/*.parquet``, which need not exist: online reads never look at it. feature_log defaults to the
    folder ``feature_log`` beside the file. store, folder: see the function feature_store_yaml. Other objects in the
    registry stay.

    Raises DefinitionError when Feast isn't installed, the file can't be used, or it names another project or online store
    than headrace's, or another key version than 3: its readers would find nothing, or somebody else's rows.
    """
    wanted = dict(_join_keys(views))
    feast = _import_feast()
    path = feature_store_yaml.resolve()
    registry = _open_repository(feast, path)
    _check(registry.config, path, project=project, store=store, folder=folder)
    log = (feature_log or path.parent / "feature_log").resolve()
    entities = {
        name: feast.Entity(name=name, join_keys=[name], value_type=_value_type(feast, dtype))
        for name, dtype in wanted.items()
    }
    objects = [*entities.values(), *(_feature_view(feast, view, entities, log) for view in views)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Feast's remarks on its own coming releases are not the user's to mend
        try:
            registry.apply(objects)
        except Exception as error:  # Feast raises whatever its registry, its parser and its store drivers raise
            raise DefinitionError(
                f"Feast refused to apply to {path} ({type(error).__name__})",
                advice='run "feast apply" in that folder for its own words; registry and online store must be reachable',
            ) from error


def _join_keys(views: Sequence[ViewSpec]) -> Iterator[tuple[str, ValueType]]:
    """Each join key once. Raises DefinitionError when two views disagree about a type, or no Feast key may hold it."""
    seen: dict[str, tuple[ValueType, str]] = {}
    for view in views:
        codec_of(view)
        for field in view.join_keys:
            dtype, first = seen.setdefault(field.name, (field.dtype, view.name))
            if dtype is not field.dtype:
                raise DefinitionError(
                    f"join key {field.name!r} is {dtype.value} in view {first!r} and {field.dtype.value} in view {view.name!r}",
                    advice="give it one type: in Feast a join key is one entity for all views",
                )
    return ((name, dtype) for name, (dtype, _) in seen.items())


def _feature_view(feast: Any, view: ViewSpec, entities: dict[str, Any], log: Path) -> Any:
    batch = feast.FileSource(
        name=f"{view.name}_log",
        path=str(log / view.name / "*.parquet"),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )
    return feast.FeatureView(
        name=view.name,
        entities=[entities[field.name] for field in view.join_keys],
        schema=[
            # Join keys too: with them in the schema Feast has nothing to infer from a file that may not be there.
            feast.Field(name=field.name, dtype=_feast_type(feast, field.dtype))
            for field in (*view.join_keys, *view.fields)
        ],
        ttl=timedelta(microseconds=view.ttl_us),
        source=feast.PushSource(name=f"{view.name}_push", batch_source=batch),
        online=True,
        description=view.description,
        tags={SPEC_TAG: view.spec_hash},
    )


def _feast_type(feast: Any, dtype: ValueType) -> Any:
    inner = dtype.value.removeprefix("Array(").removesuffix(")")
    found = getattr(feast.types, inner)
    return found if inner == dtype.value else feast.types.Array(found)


def _value_type(feast: Any, dtype: ValueType) -> Any:
    return getattr(feast.types, dtype.value).to_value_type()


def _import_feast() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("feast.types")
            return importlib.import_module("feast")
        except ImportError as error:
            missing = error.name or "feast"
            raise DefinitionError(
                f"registering in Feast needs a Python package that isn't installed: {missing}",
                advice='pip install "headrace[feast]"',
            ) from error


def _open_repository(feast: Any, path: Path) -> Any:
    if not path.is_file():
        raise DefinitionError(
            f"Feast's configuration {path} doesn't exist",
            advice='"headrace features apply" writes one, or correct features.feast',
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return feast.FeatureStore(repo_path=str(path.parent), fs_yaml_file=path)
        except Exception as error:  # its own, pydantic's and YAML's; the texts may quote a password
            raise DefinitionError(
                f"Feast can't use its configuration {path} ({type(error).__name__})",
                advice='run "feast configuration" in that folder for its own words',
            ) from error


def _check(config: Any, path: Path, *, project: str, store: Section, folder: Path) -> None:
    """Raise DefinitionError unless a reader with this config finds the rows that our store holds."""
    if config.project != project:
        raise DefinitionError(
            f"{path} is of project {config.project!r}, headrace's features are of project {project!r}",
            advice=f"set features.project to {config.project}, or project in that file to {project}",
        )
    if config.entity_key_serialization_version != KEY_VERSION:
        raise DefinitionError(
            f"{path} asks for entity_key_serialization_version {config.entity_key_serialization_version}",
            advice=f"set entity_key_serialization_version: {KEY_VERSION} there",
        )
    if getattr(config.registry, "enable_online_feature_view_versioning", False):
        raise DefinitionError(
            f"{path} turns on versioned feature view names, which change where Feast looks for rows",
            advice="set registry.enable_online_feature_view_versioning: false there",
        )
    online = config.online_store
    if isinstance(store, SQLiteStoreConfig):
        _check_sqlite(online, path, ours=(folder / store.path).resolve())
    elif isinstance(store, RedisStoreConfig):
        _check_redis(online, path, ours=_own_redis_place(store), is_cluster=store.cluster)
    else:
        raise _unreadable(store)


def _check_sqlite(online: Any, path: Path, *, ours: Path) -> None:
    found = _store_type(online)
    if found != "sqlite":
        raise _other_store(path, found, "sqlite")
    theirs = (path.parent / online.path).resolve()
    if theirs != ours:
        raise _other_store(path, str(theirs), str(ours))


def _check_redis(online: Any, path: Path, *, ours: tuple[str, int], is_cluster: bool) -> None:
    found = _store_type(online)
    if found != "redis":
        raise _other_store(path, found, "redis")
    kind = getattr(online, "redis_type", "redis")
    wanted = "redis_cluster" if is_cluster else "redis"
    if getattr(kind, "value", kind) != wanted:
        raise _other_store(path, f"of redis_type {getattr(kind, 'value', kind)}", f"redis_type {wanted}")
    theirs = _redis_place(online.connection_string)
    if theirs[1] != ours[1] or (ours[0] and theirs[0] != ours[0]):
        raise _other_store(path, _place_text(theirs), _place_text(ours))


def _store_type(online: Any) -> str:
    return str(getattr(online, "type", "none"))


def _redis_place(connection_string: str) -> tuple[str, int]:
    """(host:port, database) of Feast's ``host:port,name=value,...``; the rest of it may be a secret."""
    parts = connection_string.split(",")
    address = next((part for part in parts if "=" not in part), "localhost:6379")
    options = dict(part.split("=", 1) for part in parts if "=" in part)
    host, _, port = address.rpartition(":")
    number = options.get("db", "0")
    return _address(host, port), int(number) if number.isdigit() else 0


def _own_redis_place(store: RedisStoreConfig) -> tuple[str, int]:
    """The same of our URL; no address for a unix socket, which Feast can't name."""
    parts = urlsplit(store.url)
    if parts.scheme == "unix":
        return "", store.database
    return _address(parts.hostname or "localhost", str(parts.port or 6379)), store.database


def _address(host: str, port: str) -> str:
    return f"{'localhost' if host in _LOOPBACK else host.lower()}:{port}"


def _place_text(place: tuple[str, int]) -> str:
    return f"{place[0] or 'a unix socket'} database {place[1]}"


def _connection_string(store: RedisStoreConfig) -> str:
    parts = urlsplit(store.url)
    if parts.scheme == "unix":
        raise DefinitionError(
            "features.store.url names a unix socket, which Feast's Redis store can't use",
            advice="give a redis://host:port URL, or write feature_store.yaml by hand",
        )
    options = [f"{parts.hostname}:{parts.port or 6379}"]
    if not store.cluster:
        options.append(f"db={store.database}")
    if parts.scheme == "rediss":
        options.append("ssl=true")
    if parts.username:
        options.append(f"username={parts.username}")
    if parts.password:
        options.append(f"password=${{{_PASSWORD_VARIABLE}}}")
    return ",".join(options)


def _other_store(path: Path, theirs: str, ours: str) -> DefinitionError:
    return DefinitionError(
        f"Feast's online_store in {path} is {theirs}, headrace writes {ours}",
        advice="let both name the same store: change online_store in that file, or features.store in headrace.yaml",
    )


def _unreadable(store: Section) -> DefinitionError:
    return DefinitionError(
        f"a stock Feast SDK can't read this store ({type(store).__name__})",
        advice="set features.store.type to sqlite or redis",
    )
