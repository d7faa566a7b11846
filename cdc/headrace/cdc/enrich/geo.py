"""Where an address is, by a file of MaxMind's format (GeoLite2, DB-IP, ...); maxminddb behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def locator(path: Path) -> Callable[[str], dict[str, Any]]:
    """A function from an address to what is known of its place, in the words of Segment's context.location.

    Raises ValueError when the library is missing or the file is none. The file is read into memory once.
    """
    try:
        import maxminddb
    except ImportError as error:
        raise ValueError("locate needs the extra: pip install 'headrace[enrich]'") from error
    try:
        database: Any = maxminddb.open_database(str(path), maxminddb.MODE_MEMORY)  # pyright: ignore[reportUnknownMemberType]
    except (OSError, maxminddb.InvalidDatabaseError) as error:
        raise ValueError(f"{path} is no MaxMind database: {error}") from error

    def locate(address: str) -> dict[str, Any]:
        try:
            found: Any = database.get(address)
        except ValueError:
            return {}  # no address
        return _place(found)

    return locate


def _place(found: Any) -> dict[str, Any]:
    place = {
        "country": _at(found, "country", "iso_code"),
        "region": _at(found, "subdivisions", 0, "iso_code"),
        "city": _at(found, "city", "names", "en"),
        "latitude": _at(found, "location", "latitude"),
        "longitude": _at(found, "location", "longitude"),
        "timezone": _at(found, "location", "time_zone"),
    }
    return {name: value for name, value in place.items() if value is not None}


def _at(found: Any, *path: str | int) -> Any:
    for part in path:
        try:
            found = found[part]
        except (KeyError, IndexError, TypeError):
            return None
    return found


__all__ = ["locator"]
