"""Reading features over HTTP: Feast's own ``POST /get-online-features``, and one entity by ``GET /v1/features/{view}``.

Follows the feature server of Feast 0.67 (columns, statuses, timestamps, error bodies), so that a stock SDK with a ``remote`` online store
reads from here, and tells what Feast's own server leaves out: NOT_FOUND for an entity without a row on every store, and OUTSIDE_MAX_AGE by the
view's ttl. Reads go straight to the store; nothing is computed here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec
from aiohttp import web

from headrace.cdc.errors import DecodeError, StoreError
from headrace.cdc.event import Value
from headrace.cdc.position import parse_lsn
from headrace.features.answer import Column, Columns, entity_answer, key_column, key_of, key_part, timestamp
from headrace.features.ondemand import computed_rows, fields_of, stored_names
from headrace.features.spec import EntityKey, FeatureValue, ViewSpec
from headrace.features.store.base import FeatureRow, OnlineStore

MOST_ENTITIES: Final = 10_000

_encode = msgspec.json.Encoder().encode


class _MinPosition(msgspec.Struct, forbid_unknown_fields=True):
    """Answer only once this is applied: an offset of the log, or a place in a source (PostgreSQL: pg_current_wal_lsn() behind the commit)."""

    offset: int | None = None
    source: str | None = None
    position: str | None = None
    wait_ms: Annotated[int, msgspec.Meta(ge=0, le=30_000)] = 2_000


class Applied(msgspec.Struct, frozen=True):
    """How far the rows are. positions: of the newest event applied of each source."""

    offset: int
    log_time_us: int
    positions: Mapping[str, str]


class _Request(msgspec.Struct):
    """Body of /get-online-features; further fields of Feast's are accepted and have no effect."""

    entities: dict[str, list[Value]]
    features: list[str] | None = None
    feature_service: str | None = None
    full_feature_names: bool = False
    min_position: _MinPosition | None = None


class _AsSent(msgspec.Struct):
    """The same, its list of features unread: programs ask for the same ones again and again."""

    entities: dict[str, list[Value]]
    features: msgspec.Raw = msgspec.Raw(b"null")
    feature_service: str | None = None
    full_feature_names: bool = False
    min_position: _MinPosition | None = None


_decode_request: Final = msgspec.json.Decoder(_Request).decode
_decode_as_sent: Final = msgspec.json.Decoder(_AsSent).decode
_decode_features: Final = msgspec.json.Decoder(list[str] | None).decode

_LONGEST_KEPT: Final = 32 << 10
"""Bytes of a list of features; what is longer is read anew each time."""


class _Group(msgspec.Struct, frozen=True):
    """What is read of one view. stored: the features that those asked for need."""

    view: ViewSpec
    features: list[str]
    stored: list[str]
    columns: Columns


class _Plan(msgspec.Struct, frozen=True):
    """What a list of features asks for. names: of the columns behind the join keys."""

    groups: list[_Group]
    names: list[str]


