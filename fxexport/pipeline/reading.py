"""Reading ``pipeline.json``: every value is checked for its type, so that a damaged file is an InputError."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fxexport.errors import InputError

FORMAT_VERSION = 1
_WAY_OUT = "the file is damaged or was edited; export again"


def read_version(data: object) -> None:
    """Raises InputError where ``data`` is no pipeline of ours, or one of a newer format."""
    version = data.get("fxexport_pipeline") if isinstance(data, dict) else None
    if type(version) is not int:
        raise InputError("this is no pipeline of fxexport: it lacks the entry 'fxexport_pipeline'")
    if version > FORMAT_VERSION:
        raise InputError(
            f"this pipeline has format version {version}, this fxexport reads up to {FORMAT_VERSION}: update fxexport"
        )
    if version < 1:
        raise InputError(f"there is no pipeline format version {version}; {_WAY_OUT}")


class Record:
    """A JSON object that is read by key; a missing key or a wrong type is an InputError that names it."""

    def __init__(self, data: object, what: str) -> None:
        if not isinstance(data, dict):
            raise InputError(f"{what} must be a JSON object, found {data!r:.80}; {_WAY_OUT}")
        self._data: Mapping[str, Any] = data
        self._what = what

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self._data.items())

    def __getitem__(self, key: str) -> Any:
        if key not in self._data:
            raise InputError(f"{self._what} lacks {key!r}; {_WAY_OUT}")
        return self._data[key]

    def get(self, key: str) -> Any:
        return self._data.get(key)

    def word(self, key: str) -> str:
        return self.text(self[key], f"{key!r} of {self._what}")

    def flag(self, key: str) -> bool:
        value = self[key]
        if not isinstance(value, bool):
            raise InputError(f"{key!r} of {self._what} must be true or false, found {value!r:.80}; {_WAY_OUT}")
        return value

    def items(self, key: str) -> list[Any]:
        return self.sequence(self[key], f"{key!r} of {self._what}")

    def words(self, key: str) -> tuple[str, ...]:
        return tuple(self.text(one, f"an entry of {key!r} of {self._what}") for one in self.items(key))

    def axes(self, key: str) -> tuple[int | str, ...]:
        found = self.items(key)
        for axis in found:
            if type(axis) not in (int, str):
                raise InputError(f"{key!r} of {self._what} must hold sizes and names, found {axis!r:.80}; {_WAY_OUT}")
        return tuple(found)

    @staticmethod
    def text(value: object, what: str) -> str:
        if not isinstance(value, str):
            raise InputError(f"{what} must be text, found {value!r:.80}; {_WAY_OUT}")
        return value

    @staticmethod
    def sequence(value: object, what: str, *, length: int | None = None, least: int = 0) -> list[Any]:
        if not isinstance(value, list) or len(value) < least or (length is not None and len(value) != length):
            raise InputError(f"{what} must be a list, found {value!r:.80}; {_WAY_OUT}")
        return value
