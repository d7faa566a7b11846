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
    """schema: of the properties (identify, group: of the traits). violation: in place of the plan's own."""

    schema: Annotated[dict[str, Any], Meta(description="JSON Schema")]
    violation: Violation | None = None


class PlanFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A plan as written. unplanned: what becomes of track events that it doesn't name.

    violation: pass = it goes on and is counted; strip = the properties at fault are taken out, and what then still doesn't fit is
    quarantined; quarantine = it becomes a dead letter.
    """

    track: dict[str, PlannedEvent] = {}
    identify: PlannedEvent | None = None
    page: PlannedEvent | None = None
    screen: PlannedEvent | None = None
    group: PlannedEvent | None = None
    violation: Violation = "quarantine"
    unplanned: Literal["pass", "quarantine"] = "pass"


class Plan:
    """A plan, ready to judge. violations: how many events didn't fit, by what became of them."""

    def __init__(self, file: PlanFile) -> None:
        """Raises ValueError with a line for each schema that is none."""
        self._unplanned = file.unplanned
        self._rules: dict[tuple[str, str], tuple[Any, Violation]] = {}
        self.violations: _Counter = {"pass": 0, "strip": 0, "quarantine": 0}
        problems: list[str] = []
        for place, key, planned in _planned(file):
            try:
                # jsonschema-rs would fetch a reference from the network.
                validator = jsonschema_rs.validator_for(planned.schema, retriever=_refuse)
            except (jsonschema_rs.ValidationError, ValueError) as error:
                problems.append(f"{place}.schema: {str(error).splitlines()[0]}")
                continue
            self._rules[key] = (validator, planned.violation or file.violation)
        if problems:
            raise ValueError("\n".join(problems))

    def judge(self, event: CustomerEvent) -> CustomerEvent | Refusal:
        """The event as it goes on, or why it doesn't."""
        rule = self._rules.get((event.kind, event.name if event.kind == "track" else ""))
        if rule is None:
            if event.kind == "track" and self._unplanned == "quarantine":
                self.violations["quarantine"] += 1
                return Refusal("unplanned", "the plan knows no track event of this name")
            return event
        validator, violation = rule
        properties = _decode(event.properties)
        if validator.is_valid(properties):
            return event
        if violation == "pass":
            self.violations["pass"] += 1
            return event
        errors = list(validator.iter_errors(properties))
        if violation == "strip":
            stripped = _without(properties, errors)
            if validator.is_valid(stripped):
                self.violations["strip"] += 1
                return msgspec.structs.replace(event, properties=_encode(stripped))
        self.violations["quarantine"] += 1
        return Refusal("violation", f"the plan's schema doesn't fit, at {_places(errors)}")


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


def _places(errors: list[Any]) -> str:
    """Up to three places in the schema, such as ``properties/total/type``; of a required one the name it asks for."""
    found: list[str] = []
    for error in errors[:3]:
        place = "/".join(map(str, error.schema_path))
        required = getattr(error.kind, "property", None) if place.endswith("required") else None
        found.append(f"{place} ({required})" if required else place)
    more = len(errors) - len(found)
    return ", ".join(found) + (f" and {more} more" if more else "")
