"""Row filters as typed objects: ``(col("status") == "paid") & ~col("total").is_null()``.

A filter follows SQL: a comparison with NULL is unknown, and only a row for which the whole filter is true counts. Pure: a filter is
compiled once into a function over a tuple of column values. A number compares with a column whose value is text (numeric) as exact
decimals; a value that can't be compared is unknown.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Final, NoReturn, TypeAlias

from headrace.cdc.event import Value

Literal: TypeAlias = int | float | bool | str | Decimal
Verdict: TypeAlias = bool | None
Compiled: TypeAlias = Callable[[Sequence[Value]], Verdict]

_COMPARISONS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Predicate:
    """A condition on the columns of one row; combine with ``&``, ``|`` and ``~``."""

    __slots__ = ()

    def __and__(self, other: Predicate) -> Predicate:
        return _Both(self, other)

    def __or__(self, other: Predicate) -> Predicate:
        return _Either(self, other)

    def __invert__(self) -> Predicate:
        return _Not(self)

    def __bool__(self) -> NoReturn:
        raise TypeError(
            'a filter has no truth of its own: combine filters with "&", "|" and "~", each side in parentheses'
        )

    def columns(self) -> frozenset[str]:
        """Names of all columns the filter reads."""
        raise NotImplementedError

    def compile(self, where: Mapping[str, int]) -> Compiled:
        """A function of a row's values; ``where`` gives each column's index in them."""
        raise NotImplementedError

    def plain(self) -> list[Any]:
        """The filter in JSON types: the same filter has the same plain form."""
        raise NotImplementedError


class Column:
    """A column by name, to compare with literals; see ``col``."""

    __slots__ = ("name",)
    __hash__ = None  # type: ignore[assignment]  # == makes a filter, so a column can't be a key

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: Literal) -> Predicate:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Compare(self.name, "==", _checked(other))

    def __ne__(self, other: Literal) -> Predicate:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Compare(self.name, "!=", _checked(other))

    def __lt__(self, other: Literal) -> Predicate:
        return _Compare(self.name, "<", _checked(other))

    def __le__(self, other: Literal) -> Predicate:
        return _Compare(self.name, "<=", _checked(other))

    def __gt__(self, other: Literal) -> Predicate:
        return _Compare(self.name, ">", _checked(other))

    def __ge__(self, other: Literal) -> Predicate:
        return _Compare(self.name, ">=", _checked(other))

    def is_in(self, values: Iterable[Literal]) -> Predicate:
        """The value equals one of these."""
        return _IsIn(self.name, tuple(_checked(value) for value in values))

    def is_null(self) -> Predicate:
        """The value is NULL; never unknown."""
        return _IsNull(self.name)

    def is_true(self) -> Predicate:
        """The value is true: a flag column by itself."""
        return _Compare(self.name, "==", True)


def col(name: str) -> Column:
    """The column of that name in the view's table, for ``where``."""
    if not name or not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # users' files aren't type-checked
        raise TypeError("col() takes the name of a column")
    return Column(name)


def _checked(literal: Any) -> Literal:
    if literal is None:
        raise TypeError("nothing equals NULL: use .is_null()")
    if not isinstance(literal, (int, float, str, Decimal)):
        raise TypeError(f"a column compares with a number, a text or a bool, not with {type(literal).__name__}")
    return literal


def _number(value: Any) -> Decimal | None:
    """Exact number of a column value or a literal, None when it is no number."""
    if isinstance(value, Decimal):
        return value
    try:
        return Decimal(value)  # exact for int, float and text alike
    except (InvalidOperation, ValueError, TypeError):
        return None


def _comparison(index: int, symbol: str, literal: Literal) -> Compiled:
    compare = _COMPARISONS[symbol]
    if isinstance(literal, (str, bool)):
        kinds: tuple[type, ...] = (type(literal),)

        def same_kind(row: Sequence[Value]) -> Verdict:
            value = row[index]
            return compare(value, literal) if isinstance(value, kinds) else None

        return same_kind
    exact = _number(literal)

    def numbers(row: Sequence[Value]) -> Verdict:
        value = row[index]
        if isinstance(value, int) and isinstance(literal, int):
            return compare(value, literal)
        number = None if value is None else _number(value)
        if number is None or exact is None or number.is_nan() or exact.is_nan():
            return None
        return compare(number, exact)

    return numbers


