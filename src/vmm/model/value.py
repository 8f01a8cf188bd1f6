"""Frozen values: what a frozen dataclass gives, without what making one costs.

`dataclasses` imports `inspect` (5 ms) and compiles six functions for each class (0.35 ms); the way from `vmm start` to
a running guest passes 25 such classes. Here nothing is compiled: `vmm start` takes 60 ms and not 80. Type checkers see
dataclasses, by PEP 681.
"""

from __future__ import annotations

from vmm import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, ClassVar, NoReturn, TypeVar, dataclass_transform

    AnyValue = TypeVar("AnyValue", bound="Value")
else:

    def dataclass_transform(**_):  # noqa: ANN003, ANN201  # typing's own, without importing typing
        return lambda cls: cls


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Value:
    """A value with the annotated fields of its class, given by keyword; equal to another of its class with the same.

    A default must itself be immutable: all instances share it.
    """

    _fields: ClassVar[tuple[str, ...]] = ()
    _names: ClassVar[frozenset[str]] = frozenset()
    _defaults: ClassVar[dict[str, object]] = {}

    def __init_subclass__(cls) -> None:
        names = tuple(cls.__annotations__)
        cls._fields = (*cls._fields, *names)
        cls._names = frozenset(cls._fields)
        cls._defaults = {**cls._defaults, **{name: cls.__dict__[name] for name in names if name in cls.__dict__}}

    def __init__(self, **given: Any) -> None:  # noqa: ANN401  # each class has its own fields
        if given.keys() != self._names:
            given = {**self._defaults, **given}
            if given.keys() != self._names:
                wrong = sorted(given.keys() ^ self._names)
                raise TypeError(f"{type(self).__name__} is given wrong fields, or not all: {', '.join(wrong)}")
        self.__dict__.update(given)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be set: values do not change")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be deleted: values do not change")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__[name] for name in self._fields))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={self.__dict__[name]!r}" for name in self._fields)
        return f"{type(self).__name__}({shown})"


def replace(value: AnyValue, **changes: Any) -> AnyValue:  # noqa: ANN401  # the fields of its class
    """Return the value with some of its fields changed; TypeError for a field that it does not have."""
    return type(value)(**{**value.__dict__, **changes})
