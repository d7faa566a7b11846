"""Tracking plans: what each event's properties must look like, as JSON Schema, and what becomes of one that doesn't.

Pure: a parsed plan and events in, verdicts out. A schema's references are looked for inside it only, never fetched. What a verdict says names
places of the plan, never of the event: those may be anybody's words.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias

import jsonschema_rs
import msgspec
from msgspec import Meta

from headrace.cdc.decode.sdkpayload import Refusal
from headrace.cdc.event import CustomerEvent

Violation: TypeAlias = Literal["pass", "strip", "quarantine"]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_Counter: TypeAlias = dict[str, int]


class PlannedEvent(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """schema: of the properties (identify, group: of the traits). violation: in place of the plan's own. versions: schemas in place of it
    for events that say so (``context.protocols.event_version``).
    """

    schema: Annotated[dict[str, Any], Meta(description="JSON Schema")] = {}
    violation: Violation | None = None
    versions: dict[str, dict[str, Any]] = {}

    def __post_init__(self) -> None:
        if not self.schema and not self.versions:
            raise ValueError("it has neither a schema nor versions")


class PlanFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A plan as written. unplanned: what becomes of track events that it doesn't name.

    violation: pass = it goes on and is counted; strip = the properties at fault are taken out, and what then still doesn't fit is
    quarantined; quarantine = it becomes a dead letter. shadow: everything passes, and what would have become of it is counted.
    """

    track: dict[str, PlannedEvent] = {}
    identify: PlannedEvent | None = None
    page: PlannedEvent | None = None
    screen: PlannedEvent | None = None
    group: PlannedEvent | None = None
    violation: Violation = "quarantine"
    unplanned: Literal["pass", "quarantine"] = "pass"
    shadow: bool = False


class Verdict(msgspec.Struct, frozen=True):
    """What a plan does with an event: what goes on is ``event``, else ``refusal`` says why. places: of the schema, where it doesn't fit."""

    event: CustomerEvent | None
    violation: Violation | None = None
    refusal: Refusal | None = None
    places: tuple[str, ...] = ()


class Plan:
    """A plan, ready to judge. violations: how many events didn't fit, by what became of them; ``shadow`` for what only would have."""

    def __init__(self, file: PlanFile) -> None:
        """Raises ValueError with a line for each schema that is none."""
        self._unplanned = file.unplanned
        self._is_shadow = file.shadow
        self._rules: dict[tuple[str, str, str], tuple[Any, Violation]] = {}
        self._versioned: set[tuple[str, str]] = set()
        self.violations: _Counter = {"pass": 0, "strip": 0, "quarantine": 0, "shadow": 0}
        problems: list[str] = []
        for place, key, planned in _planned(file):
            schemas = {"": planned.schema, **planned.versions}
            if planned.versions:
                self._versioned.add(key)
            for version, schema in schemas.items():
                where = f"{place}.versions.{version}" if version else f"{place}.schema"
                try:
                    # jsonschema-rs would fetch a reference from the network.
                    validator = jsonschema_rs.validator_for(schema, retriever=_refuse)
                except (jsonschema_rs.ValidationError, ValueError) as error:
                    problems.append(f"{where}: {str(error).splitlines()[0]}")
                    continue
                self._rules[(*key, version)] = (validator, planned.violation or file.violation)
        if problems:
            raise ValueError("\n".join(problems))

    def judge(self, event: CustomerEvent) -> CustomerEvent | Refusal:
        """The event as it goes on, or why it doesn't."""
        verdict = self.verdict(event)
        if verdict.violation is None:
            return event
        if self._is_shadow:
            self.violations["shadow"] += 1
            return event
        self.violations[verdict.violation] += 1
        if verdict.event is not None:
            return verdict.event
        assert verdict.refusal is not None
        return verdict.refusal

    def verdict(self, event: CustomerEvent) -> Verdict:
        """What becomes of it but for ``shadow``; nothing is counted."""
        rule = self._rule_of(event)
        if rule is None:
            if event.kind == "track" and self._unplanned == "quarantine":
                refusal = Refusal("unplanned", "the plan knows no track event of this name")
                return Verdict(None, "quarantine", refusal, ("unplanned",))
            return Verdict(event)
        validator, violation = rule
        properties = _decode(event.properties)
        if validator.is_valid(properties):
            return Verdict(event)
        errors = list(validator.iter_errors(properties))
        places = tuple(_place(error) for error in errors)
        if violation == "pass":
            return Verdict(event, "pass", None, places)
        if violation == "strip":
            stripped = _without(properties, errors)
            if validator.is_valid(stripped):
                return Verdict(msgspec.structs.replace(event, properties=_encode(stripped)), "strip", None, places)
        refusal = Refusal("violation", f"the plan's schema doesn't fit, at {_places(places)}")
        return Verdict(None, "quarantine", refusal, places)

    def _rule_of(self, event: CustomerEvent) -> tuple[Any, Violation] | None:
        key = (event.kind, event.name if event.kind == "track" else "")
        if key in self._versioned and event.context is not None:
            found = self._rules.get((*key, _version(event.context)))
            if found is not None:
                return found
        return self._rules.get((*key, ""))


def _version(context: bytes) -> str:
    protocols: Any = _decode(context).get("protocols")
    version: Any = protocols.get("event_version") if isinstance(protocols, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return "" if version is None else str(version)  # pyright: ignore[reportUnknownArgumentType]


def _planned(file: PlanFile) -> Iterator[tuple[str, tuple[str, str], PlannedEvent]]:
    for name, planned in file.track.items():
        yield f"track.{name}", ("track", name), planned
    kinds = {"identify": file.identify, "page": file.page, "screen": file.screen, "group": file.group}
    for kind, of_kind in kinds.items():
        if of_kind is not None:
            yield kind, (kind, ""), of_kind


def _refuse(uri: str) -> Any:
    raise ValueError("a plan's schemas may refer to themselves only")


def _without(properties: dict[str, Any], errors: list[Any]) -> dict[str, Any]:
    """The properties but those, at the top, that an error lies in."""
    gone: set[str] = set()
    for error in errors:
        if error.instance_path:
            gone.add(str(error.instance_path[0]))
        else:
            gone.update(getattr(error.kind, "unexpected", ()))
    return {name: value for name, value in properties.items() if name not in gone}


def _place(error: Any) -> str:
    """In the schema, such as ``properties/total/type``; of a required one the name it asks for."""
    place = "/".join(map(str, error.schema_path))
    required = getattr(error.kind, "property", None) if place.endswith("required") else None
    return f"{place} ({required})" if required else place


def _places(places: tuple[str, ...]) -> str:
    more = len(places) - 3
    return ", ".join(places[:3]) + (f" and {more} more" if more > 0 else "")
