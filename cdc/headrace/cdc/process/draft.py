"""An event that is being changed: what a step touches is opened, the rest stays the bytes it is. Pure.

A row's images go together: what changes a field of ``properties`` changes it in the old image (``before``) as well, and a renamed column is
renamed in the row's key and in the lists of unchanged and undecodable columns too; otherwise a reader couldn't tell the old from the new.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from headrace.cdc.decode.sdkpayload import Refusal
from headrace.cdc.event import CustomerEvent, key_text
from headrace.cdc.process.fieldpath import GONE, FieldPath, Gone, Node, encoded, find, opened, plain

TREES: Final = frozenset({"properties", "context"})
WORDS: Final = frozenset({"name", "user_id", "anonymous_id", "key"})
"""What a step may write beside the trees."""
READ_WORDS: Final = WORDS | {"kind", "source", "table", "op", "writer"}


class Unfit(Exception):
    """A step can't do to this event what it is for. Its text names places and types, never a value."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.refusal = Refusal(reason, detail)


class Draft:
    """One event on its way through the steps."""

    __slots__ = ("_trees", "_words", "changed", "event", "unchanged", "undecodable")

    def __init__(self, event: CustomerEvent) -> None:
        self.event = event
        self._trees: dict[str, dict[str, Node] | None] = {}
        self._words: dict[str, str | None] = {}
        self.changed: set[str] = set()
        row = event.row
        self.unchanged = () if row is None else row.unchanged
        self.undecodable = () if row is None else row.undecodable

    def tree(self, root: str, *, is_made: bool = False) -> dict[str, Node] | None:
        """``properties``, ``context``, ``before`` or ``row_key``, opened; None where the event has none and is_made is False."""
        tree = self._trees.get(root)
        if tree is None:
            event, row = self.event, self.event.row
            if root == "properties":
                raw: bytes | None = event.properties
            elif root == "context":
                raw = event.context
            elif row is None:
                raw = None
            else:
                raw = row.before if root == "before" else row.key
            if raw is None and not is_made:
                return None
            tree = self._trees[root] = {} if raw is None else opened(msgspec.Raw(raw))
        return tree

    def images(self, root: str) -> list[str]:
        """The trees that a change of this root concerns."""
        if root != "properties" or self.event.row is None:
            return [root]
        if self.event.row.op == "delete":
            return ["before"]
        return ["properties"] if self.event.row.before is None else ["properties", "before"]

    def key_columns(self) -> frozenset[str]:
        """Names of the row's key columns, which its old image must keep."""
        return frozenset(self.tree("row_key") or ())

    def word(self, name: str) -> str | None:
        if name in self._words:
            return self._words[name]
        event = self.event
        if name == "table":
            return None if event.row is None else f"{event.row.schema}.{event.row.table}"
        if name == "op":
            return None if event.row is None else event.row.op
        if name == "writer":
            return None if event.sdk is None else event.sdk.writer
        found: str | None = getattr(event, name)
        return found

    def read(self, path: FieldPath) -> Any:
        """The plain value there; GONE when there is none. An object or array comes opened."""
        if not path.parts:
            word = self.word(path.root)
            return GONE if word is None else word
        tree = self.tree(path.root)
        return GONE if tree is None else plain(find(tree, path.parts))

    def write_word(self, name: str, node: Node | Gone) -> None:
        """user_id and anonymous_id carry the customer key along where it was theirs. Raises Unfit."""
        value = plain(node)
        if value is GONE or value is None:
            text = None
        elif isinstance(value, str | int | float | bool):
            text = key_text(value)
        else:
            raise Unfit("transform_failed", f"an object or array can't become {name}")
        if name == "name" and not text:
            raise Unfit("transform_failed", "an event's name can't be empty")
        self._words[name] = text
        if name in ("user_id", "anonymous_id") and "key" not in self._words:
            former = self.event.user_id or self.event.anonymous_id
            if self.event.key == former:
                self._words["key"] = self.word("user_id") or self.word("anonymous_id")

    def done(self) -> CustomerEvent:
        """The event as it is now; the same object when nothing changed."""
        event = self.event
        changed = self.changed
        if not changed and not self._words:
            return event
        fields: dict[str, Any] = dict(self._words)
        for root in ("properties", "context"):
            if root in changed:
                fields[root] = encoded(self._trees[root])
        row = event.row
        if row is not None and not changed.isdisjoint(("before", "row_key", "lists")):
            parts: dict[str, Any] = {"unchanged": self.unchanged, "undecodable": self.undecodable}
            if "before" in changed:
                parts["before"] = encoded(self._trees["before"])
            if "row_key" in changed:
                parts["key"] = encoded(self._trees["row_key"])
            fields["row"] = msgspec.structs.replace(row, **parts)
        return msgspec.structs.replace(event, **fields)


__all__ = ["READ_WORDS", "TREES", "WORDS", "Draft", "Unfit"]
