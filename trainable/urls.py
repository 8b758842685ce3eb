"""URLs as others may read them: passwords are hidden in what is shown, and not kept in files."""

import re
from collections.abc import Callable
from urllib.parse import unquote

_SECRET = re.compile(
    r".*(password|passwd|passphrase|pwd|secret|token|signature|credential|authorization|bearer"
    r"|jwt|connection_?string|(api|access|account|private|shared|master)[_-]?key).*"
    r"|(.*[_-])?(pass|pw|sig|key|auth)",
    re.IGNORECASE,
)
_QUERY_VALUE = re.compile(r"""([?&;#]([\w.%~-]+)=)([^\s&'"]*)""")
"""To the next &, for a password may hold any other character."""
_TO_HIDE = (
    # scheme://user:password@ to the last @, for a password may hold any character. A port is none.
    (r"""(\bhttps?:/{1,3}[^\s:/?#@'"]*):(?!\d+[/?#])[^\s'"]*@""", r"\1:***@"),
    (r"""(\b(?!http)[a-z][\w+.-]*:/{1,3}[^\s:/?#@'"]*):[^\s'"]*@""", r"\1:***@"),
    (r"""(\bhttps?:/{1,3})[^\s:/?#@'"]+@""", r"\1***@"),  # a token
)


def hidden(text: str) -> str:
    """Return `text` with *** for the passwords and secret query values of all URLs in it."""
    for pattern, replacement in _TO_HIDE:
        text = re.sub(pattern, replacement, text, flags=re.IGNORECASE)
    return _without_secrets(text, lambda match: f"{match[1]}***")


def _without_secrets(text: str, replacement: Callable[[re.Match[str]], str]) -> str:
    def replaced(match: re.Match[str]) -> str:
        if _is_secret(match[2]):
            return replacement(match)
        return match[1] + _QUERY_VALUE.sub(replaced, match[3])

    return _QUERY_VALUE.sub(replaced, text)


def _is_secret(key: str) -> bool:
    """Return whether a query's key, which may be percent-encoded, is one of a secret."""
    return _SECRET.fullmatch(unquote(key)) is not None


def public(url: str) -> str:
    """Return the URL without its password and secret query values: it may be kept and sent on.

    What is no URL is returned as it is. Of http the user goes, too: it would come before the one
    that MLFLOW_TRACKING_USERNAME names, and may be a token.
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    if scheme.lower() in ("http", "https"):
        rest = re.sub(r"^[^/?#]*@", "", rest)
    else:
        rest = re.sub(r"^([^:/@]*):[^@]*@", lambda match: match[1] and f"{match[1]}@", rest)
    without = _without_secrets(rest, lambda match: match[1][0])
    if without != rest:
        without = re.sub(r"(?<=[?&;#])[&;#]+", "", without).rstrip("?&;#")
    return f"{scheme}://{without}"


def ambiguous(url: str) -> bool:
    """Return whether readers of the URL could differ on where its password ends.

    They would take a part of the password for the host, and show it.
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        return re.search(r":.*@", url) is not None  # its scheme is not clear, either
    for each in _QUERY_VALUE.finditer(rest):
        if _is_secret(each[2]) and rest[each.end() : each.end() + 1] not in ("", "&"):
            return True
    user, mark, place = rest.partition("@")
    if not mark or rest.startswith("/"):  # a path
        return False
    is_split = r"[/?#\s'\"]" if scheme.lower() in ("http", "https") else r"^[^:]*:\d*[/?#]|[\s'\"]"
    return "@" in place or re.search(is_split, user) is not None
