"""The steps of ``pipeline.transforms``: which events a step concerns, and what it does to them. Pure, the same for rows and SDK events.

A step is compiled once, and every mistake in it is found then. Heartbeats and schema events are nobody's: no step sees them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any, Final, TypeAlias, cast

import msgspec

from headrace.cdc.config import TransformConfig, TransformWhen
from headrace.cdc.event import CustomerEvent
from headrace.cdc.process.draft import READ_WORDS, TREES, WORDS, Draft, Unfit
from headrace.cdc.process.fieldpath import GONE, FieldPath, Node, find, parse_path, plain, put, visit

Step: TypeAlias = Callable[[Draft], Draft | None]
"""The draft that goes on, None for an event that doesn't. Raises Unfit."""
_Test: TypeAlias = Callable[[Any], bool]

_KINDS: Final = ("identify", "track", "page", "screen", "group", "alias", "record")
_ALL: Final = 1 << 64


class Problems(Exception):
    """lines: each mistake with its path below the step's."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


def compile_step(config: TransformConfig) -> Step:
    """Raises Problems."""
    problems: list[str] = []
    when = _compile_when(config.when, problems)
    step = _compile_action(config, problems)
    if problems:
        raise Problems(problems)
    assert step is not None
    return step if when is None else _only(when, step)


def compile_when(config: TransformWhen) -> Callable[[Draft], bool] | None:
    """None when it concerns every event. Raises Problems."""
    problems: list[str] = []
    when = _compile_when(config, problems)
    if problems:
        raise Problems(problems)
    return when


def only(when: Callable[[Draft], bool] | None, step: Step) -> Step:
    """The step, for events that when concerns."""
    return step if when is None else _only(when, step)


def in_turn(steps: Sequence[Step]) -> Step:
    """Several as one; none of them drops events."""

    def each(draft: Draft) -> Draft | None:
        for step in steps:
            step(draft)
        return draft

    return each


def _only(when: Callable[[Draft], bool], step: Step) -> Step:
    def only(draft: Draft) -> Draft | None:
        return step(draft) if when(draft) else draft

    return only


def _compile_when(config: TransformWhen, problems: list[str]) -> Callable[[Draft], bool] | None:
    names, kinds, tables = frozenset(config.names), frozenset(config.kinds), frozenset(config.tables)
    problems += [
        f'when.kinds: "{kind}" is no kind of event; known: {", ".join(_KINDS)}'
        for kind in config.kinds
        if kind not in _KINDS
    ]
    tests: list[tuple[FieldPath, _Test]] = []
    for text, condition in config.where.items():
        path = _path(text, f"when.where.{text}", problems, words=READ_WORDS)
        try:
            test = _test(condition)
        except ValueError as error:
            problems.append(f"when.where.{text}: {error}")
            continue
        if path is not None:
            tests.append((path, test))
    if not (names or kinds or tables or tests):
        return None

    def when(draft: Draft) -> bool:
        if kinds and draft.event.kind not in kinds:
            return False
        if names and draft.word("name") not in names:
            return False
        if tables:
            row = draft.event.row
            if row is None or (row.table not in tables and f"{row.schema}.{row.table}" not in tables):
                return False
        return all(test(draft.read(path)) for path, test in tests)

    return when


def _test(condition: Any) -> _Test:
    """Raises ValueError."""
    if isinstance(condition, list):
        return lambda value: any(_equal(value, one) for one in condition)  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(condition, dict):
        return lambda value: _equal(value, condition)
    tests: list[_Test] = []
    for word, operand in condition.items():  # pyright: ignore[reportUnknownVariableType]
        tests.append(_one_test(str(word), operand))  # pyright: ignore[reportUnknownArgumentType]
    return lambda value: all(test(value) for test in tests)


def _one_test(word: str, operand: Any) -> _Test:
    match word:
        case "is":
            return lambda value: _equal(value, operand)
        case "not":
            others = operand if isinstance(operand, list) else [operand]  # pyright: ignore[reportUnknownVariableType]
            return lambda value: not any(_equal(value, one) for one in others)  # pyright: ignore[reportUnknownVariableType]
        case "exists" if isinstance(operand, bool):
            return lambda value: (value is not GONE and value is not None) is operand
        case "matches" if isinstance(operand, str):
            try:
                pattern = re.compile(operand)
            except re.error as error:
                raise ValueError(f"matches: {error} in the pattern") from None
            return lambda value: isinstance(value, str) and pattern.search(value) is not None
        case "above" | "below" | "at_least" | "at_most" if _is_number(operand):
            return _compared(word, operand)
        case "exists" | "matches" | "above" | "below" | "at_least" | "at_most":
            wanted = {"exists": "true or false", "matches": "a text"}.get(word, "a number")
            raise ValueError(f"{word}: must be {wanted}")
        case _:
            raise ValueError(f'unknown test "{word}"; known: above, at_least, at_most, below, exists, is, matches, not')


def _compared(word: str, limit: float) -> _Test:
    def test(value: Any) -> bool:
        if not _is_number(value):
            return False
        if word == "above":
            return bool(value > limit)
        if word == "below":
            return bool(value < limit)
        return bool(value >= limit) if word == "at_least" else bool(value <= limit)

    return test


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(value: Any, wanted: Any) -> bool:
    """As JSON: true isn't 1, and a field that isn't there equals nothing."""
    return value is not GONE and isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


def _path(
    text: str, place: str, problems: list[str], *, words: frozenset[str] = WORDS, is_one: bool = True
) -> FieldPath | None:
    try:
        path = parse_path(text, TREES, words)
    except ValueError as error:
        problems.append(f"{place}: {error}")
        return None
    if is_one and not path.is_one:
        problems.append(f"{place}: * can't stand here, since it must be one place")
        return None
    return path


def _compile_action(config: TransformConfig, problems: list[str]) -> Step | None:
    if config.drop:
        return lambda draft: None
    if config.sample is not None:
        return _sample(config.sample)
    if config.name is not None:
        return _rename_event(config.name)
    if config.rename:
        return _rename(config.rename, problems)
    if config.set:
        return _set(config.set, problems)
    if config.remove:
        paths = [_path(text, f"remove[{at}]", problems, is_one=False) for at, text in enumerate(config.remove)]
        return _remove([path for path in paths if path is not None], problems)
    kept = [_path(text, f"keep[{at}]", problems) for at, text in enumerate(config.keep)]
    return _keep([path for path in kept if path is not None], problems)


def _sample(rate: float) -> Step:
    limit = int(rate * _ALL)

    def sample(draft: Draft) -> Draft | None:
        return draft if fraction(draft) < limit else None

    return sample


def fraction(draft: Draft) -> int:
    """0 to 2**64: the same for all events of a customer, on every machine; of an event without one, the event's own."""
    key = draft.word("key")
    return int.from_bytes(blake2b((draft.event.id if key is None else key).encode(), digest_size=8).digest())


