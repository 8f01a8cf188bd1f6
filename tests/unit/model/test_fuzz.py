"""Whatever a validator lets through is safe where it ends up: in a path, an argument list, an nft or ip command."""

import string
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vmm.errors import UsageError
from vmm.model.names import parse_label, valid_name, valid_user
from vmm.model.network import Protocol, checked_resolver, parse_forward
from vmm.model.sizes import parse_mib

pytestmark = pytest.mark.fault(16)

# What shells, option parsers, paths, SQL, nft's and ip's languages, resolv.conf and terminals take for more than text.
NASTY = [
    *"\0\n\r\t\v\f \x1b\x7f\x85\xa0\u2028\u202e\ufeff/\\;|&$`'\"<>(){}[]*?!#~%^,=:@+-._", "..", "../", "--", "-rf", "%eth0",
    "% a", "\n0.0.0.0", "$(id)", "; drop table", "/udp", "/../", "0x10", "1e3", "\u0430", "\uff11", "\u0661", "\U0001d7d8", "é", "K",
]  # fmt: skip
GOOD = ["dev-1", "root", "a", "project=web", "k=", "8080:80", "127.0.0.1:8080:80", "53:53/udp", "1.1.1.1", "fe80::1",
        "::ffff:1.2.3.4", "512", "2G", "1TiB", "x" * 64, "9" * 12]  # fmt: skip


@st.composite
def nearly_good(draw: st.DrawFn) -> str:
    """A good text with something nasty somewhere in it."""
    text = draw(st.sampled_from(GOOD))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from(NASTY)) + text[at:]
    return text


texts = nearly_good() | st.text(max_size=300) | st.sampled_from(GOOD) | st.text(string.printable, max_size=20)


def accepted(validator: Callable[[str], object], text: str) -> object | None:
    """Return what the validator makes of `text`, None when it refuses it; anything but a UsageError is a bug."""
    try:
        return validator(text)
    except UsageError as error:
        refusal = error
    for part in (refusal.brief, refusal.details, refusal.resolution):
        assert part
        # It goes to a terminal: what was typed is in it as a literal, without its power.
        assert not set(part) & set("\0\n\r\x1b\x85\u2028\u202e")
    return None


def assert_a_word(text: str) -> None:
    """Assert that a text is one plain word in every language that it will be part of."""
    assert text
    assert text.isascii()
    assert text.isprintable()
    assert not text.startswith("-")
    assert not set(text) & set(" \t\n\0/\\;|&$`'\"<>(){}[]*?!#~%^,=")


@given(texts, st.sampled_from(["machine", "image", "kernel"]))
@settings(max_examples=500)
def test_names(text: str, what: str) -> None:
    name = accepted(lambda given: valid_name(given, what=what), text)
    if name is not None:
        assert name == text
        assert_a_word(str(name))
        assert str(name)[0] != "."
        assert len(str(name)) <= 64


@given(texts)
@settings(max_examples=500)
def test_users(text: str) -> None:
    user = accepted(valid_user, text)
    if user is not None:
        assert user == text
        assert_a_word(str(user))
        # ssh reads user@host; a guest's passwd separates with colons.
        assert not set(str(user)) & set("@:.")


@given(texts | st.builds(lambda key, value: f"{key}={value}", texts, texts))
@settings(max_examples=500)
def test_labels(text: str) -> None:
    label = accepted(parse_label, text)
    if label is not None:
        assert isinstance(label, tuple)
        key, value = label
        assert f"{key}={value}" == text
        assert_a_word(key.replace("/", ""))
        assert not key.startswith("/")
        # A value may have spaces; labels go into the database and into JSON, nowhere else.
        assert value.isascii()
        assert value == "" or value.isprintable()
        assert not set(value) & set("\0\n'\"`$\\;|&<>")


@given(texts | st.builds(lambda a, b, c: f"{a}:{b}:{c}", texts, texts, texts))
@example("1" * 5000 + ":1")
@example("0:80")
@example("65536:80")
@settings(max_examples=500)
def test_forwards(text: str) -> None:
    forward = accepted(lambda given: parse_forward("m", given), text)
    if forward is not None:
        assert 1 <= forward.host_port <= 65535
        assert 1 <= forward.guest_port <= 65535
        assert forward.protocol in Protocol
        assert str(IPv4Address(forward.host_address)) == forward.host_address
        assert_a_word(forward.host_address)


@given(texts)
@example("fe80::1%eth0\nnameserver 6.6.6.6")
@settings(max_examples=500)
def test_resolvers(text: str) -> None:
    resolver = accepted(checked_resolver, text)
    if resolver is not None:
        assert_a_word(str(resolver))
        assert str(ip_address(str(resolver))) == resolver


@given(texts)
@settings(max_examples=500)
def test_sizes(text: str) -> None:
    size = accepted(parse_mib, text)
    if size is not None:
        assert isinstance(size, int)
        assert 0 <= size <= 10**12 * 1024 * 1024
