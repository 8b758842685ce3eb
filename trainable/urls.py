"""URLs as others may read them: passwords are hidden in what is shown, and not kept in files."""

import re

_SECRET = (
    r"[\w.-]*(?:password|passwd|passphrase|pwd|secret|token|signature|credential|\bsig"
    r"|(?:api|access|account|private|shared)[_-]?key)"
)
_TO_HIDE = (
    # scheme://user:password@ to the last @, for a password may hold any character. A port is none.
    (r"""(\bhttps?:/{1,3}[^\s:/?#@'"]*):(?!\d+[/?#])[^\s'"]*@""", r"\1:***@"),
    (r"""(\b(?!http)[a-z][\w+.-]*:/{1,3}[^\s:/?#@'"]*):[^\s'"]*@""", r"\1:***@"),
    (r"""(\bhttps?:/{1,3})[^\s:/?#@'"]+@""", r"\1***@"),  # a token
    (rf"""([?&]{_SECRET}=)[^\s&#'"]*""", r"\1***"),
)


def hidden(text: str) -> str:
    """Return `text` with *** for the passwords and secret query values of all URLs in it."""
    for pattern, replacement in _TO_HIDE:
        text = re.sub(pattern, replacement, text, flags=re.IGNORECASE)
    return text


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
    place, mark, query = rest.partition("?")
    kept = [each for each in query.split("&") if not re.match(rf"{_SECRET}=", each, re.I)]
    return f"{scheme}://{place}" + ("?" + "&".join(kept) if mark and kept else "")


def ambiguous(url: str) -> bool:
    """Return whether readers of the URL could differ on where its password ends.

    They would take a part of the password for the host, and show it.
    """
    scheme, _, rest = url.partition("://")
    user, mark, place = rest.partition("@")
    if not mark or rest.startswith("/"):  # a path
        return False
    is_split = r"[/?#\s'\"]" if scheme.lower() in ("http", "https") else r"^[^:]*:\d*[/?#]|[\s'\"]"
    return "@" in place or re.search(is_split, user) is not None