def _rename_event(name: str) -> Step:
    def rename_event(draft: Draft) -> Draft:
        draft.write_word("name", name)
        return draft

    return rename_event


def _rename(pairs: dict[str, str], problems: list[str]) -> Step:
    moves: list[tuple[FieldPath, FieldPath]] = []
    for text, target in pairs.items():
        source = _path(text, f"rename.{text}", problems)
        path = _path(target, f"rename.{text}", problems)
        if source is None or path is None:
            continue
        if not source.parts:
            problems.append(f"rename.{text}: only fields can be renamed; use set: {{{target}: {{from: {text}}}}}")
        else:
            moves.append((source, path))

    def rename(draft: Draft) -> Draft:
        for source, target in moves:
            if target.parts and source.root == target.root:
                for image in draft.images(source.root):
                    _move(draft, image, source.parts, target)
                if (
                    source.root == "properties"
                    and draft.event.row is not None
                    and len(source.parts) == len(target.parts) == 1
                ):
                    _rename_column(draft, source.parts[0], target.parts[0])
                continue
            tree = draft.tree(source.root)
            value = GONE if tree is None else _take(tree, source.parts)
            if value is not GONE:
                draft.changed.add(source.root)
                _write(draft, target, value)
        return draft

    return rename


def _move(draft: Draft, image: str, source: tuple[str, ...], target: FieldPath) -> None:
    tree = draft.tree(image)
    if tree is None:
        return
    value = _take(tree, source)
    if value is GONE:
        return
    if not put(tree, target.parts, value):
        raise Unfit("transform_failed", f"{target.text} lies in something that is no object")
    draft.changed.add(image)


def _rename_column(draft: Draft, former: str, name: str) -> None:
    key = draft.tree("row_key")
    if key is not None and former in key:
        renamed = {name if column == former else column: value for column, value in key.items()}
        key.clear()
        key.update(renamed)
        draft.changed.add("row_key")
    if former in draft.unchanged or former in draft.undecodable:
        draft.unchanged = tuple([name if column == former else column for column in draft.unchanged])
        draft.undecodable = tuple([name if column == former else column for column in draft.undecodable])
        draft.changed.add("lists")


def _take(tree: dict[str, Node], parts: tuple[str, ...]) -> Node:
    parent = find(tree, parts[:-1])
    return parent.pop(parts[-1], GONE) if isinstance(parent, dict) else GONE  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]


