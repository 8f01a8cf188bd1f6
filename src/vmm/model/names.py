"""The one validator for every name that later becomes part of a path, an argument or a rule."""

from __future__ import annotations

import re

from vmm.errors import UsageError

# The original's rule for machine names; its users' names stay legal.
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_LABEL_KEY = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}"
_LABEL_VALUE = r"[A-Za-z0-9._/:@+ -]{0,255}"
_USER = r"[a-z_][a-z0-9_-]{0,31}"


def valid_name(name: str, *, what: str = "machine") -> str:
    """Return `name` unchanged when it can name a machine, an image or a kernel; raise UsageError otherwise."""
    if not re.fullmatch(_NAME, name):
        raise UsageError(
            f"{name!r} cannot be the name of {_article(what)} {what}.",
            details="A name has 1 to 64 letters, digits, '.', '_' or '-', and starts with a letter or digit.",
            resolution="Choose another name, such as 'dev-1'.",
        )
    return name


def valid_user(user: str) -> str:
    """Return `user` unchanged when it can be a login name inside a guest (the rule of useradd)."""
    if not re.fullmatch(_USER, user):
        raise UsageError(
            f"{user!r} cannot be a user name.",
            details="A user name has 1 to 32 lower-case letters, digits, '_' or '-', and starts with a letter.",
            resolution="Give the guest's user with -u, such as -u root.",
        )
    return user


def parse_label(text: str) -> tuple[str, str]:
    """Split `key=value` and check both sides; raise UsageError when it is no label."""
    key, separator, value = text.partition("=")
    if not separator or not re.fullmatch(_LABEL_KEY, key) or not re.fullmatch(_LABEL_VALUE, value):
        raise UsageError(
            f"{text!r} is not a label.",
            details="A label is KEY=VALUE in letters, digits and . _ / - (a value may hold : @ + and spaces too).",
            resolution="Write it such as --label project=web.",
        )
    return key, value


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"
