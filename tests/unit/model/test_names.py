import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.errors import UsageError
from vmm.model.names import parse_label, valid_name, valid_user


@pytest.mark.parametrize("name", ["a", "dev-1", "A.b_c-9", "x" * 64, "0"])
def test_good_names_pass_unchanged(name: str) -> None:
    assert valid_name(name) == name


@pytest.mark.fault(16)
@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a;rm", "-rf", "a\0b", "x" * 65, "a b", "a\n", "\u0430bc", "é", ".hidden", "a$"],
)
def test_bad_names_are_refused_in_three_parts(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        valid_name(name)
    assert caught.value.brief
    assert caught.value.details
    assert caught.value.resolution
    assert caught.value.exit_code == 2


@pytest.mark.fault(16)
@given(st.text(max_size=80))
def test_whatever_passes_is_safe_in_a_path_and_an_argument(text: str) -> None:
    try:
        name = valid_name(text)
    except UsageError:
        return
    assert name.isascii()
    assert not set(name) & set("/\\ \t\n\0;|&$'\"`<>*?~")
    assert name[0] not in "-."


def test_labels() -> None:
    assert parse_label("project=web") == ("project", "web")
    assert parse_label("empty=") == ("empty", "")
    for bad in ("nokey", "=x", "a b=c", "k=\n"):
        with pytest.raises(UsageError):
            parse_label(bad)


@pytest.mark.fault(16)
def test_users() -> None:
    assert valid_user("root") == "root"
    for bad in ("-oProxyCommand=x", "", "Root", "a b"):
        with pytest.raises(UsageError):
            valid_user(bad)
