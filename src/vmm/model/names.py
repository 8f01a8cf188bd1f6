"""The one validator for every name that later becomes part of a path, an argument or a rule."""

from __future__ import annotations

import re

from vmm.errors import UsageError
from vmm.model.words import quoted

# The original's rule for machine names; its users' names stay legal.
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_LABEL_KEY = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}"
_LABEL_VALUE = r"[A-Za-z0-9._/:@+ -]{0,255}"
_USER = r"[a-z_][a-z0-9_-]{0,31}"
# The kernel's rule for link names: up to 15 bytes (IFNAMSIZ 16), no slash, no white space; and none that looks like an
# option, or like a part of a rule.
_OWN_LINK = r"[A-Za-z0-9][A-Za-z0-9_-]{0,14}"
_LINK = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,14}"


def valid_name(name: str, *, what: str = "machine") -> str:
    """Return `name` unchanged when it can name a machine, an image or a kernel; raise UsageError otherwise."""
    if not re.fullmatch(_NAME, name):
        raise UsageError(
            f"{quoted(name)} cannot be the name of {_article(what)} {what}.",
            details="A name has 1 to 64 letters, digits, '.', '_' or '-', and starts with a letter or digit.",
            resolution="Choose another name, such as 'dev-1'.",
        )
    return name


def valid_user(user: str, *, what: str = "user") -> str:
    """Return `user` unchanged when it can be the name of a user, or of a group (the rule of useradd)."""
    if not re.fullmatch(_USER, user):
        raise UsageError(
            f"{quoted(user)} cannot be a {what} name.",
            details=f"A {what} name has 1 to 32 lower-case letters, digits, '_' or '-', the first no digit.",
            resolution="Give the guest's user with -u, such as -u root." if what == "user" else "See: getent group",
        )
    return user


def parse_label(text: str) -> tuple[str, str]:
    """Split `key=value` and check both sides; raise UsageError when it is no label."""
    key, separator, value = text.partition("=")
    if not separator or not re.fullmatch(_LABEL_KEY, key) or not re.fullmatch(_LABEL_VALUE, value):
        raise UsageError(
            f"{quoted(text)} is not a label.",
            details="A label is KEY=VALUE in letters, digits and . _ / - (a value may hold : @ + and spaces too).",
            resolution="Write it such as --label project=web.",
        )
    return key, value


def valid_link(name: str, *, what: str, own: bool = False) -> str:
    """Return `name` unchanged when it can name a link of the host's network; `own` is one that vmm makes."""
    if not re.fullmatch(_OWN_LINK if own else _LINK, name):
        besides = "'-' or '_'" if own else "'-', '_', '.' or ':'"
        raise UsageError(
            f"{quoted(name)} cannot be the name of a {what}.",
            details=f"A link's name has 1 to 15 letters, digits, {besides}, a letter or digit first.",
            resolution="Choose another, such as vmm-br0." if own else "See the links of this host: ip -br link",
        )
    return name


def valid_url(url: str, *, what: str) -> str:
    """Return `url` unchanged when it can be the address of something to fetch."""
    if url.startswith(("https://", "http://")) and url.isascii() and url.isprintable() and " " not in url:
        return url
    raise UsageError(
        f"{quoted(url)} cannot be {what}.",
        details="It must begin with https:// or http://, and have no blanks.",
        resolution=f"Give another, or take it off: sudo vmm config set {what} ''",
    )


def valid_path(path: str, *, what: str, absolute: bool = False) -> str:
    """Return `path` unchanged when it can name a file; with `absolute` it must begin with a slash, and be printable.

    That is for a path which others will go by too, such as systemd: they stand elsewhere, and read it from a line.
    """
    if path and "\0" not in path and (not absolute or (path.startswith("/") and path.isprintable())):
        return path
    needed = "a path that begins with '/', in printable characters" if absolute else "a path, and not an empty one"
    raise UsageError(
        f"{quoted(path)} cannot be the path of {what}.",
        details=f"It must be {needed}.",
        resolution="Give another path.",
    )


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"
