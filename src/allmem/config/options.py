"""What all options have in common: they are read from and written to JSON, and a value outside its
range is refused in one line."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from allmem.errors import AllMemError, unknown_name
from allmem.schema import misfit

__all__ = ["Options", "require_choice", "require_positive"]


class Options:
    """Reading from and writing to JSON-able dictionaries, with errors that name the nearest key."""

    state_sizes: ClassVar[tuple[str, ...]] = ()
    """Options that decide how large a memory's state is, the first one leading: what
    ``allmem.mixers.matching`` solves for."""
    parameter_sizes: ClassVar[tuple[str, ...]] = ()
    """Options that decide how many parameters it has beside them."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The options that differ from the defaults, as JSON or YAML gives them.

        Raises:
            AllMemError: on an unknown key, a value of another type than the field has, or one that
                the class refuses.
        """
        names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for key, value in values.items():
            if key not in names:
                raise AllMemError(unknown_name(f"{cls.__name__} key", key, names))
            _check_type(cls, key, value)
        lists = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**lists)

    def to_dict(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def replace(self, **changes: Any) -> Self:
        """A copy with some values changed; validated again."""
        return type(self).from_dict({**self.to_dict(), **changes})


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    """The types of a class's fields; kept, since reading them takes longer than all checks."""
    try:
        return get_type_hints(cls)
    except NameError:
        # Names that are imported for type checkers alone, or stand inside a function.
        return {}


def _check_type(cls: type[Options], name: str, value: Any) -> None:
    # mypy takes the __hash__ of a class's instances for that of the class.
    hint = _hints(cls).get(name, Any)  # type: ignore[arg-type]
    if get_origin(hint) is Literal:
        require_choice(cls.__name__, name, value, get_args(hint))
    elif wrong := misfit(name, value, hint):
        raise AllMemError(f"{cls.__name__}: {wrong}")


def require_positive(owner: str, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and (
            not isinstance(value, int) or isinstance(value, bool) or value < 1
        ):
            raise AllMemError(f"{owner}: {name} = {value!r} must be a positive whole number")


def require_choice(owner: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise AllMemError(f"{owner}: {unknown_name(name, value, choices)}")