class _Compare(Predicate):
    __slots__ = ("_column", "_literal", "_symbol")

    def __init__(self, column: str, symbol: str, literal: Literal) -> None:
        self._column = column
        self._symbol = symbol
        self._literal = literal

    def columns(self) -> frozenset[str]:
        return frozenset((self._column,))

    def compile(self, where: Mapping[str, int]) -> Compiled:
        return _comparison(where[self._column], self._symbol, self._literal)

    def plain(self) -> list[Any]:
        return [self._symbol, self._column, *_plain_literal(self._literal)]


class _IsIn(Predicate):
    __slots__ = ("_column", "_literals")

    def __init__(self, column: str, literals: tuple[Literal, ...]) -> None:
        self._column = column
        self._literals = literals

    def columns(self) -> frozenset[str]:
        return frozenset((self._column,))

    def compile(self, where: Mapping[str, int]) -> Compiled:
        index = where[self._column]
        tests = [_comparison(index, "==", literal) for literal in self._literals]

        def is_in(row: Sequence[Value]) -> Verdict:
            verdicts = [test(row) for test in tests]
            if True in verdicts:
                return True
            return None if row[index] is None else False

        return is_in

    def plain(self) -> list[Any]:
        return ["in", self._column, *[_plain_literal(literal) for literal in self._literals]]


class _IsNull(Predicate):
    __slots__ = ("_column",)

    def __init__(self, column: str) -> None:
        self._column = column

    def columns(self) -> frozenset[str]:
        return frozenset((self._column,))

    def compile(self, where: Mapping[str, int]) -> Compiled:
        index = where[self._column]
        return lambda row: row[index] is None

    def plain(self) -> list[Any]:
        return ["null", self._column]


class _Pair(Predicate):
    __slots__ = ("_left", "_right")
    symbol = ""

    def __init__(self, left: Predicate, right: Predicate) -> None:
        for side in (left, right):
            if not isinstance(side, Predicate):  # pyright: ignore[reportUnnecessaryIsInstance]  # users' files aren't type-checked
                raise TypeError('each side of "&" and "|" must be a filter; put comparisons in parentheses')
        self._left = left
        self._right = right

    def columns(self) -> frozenset[str]:
        return self._left.columns() | self._right.columns()

    def plain(self) -> list[Any]:
        return [self.symbol, self._left.plain(), self._right.plain()]


class _Both(_Pair):
    __slots__ = ()
    symbol = "and"

    def compile(self, where: Mapping[str, int]) -> Compiled:
        left, right = self._left.compile(where), self._right.compile(where)

        def both(row: Sequence[Value]) -> Verdict:
            one = left(row)
            if one is False:
                return False
            other = right(row)
            return other if one is True or other is False else None

        return both


class _Either(_Pair):
    __slots__ = ()
    symbol = "or"

    def compile(self, where: Mapping[str, int]) -> Compiled:
        left, right = self._left.compile(where), self._right.compile(where)

        def either(row: Sequence[Value]) -> Verdict:
            one = left(row)
            if one is True:
                return True
            other = right(row)
            return other if one is False or other is True else None

        return either


class _Not(Predicate):
    __slots__ = ("_inner",)

    def __init__(self, inner: Predicate) -> None:
        self._inner = inner

    def columns(self) -> frozenset[str]:
        return self._inner.columns()

    def compile(self, where: Mapping[str, int]) -> Compiled:
        inner = self._inner.compile(where)

        def negated(row: Sequence[Value]) -> Verdict:
            verdict = inner(row)
            return None if verdict is None else not verdict

        return negated

    def plain(self) -> list[Any]:
        return ["not", self._inner.plain()]


def _plain_literal(literal: Literal) -> list[Any]:
    """Kind and text, so that 1, 1.0, True and "1" stay four different filters."""
    return [type(literal).__name__, literal if isinstance(literal, (str, bool)) else str(literal)]