def _write(draft: Draft, path: FieldPath, value: Node) -> None:
    if not path.parts:
        draft.write_word(path.root, value)
        return
    tree = draft.tree(path.root, is_made=True)
    assert tree is not None
    if not put(tree, path.parts, value):
        raise Unfit("transform_failed", f"{path.text} lies in something that is no object")
    draft.changed.add(path.root)


def _set(values: dict[str, Any], problems: list[str]) -> Step:
    settings: list[tuple[FieldPath, FieldPath | None, Any]] = []
    for text, value in values.items():
        path = _path(text, f"set.{text}", problems)
        source: FieldPath | None = None
        if isinstance(value, dict) and set(value) == {"from"}:  # pyright: ignore[reportUnknownArgumentType]
            source = _path(str(value["from"]), f"set.{text}.from", problems, words=READ_WORDS)  # pyright: ignore[reportUnknownArgumentType]
            if source is None:
                continue
        if path is not None:
            settings.append((path, source, cast("Any", value)))

    def set_(draft: Draft) -> Draft:
        for path, source, value in settings:
            if path.root == "properties" and draft.event.row is not None:
                _set_images(draft, path, source, value)
                continue
            found = value if source is None else draft.read(source)
            if found is not GONE:
                _write(draft, path, found)
        return draft

    return set_


def _set_images(draft: Draft, path: FieldPath, source: FieldPath | None, value: Any) -> None:
    """In each image from its own fields, so that the old one says what the event before it said."""
    for image in draft.images("properties"):
        tree = draft.tree(image)
        if tree is None:
            continue
        if source is None:
            found = value
        elif source.root == "properties" and source.parts:
            found = plain(find(tree, source.parts))
        else:
            found = draft.read(source)
        if found is GONE:
            continue
        if not put(tree, path.parts, found):
            raise Unfit("transform_failed", f"{path.text} lies in something that is no object")
        draft.changed.add(image)


def _remove(paths: list[FieldPath], problems: list[str]) -> Step:
    for path in paths:
        if path.root == "name":
            problems.append("remove: an event's name can't be removed")

    def remove(draft: Draft) -> Draft:
        for path in paths:
            if not path.parts:
                draft.write_word(path.root, None)
                continue
            for image in draft.images(path.root):
                tree = draft.tree(image)
                if tree is None:
                    continue
                held = {} if image != "before" else {name: tree[name] for name in draft.key_columns() if name in tree}
                if visit(tree, path.parts, _gone):
                    draft.changed.add(image)
                    tree.update(held)
            if path.root == "properties" and len(path.parts) == 1:
                _forget_columns(draft, path.parts[0].__ne__)
        return draft

    return remove


def _gone(_: Node) -> Any:
    return GONE


def _forget_columns(draft: Draft, stays: Callable[[str], bool]) -> None:
    unchanged = tuple([name for name in draft.unchanged if stays(name)])
    undecodable = tuple([name for name in draft.undecodable if stays(name)])
    if len(unchanged) != len(draft.unchanged) or len(undecodable) != len(draft.undecodable):
        draft.unchanged, draft.undecodable = unchanged, undecodable
        draft.changed.add("lists")


def _keep(paths: list[FieldPath], problems: list[str]) -> Step:
    by_root: dict[str, list[tuple[str, ...]]] = {}
    for path in paths:
        if not path.parts:
            problems.append(f"keep: {path.text} always stays; name fields, such as properties.total")
        by_root.setdefault(path.root, []).append(path.parts)
    columns = frozenset(parts[0] for parts in by_root.get("properties", ()) if parts)

    def keep(draft: Draft) -> Draft:
        for root, kept in by_root.items():
            for image in draft.images(root):
                tree = draft.tree(image)
                if tree is None:
                    continue
                found: dict[str, Node] = {}
                if image == "before":
                    found = {name: tree[name] for name in draft.key_columns() if name in tree}
                for parts in kept:
                    value = find(tree, parts)
                    if value is not GONE:
                        put(found, parts, value)
                tree.clear()
                tree.update(found)
                draft.changed.add(image)
            if root == "properties":
                _forget_columns(draft, columns.__contains__)
        return draft

    return keep


def run_steps(steps: Iterable[Step], event: CustomerEvent) -> CustomerEvent | None:
    """The event after all steps, None when one dropped it. Raises Unfit."""
    draft: Draft | None = Draft(event)
    for step in steps:
        assert draft is not None
        try:
            draft = step(draft)
        except (msgspec.DecodeError, RecursionError):
            raise Unfit("transform_failed", "the event's JSON can't be opened") from None
        if draft is None:
            return None
    assert draft is not None
    return draft.done()


__all__ = ["Problems", "Step", "compile_step", "compile_when", "fraction", "run_steps"]
