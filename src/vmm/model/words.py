"""How an error quotes what it was given: bounded, and without what could drive a terminal."""

_MOST = 100


def quoted(value: object) -> str:
    """Return the value as an error quotes it: escaped, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."
