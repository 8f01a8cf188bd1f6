"""Values behave as frozen dataclasses do."""

import pickle

import pytest

from vmm.model.value import Value, replace


class Point(Value):
    """A point."""

    x: int
    y: int = 0


class Named(Point):
    name: str


def test_fields_and_defaults() -> None:
    assert (Point(x=1).x, Point(x=1).y) == (1, 0)
    assert Named(x=1, name="n").y == 0
    assert repr(Named(x=1, name="n")) == "Named(x=1, y=0, name='n')"


@pytest.mark.parametrize("given", [{}, {"y": 1}, {"x": 1, "z": 2}, {"x": 1, "y": 2, "z": 3}])
def test_wrong_fields_are_refused(given: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="Point is given wrong fields"):
        Point(**given)


def test_they_do_not_change() -> None:
    point = Point(x=1)
    with pytest.raises(AttributeError, match=r"Point\.x cannot be set"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="cannot be deleted"):
        del point.x
    with pytest.raises(AttributeError):
        point.z = 2  # type: ignore[attr-defined]


def test_equality_and_hash() -> None:
    assert Point(x=1, y=2) == Point(y=2, x=1)
    assert hash(Point(x=1, y=2)) == hash(Point(y=2, x=1))
    assert Point(x=1) != Point(x=2)
    assert Point(x=1) != (1, 0)
    assert Named(x=1, name="n") != Point(x=1)
    assert len({Point(x=1), Point(x=1)}) == 1


def test_replace() -> None:
    point = Point(x=1)
    assert replace(point, y=5) == Point(x=1, y=5)
    assert point.y == 0
    with pytest.raises(TypeError):
        replace(point, z=1)


def test_they_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(Point(x=1))) == Point(x=1)
