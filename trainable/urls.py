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
_KEYS = (
    # What says how to connect: libpq, MySQL's clients, SQLite and SQL Server by SQLAlchemy's names,
    # and what MLflow's pages and object stores name a place by.
    "host hostaddr port user username dbname database schema db connect_timeout timeout options"
    " application_name fallback_application_name target_session_attrs client_encoding charset"
    " keepalives keepalives_idle keepalives_interval keepalives_count tcp_user_timeout"
    " gssencmode channel_binding require_auth load_balance_hosts passfile service"
    " sslmode sslcert sslkey sslrootcert sslcrl sslcompression ssl_min_protocol_version"
    " ssl_max_protocol_version ssl ssl_ca ssl_cert ssl_key ssl_verify_cert ssl_disabled"
    " ssl_check_hostname unix_socket read_timeout write_timeout local_infile autocommit"
    " isolation_level collation use_unicode mode cache uri nolock immutable vfs"
    " check_same_thread detect_types driver encrypt trustservercertificate trusted_connection"
    " multisubnetfailover region endpoint endpoint_url versionid version page tab o searchfilter"
)
_HARMLESS = frozenset(_KEYS.split())
"""Query keys that are shown and kept: nobody knows all names of secrets."""
_QUERY = re.compile(r"""(\b[a-z][\w+.-]*:/{1,3}[^\s'"?]*)(\?[^\s'"]*)""", re.IGNORECASE)
_FRAGMENT = re.compile(r"""(\bhttps?:/{1,3}[^\s'"#?]*#)(?!/)[^\s'"]+""", re.IGNORECASE)
"""Of a web page; one that begins with / is the page's own place, as in MLflow's."""
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
    text = _FRAGMENT.sub(r"\1***", text)
    text = _QUERY.sub(lambda match: match[1] + _with_harmless(match[2], "***"), text)
    return _without_secrets(text, lambda match: f"{match[1]}***")


def _with_harmless(query: str, instead: str) -> str:
    """Return a query, from ? on, with `instead` for the values of other keys; empty: without."""
    kept = ""
    for mark, key, equals, value in re.findall(r"([?&;#])([^?&;#=]*)(=?)([^?&;#]*)", query):
        is_place = mark == "#" and key.startswith("/")
        if is_place or unquote(key).lower() in _HARMLESS:
            kept += mark + key + equals + value
        elif instead and (key or value):
            kept += mark + (key + equals if equals else "") + instead
    return kept if instead or not kept else "?" * (kept[0] != "#") + kept.lstrip("?&;")


def _without_secrets(text: str, replacement: Callable[[re.Match[str]], str]) -> str:
    def replaced(match: re.Match[str]) -> str:
        if _is_secret(match[2]):
            return replacement(match)
        return match[1] + _QUERY_VALUE.sub(replaced, match[3])

    return _QUERY_VALUE.sub(replaced, text)


def _is_secret(key: str) -> bool:
    """Return whether a query's key, which may be percent-encoded, is one of a secret."""
    return unquote(key).lower() not in _HARMLESS and _SECRET.fullmatch(unquote(key)) is not None


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
    url = _FRAGMENT.sub(lambda match: match[1].rstrip("#"), f"{scheme}://{rest}")
    url = _QUERY.sub(lambda match: match[1] + _with_harmless(match[2], ""), url)
    rest = url.removeprefix(f"{scheme}://")
    without = _without_secrets(rest, lambda match: match[1][0])
    if without != rest:
        without = re.sub(r"(?<=[?&;#])[&;#]+", "", without).rstrip("?&;#")
    return f"{scheme}://{without}"


def without_file_scheme(text: str) -> str:
    """Return the path of a file:///PATH on this machine; anything else as it is."""
    scheme, mark, rest = text.partition(":/")
    if scheme.lower() != "file" or not mark:
        return text
    host, slash, path = (
        rest.removeprefix("/").partition("/") if rest[:1] == "/" else ("", "/", rest)
    )
    return unquote(slash + path) if slash and host in ("", "localhost") else text


def ambiguous(url: str) -> bool:
    """Return whether readers of the URL could differ on where its password ends.

    They would take a part of the password for the host, and show it.
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        return re.search(r":.*@", url) is not None  # its scheme is not clear, either
    for each in _QUERY_VALUE.finditer(rest):
        if unquote(each[2]).lower() not in _HARMLESS and rest[each.end() : each.end() + 1] not in (
            "",
            "&",
        ):
            return True
    user, mark, place = rest.partition("@")
    if not mark or rest.startswith("/"):  # a path
        return False
    is_split = r"[/?#\s'\"]" if scheme.lower() in ("http", "https") else r"^[^:]*:\d*[/?#]|[\s'\"]"
    return "@" in place or re.search(is_split, user) is not None
