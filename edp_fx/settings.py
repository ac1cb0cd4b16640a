"""Groups of settings: frozen dataclasses that check their own values, and can be written down and read back."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Union, get_args, get_origin, get_type_hints

from edp_fx.errors import EdpError

if TYPE_CHECKING:
    from typing_extensions import Self

_HINTS: dict[Any, dict[str, Any]] = {}
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Bounds:
    """What a value may be, beside its type: a range of a number, or one of some names."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    choices: Collection[str] | None = None

    def allow(self, value: Any) -> bool:
        """Whether ``value`` (each of its entries, where it has several) is within them."""
        if isinstance(value, tuple):
            return all(self.allow(entry) for entry in value)
        if isinstance(value, str):
            return self.choices is None or value in self.choices
        if isinstance(value, int | float) and not isinstance(value, bool):
            within = self.least <= value <= self.most and self.above < value < self.below
            return within and math.isfinite(value)
        return True

    def __str__(self) -> str:
        if self.choices is not None:
            return "one of " + ", ".join(self.choices)
        parts = [f"above {self.above:g}"] if self.above > -math.inf else []
        parts += [f"from {self.least:g}"] if self.least > -math.inf else []
        parts += [f"to {self.most:g}"] if self.most < math.inf else []
        parts += [f"below {self.below:g}"] if self.below < math.inf else []
        return " ".join(parts) + (" on" if len(parts) == 1 and self.least > -math.inf else "")


def bounded(default: Any = dataclasses.MISSING, **bounds: Any) -> Any:
    """A dataclass field with :class:`Bounds`; without a default it must be given."""
    return dataclasses.field(default=default, metadata={"bounds": Bounds(**bounds)})


class Settings:
    """Base of a frozen dataclass whose values are checked when it is made.

    The type of a field and its :func:`bounded` say what it takes.

    Attributes:
        error: what a wrong value or an unknown name raises.
        what: what the group is called in messages.
    """

    error: ClassVar[type[EdpError]] = EdpError
    what: ClassVar[str] = "settings"

    def __post_init__(self) -> None:
        for field in _fields(type(self)).values():
            object.__setattr__(self, field.name, self.checked(field.name, getattr(self, field.name), text=False))

    @classmethod
    def checked(cls, name: str, value: Any, *, text: bool = True) -> Any:
        """``value`` as the field ``name`` takes it, from text too where ``text``.

        Raises:
            EdpError: the field is unknown, or does not take the value.
        """
        field = cls.field(name)
        hint, bounds = _hints(cls)[name], field.metadata.get("bounds", Bounds())
        try:
            result = _typed(value, hint, text)
        except TypeError:
            result = ...
        if result is ... or not bounds.allow(result):
            odd = next((one for one in result if not bounds.allow(one)), value) if isinstance(result, tuple) else value
            meant = near(odd, bounds.choices or ())
            raise cls.error(f"{name}={_shown(value)}: give {_expected(hint, bounds)}{meant}")
        return result

    @classmethod
    def field(cls, name: str) -> dataclasses.Field[Any]:
        """The field ``name``.

        Raises:
            EdpError: there is none; names that are near are offered.
        """
        known = _fields(cls)
        if name not in known:
            hint = near(name, known) or "; it has " + ", ".join(known)
            raise cls.error(f"{cls.what} has no {name!r}{hint}")
        return known[name]

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The fields' names."""
        return tuple(_fields(cls))

    def changed(self, **changes: Any) -> Self:
        """The same with some fields changed.

        Raises:
            EdpError: an unknown field, or a value it does not take.
        """
        for name in changes:
            self.field(name)
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def differing(self, other: Self) -> list[str]:
        """Names of the fields in which two groups differ."""
        return [name for name in self.names() if getattr(self, name) != getattr(other, name)]

    def plain(self) -> dict[str, Any]:
        """All fields as values that JSON and YAML can hold."""
        return {name: _plain(getattr(self, name)) for name in self.names()}

    @classmethod
    def read(cls, values: Any) -> Self:
        """The inverse of :meth:`plain`, for some of the fields or all.

        Raises:
            EdpError: not a mapping, an unknown field, or a value it does not take.
        """
        if not isinstance(values, Mapping):
            raise cls.error(f"{cls.what}: give names and values, not {_shown(values)}")
        return cls(**{str(name): cls.checked(str(name), value) for name, value in values.items()})


def near(name: Any, names: Iterable[str]) -> str:
    """``; did you mean …?`` where one of ``names`` is near, else nothing."""
    found = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def _hints(cls: Any) -> dict[str, Any]:
    if cls not in _HINTS:  # the types are written as text, and each would be compiled
        _HINTS[cls] = get_type_hints(cls)
    return _HINTS[cls]


def _fields(cls: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls)}


def _typed(value: Any, hint: Any, text: bool) -> Any:
    """``value`` as ``hint`` asks. Raises TypeError where it cannot be."""
    if isinstance(hint, types.UnionType) or get_origin(hint) is Union:
        members = get_args(hint)
        if type(None) in members and (value is None or (text and str(value).lower() == "none")):
            return None
        for member in members:
            try:
                return _typed(value, member, text)
            except TypeError:
                continue
        raise TypeError
    if get_origin(hint) is tuple:
        if text and isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, list | tuple):
            raise TypeError
        return tuple(_typed(entry, get_args(hint)[0], text) for entry in value)
    if isinstance(hint, type) and issubclass(hint, Settings) and text and isinstance(value, Mapping):
        return hint.read(value)
    if hint in (bool, int, float):
        return _number(value, hint, text)
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    raise TypeError


def _number(value: Any, hint: type, text: bool) -> Any:
    if text and isinstance(value, str):
        if hint is bool:
            value = {word: word in TRUE for word in TRUE + FALSE}.get(value.lower())
        else:
            try:
                return hint(value)
            except ValueError as error:
                raise TypeError from error
    if isinstance(value, bool) != (hint is bool) or not isinstance(value, int if hint is int else int | float):
        raise TypeError
    return hint(value)


def _expected(hint: Any, bounds: Bounds) -> str:
    members = get_args(hint) if isinstance(hint, types.UnionType) or get_origin(hint) is Union else (hint,)
    first = members[0]
    if bounds.choices is not None:
        text = str(bounds) if get_origin(first) is not tuple else f"names, each {bounds}"
    elif first in (int, float):
        text = f"{'a whole number' if first is int else 'a number'} {bounds}".rstrip()
    elif get_origin(first) is tuple:
        text = "a list of names"
    else:
        text = {bool: "true or false", str: "a text"}.get(first, getattr(first, "__name__", str(first)))
    return text + (" (or none)" if type(None) in members else "")


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value if value.strip() else repr(value)
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.plain()
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, bool | int | float | str) else type(value).__name__