class _Refused(Exception):
    """A request that can't be answered; kind is the name of Feast's exception that its SDK raises again."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message


class FeatureServer:
    """The handlers. store: the open store, or None while there is none; clock: seconds since 1970, for ttl and freshness only."""

    def __init__(
        self,
        views: Iterable[ViewSpec],
        store: Callable[[], OnlineStore | None],
        *,
        clock: Callable[[], float] = time.time,
        applied: Callable[[], Applied | None] = lambda: None,
    ) -> None:
        """applied: how far the rows are; asked again after each ``moved``."""
        self._applied = applied
        self._moved = asyncio.Event()
        self._views = {view.name: view for view in views}
        self._fields = {name: {field.name: field for field in fields_of(view)} for name, view in self._views.items()}
        self._store = store
        self._clock = clock
        self._kept_plan = lru_cache(maxsize=256)(self._plan)

    def moved(self) -> None:
        """More is applied than before."""
        self._moved.set()
        self._moved = asyncio.Event()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/get-online-features", self._get_online_features),
            web.get("/v1/features/{view}", self._one_entity),
        ]

    async def _get_online_features(self, request: web.Request) -> web.Response:
        try:
            asked, plan = self._read_request(await request.read())
            if asked.min_position is not None:
                await self._until(asked.min_position)
            applied = self._applied()
            rows = _count_rows(asked.entities)
            now_us = int(self._clock() * 1_000_000)
            results: list[Column] = [key_column(values) for values in asked.entities.values()]
            keys = [_entity_keys(group.view, asked.entities, rows) for group in plan.groups]
            reads = [
                self._read(group.view, group.features, group.stored, of_view)
                for group, of_view in zip(plan.groups, keys, strict=True)
            ]
            found = [await reads[0]] if len(reads) == 1 else await asyncio.gather(*reads)
            for group, of_group in zip(plan.groups, found, strict=True):
                results += group.columns.of(of_group, now_us)
        except _Refused as refused:
            # Feast's shape: a JSON text inside a JSON text, from which its SDK makes the exception again.
            detail = {"module": "feast.errors", "class": refused.kind, "message": refused.message}
            return _json(_encode(detail).decode(), refused.status)
        metadata: dict[str, Any] = {"feature_names": [*asked.entities, *plan.names]}
        if applied is not None:
            metadata |= {"offset": applied.offset, "log_time": timestamp(applied.log_time_us)}
        return _json({"metadata": metadata, "results": results})

    async def until(self, offset: int, wait_s: float = 2.0) -> None:
        """Return once this offset is applied, or after wait_s all the same."""
        with contextlib.suppress(_Refused):
            await self._until(_MinPosition(offset=offset, wait_ms=int(wait_s * 1000)))

    async def _until(self, wanted: _MinPosition) -> None:
        """Return once it is applied. Raises _Refused: no such place; not in time."""
        has_passed = _test(wanted)
        loop = asyncio.get_running_loop()
        until = loop.time() + wanted.wait_ms / 1000
        while True:
            moved = self._moved
            applied = self._applied()
            if applied is not None and has_passed(applied):
                return
            left_s = until - loop.time()
            if left_s <= 0:
                place = "nothing" if applied is None else f"offset {applied.offset}"
                if applied is not None and wanted.source is not None:
                    place = applied.positions.get(wanted.source, "nothing yet")
                raise _Refused(
                    503,
                    "FeastProviderNotReady",
                    f"min_position isn't applied after {wanted.wait_ms} ms: applied is {place}",
                )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(moved.wait(), left_s)

    async def _one_entity(self, request: web.Request) -> web.Response:
        try:
            view = self._view(request.match_info["view"])
            try:
                key = key_of(view, request.query)
            except ValueError as error:
                raise _Refused(400, "", f"parameter {error}") from None
            now_us = int(self._clock() * 1_000_000)
            names = [field.name for field in fields_of(view)]
            row = (await self._read(view, names, stored_names(view, names), [key]))[0]
        except _Refused as refused:
            return _json({"error": refused.message}, refused.status)
        body = entity_answer(view, key, row, now_us)
        if row is None:
            return _json({**body, "error": f"view {view.name} has no row for this entity"}, 404)
        return _json(body)

    async def _read(
        self, view: ViewSpec, features: Sequence[str], stored: Sequence[str], keys: Sequence[EntityKey]
    ) -> list[FeatureRow | None]:
        store = self._store()
        if store is None:
            raise _Refused(
                503, "FeastProviderNotReady", "the online store isn't open; try again, and see /readyz for the reason"
            )
        try:
            return computed_rows(view, features, stored, await store.read(view, stored, keys))
        except StoreError as error:
            raise _Refused(503, "FeastProviderNotReady", error.message) from error

    def _view(self, name: str) -> ViewSpec:
        view = self._views.get(name)
        if view is None:
            raise _Refused(
                404, "FeatureViewNotFoundException", f"Feature view {name} does not exist; known: {self._known()}"
            )
        return view

    def _read_request(self, body: bytes) -> tuple[_AsSent, _Plan]:
        """Raises _Refused."""
        try:
            asked = _decode_as_sent(body)
            make = self._kept_plan if len(asked.features) <= _LONGEST_KEPT else self._plan
            return asked, make(bytes(asked.features), asked.feature_service, asked.full_feature_names)
        except msgspec.DecodeError:
            raise _unreadable(body) from None

    def _plan(self, raw: bytes, service: str | None, has_full_names: bool) -> _Plan:
        """raw: the list of features, as it was sent. Raises _Refused, msgspec.DecodeError."""
        references = _decode_features(raw)
        if service is not None:
            what = f"Feature service {service} does not exist: name features as view:feature; views: {self._known()}"
            raise _Refused(404, "FeatureServiceNotFoundException", what)
        if not references:
            raise _Refused(422, "FeastError", 'the body names no features: give "features": ["view:feature", ...]')
        groups: dict[str, dict[str, None]] = {}
        for reference in references:
            view_name, colon, feature = reference.partition(":")
            if not colon:
                raise _Refused(422, "FeastError", f"{reference!r} is no feature reference: write view:feature")
            self._view(view_name)
            if feature not in self._fields[view_name]:
                known = ", ".join(self._fields[view_name])
                what = f"Feature {feature} does not exist in feature view {view_name}; known: {known}"
                raise _Refused(404, "FeatureViewNotFoundException", what)
            groups.setdefault(view_name, {})[feature] = None
        if not has_full_names:
            taken: dict[str, str] = {}
            for view_name, features in groups.items():
                for feature in features:
                    other = taken.setdefault(feature, view_name)
                    if other != view_name:
                        what = f"feature {feature} is asked of views {other} and {view_name}: set full_feature_names to true"
                        raise _Refused(422, "FeatureNameCollisionError", what)
        made: list[_Group] = []
        names: list[str] = []
        for view_name, features in groups.items():
            view, fields = self._views[view_name], self._fields[view_name]
            columns = Columns(view, [fields[feature] for feature in features])
            made.append(_Group(view, list(features), stored_names(view, list(features)), columns))
            names += [f"{view_name}__{feature}" if has_full_names else feature for feature in features]
        return _Plan(made, names)

    def _known(self) -> str:
        return ", ".join(sorted(self._views)) or "none"


def _test(wanted: _MinPosition) -> Callable[[Applied], bool]:
    """Raises _Refused."""
    if wanted.offset is not None and wanted.source is None and wanted.position is None:
        offset = wanted.offset
        return lambda applied: applied.offset >= offset
    if wanted.offset is not None or wanted.source is None or wanted.position is None:
        raise _Refused(422, "FeastError", "min_position holds offset, or source and position")
    source = wanted.source
    try:
        lsn = parse_lsn(wanted.position)
    except DecodeError:
        what = f"min_position.position of source {source} must be an LSN of PostgreSQL, such as 0/16B3748; for other sources give an offset"
        raise _Refused(422, "FeastError", what) from None

    def has_passed(applied: Applied) -> bool:
        text = applied.positions.get(source, "").partition(":")[0]
        try:
            return parse_lsn(text) >= lsn
        except DecodeError:
            return False

    return has_passed


def _unreadable(body: bytes) -> _Refused:
    """Of a body that can't be read; a list of features by itself can't say where in the body it stands."""
    reason = "it has another shape"
    try:
        _decode_request(body)
    except msgspec.DecodeError as error:
        reason = str(error)  # msgspec names the field and the kind of value, never the value
    what = f'the body can\'t be read: {reason}; give {{"features": ["view:feature"], "entities": {{"key": [...]}}}}'
    return _Refused(422, "FeastError", what)


def _count_rows(entities: Mapping[str, Sequence[Value]]) -> int:
    lengths = {len(values) for values in entities.values()}
    if len(lengths) != 1:
        raise _Refused(422, "FeastError", "every entry of entities must have the same number of values")
    rows = lengths.pop()
    if rows > MOST_ENTITIES:
        raise _Refused(422, "FeastError", f"{rows} entities in one request, {MOST_ENTITIES} at most")
    return rows


def _entity_keys(view: ViewSpec, entities: Mapping[str, Sequence[Value]], rows: int) -> list[EntityKey]:
    columns: list[list[FeatureValue]] = []
    for field in view.join_keys:
        values = entities.get(field.name)
        if values is None:
            needed = ", ".join(key.name for key in view.join_keys)
            raise _Refused(
                422,
                "EntityDFNotFound",
                f"join key {field.name} is missing in entities: view {view.name} needs {needed}",
            )
        try:
            columns.append([key_part(field.name, field.dtype, value) for value in values])
        except ValueError as error:
            raise _Refused(422, "FeastError", f"join key {error}") from None
    return [tuple([column[row] for column in columns]) for row in range(rows)]


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=_encode(body), status=status, content_type="application/json")
