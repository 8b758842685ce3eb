"""No password of a URL is shown, stored or sent on, whatever characters are in it."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from trainable.errors import Parser, TrialError, UserError
from trainable.urls import ambiguous, hidden, public, without_file_scheme


@pytest.mark.parametrize(
    ("url", "shown", "stored"),
    [
        ("postgresql://me:S3CRET@h/d", "postgresql://me:***@h/d", "postgresql://me@h/d"),
        ("postgresql+psycopg://me:S3/C:R#E?T@h:5432/d?sslmode=require&sslpassword=S3CRET",
         "postgresql+psycopg://me:***@h:5432/d?sslmode=require&sslpassword=***",
         "postgresql+psycopg://me@h:5432/d?sslmode=require"),
        ("mysql://me:S3CRET%40@h/d", "mysql://me:***@h/d", "mysql://me@h/d"),
        ("redis://:S3CRET@h/0", "redis://:***@h/0", "redis://h/0"),
        ("s3://KEY:S3CRET@bucket/path", "s3://KEY:***@bucket/path", "s3://KEY@bucket/path"),
        ("http://me:S3CRET@h:5000/x", "http://me:***@h:5000/x", "http://h:5000/x"),
        ("HTTPS://S3CRET@h:5000", "HTTPS://***@h:5000", "HTTPS://h:5000"),
        ("https://h/?o=7&token=S3CRET#c", "https://h/?o=7&token=***", "https://h/?o=7"),
        ("https://h/?code=S3CRET", "https://h/?code=***", "https://h/"),
        ("postgresql://me@h/d?passwort=S3CRET", "postgresql://me@h/d?passwort=***",
         "postgresql://me@h/d"),
        ("https://h/p?S3CRET", "https://h/p?***", "https://h/p"),
        ("https://h/p#S3CRET", "https://h/p#***", "https://h/p"),
        ("https://h/?sid=S3CRET&page=2#/x", "https://h/?sid=***&page=2#/x", "https://h/?page=2#/x"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3DS3CRET",
         "mssql+pyodbc:///?odbc_connect=***", "mssql+pyodbc:///"),
        ("https://h/z?X-Amz-Signature=S3CRET&api_key=S3CRET",
         "https://h/z?X-Amz-Signature=***&api_key=***", "https://h/z"),
        ("postgresql://h/d?%70assword=S3;C#RET&user=me", "postgresql://h/d?%70assword=***&user=me",
         "postgresql://h/d?user=me"),
        ("https://h/?key=S3CRET&pass=S3CRET&tab=b;auth=S3CRET",
         "https://h/?key=***&pass=***&tab=b;auth=***", "https://h/?tab=b"),
        ("https://h/#access_token=S3CRET", "https://h/#***", "https://h/"),
        ("https:/me:S3CRET@h/x.zip", "https:/me:***@h/x.zip", None),
    ],
)  # fmt: skip
def test_password_is_hidden_where_shown_and_left_out_where_stored(
    url: str, shown: str, stored: str | None
) -> None:
    assert hidden(url) == shown
    assert stored is None or public(url) == stored
    text = f"({url!r}) cannot be opened: 'C:/a@b', at 10:15"
    assert hidden(text) == text.replace(url, shown)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me@h:5432/d?sslmode=require", "http://h:5000/path", "sqlite:///mlflow.db",
        "sqlite:////home/me:x@y/a.db", "abfs://container@account.dfs.core/x", "databricks",
        "file:///tmp/a@b", "s3://bucket/a:b", "http://[::1]:5000/",
        "http://h:5000/#/experiments/1/runs/2", "sqlite:////tmp/a#b/study.db?mode=rw",
        "postgresql://h/d?host=/var/run&options=-csearch_path=x&application_name=y",
    ],
)  # fmt: skip
def test_url_without_a_password_stays_as_it_is(url: str) -> None:
    assert (hidden(url), public(url), ambiguous(url)) == (url, url, False)


@pytest.mark.parametrize(
    ("typed", "path"),
    [
        ("file:///tmp/a%20b", "/tmp/a b"), ("file:/tmp/x", "/tmp/x"), ("FILE://localhost/x", "/x"),
        ("file://elsewhere/x", "file://elsewhere/x"), ("s3://b/x", "s3://b/x"), ("runs", "runs"),
        ("file", "file"), ("/tmp/file:/x", "/tmp/file:/x"),
    ],
)  # fmt: skip
def test_url_of_a_file_here_is_its_path(typed: str, path: str) -> None:
    assert without_file_scheme(typed) == path


@given(password=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6))
def test_no_password_is_left_in_a_url_that_is_not_refused(password: str) -> None:
    url = f"postgresql://me:{password}@h/d"
    assert hidden(url) == "postgresql://me:***@h/d" or ambiguous(url)
    if not ambiguous(url):
        assert make_url(url).password
        assert public(url) == "postgresql://me@h/d"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:p@ss@h/d", "postgresql://me:12/4@h/d", "postgresql://me:a b@h/d",
        "http://me:p/w@h", "http://me:p@s@h", "http://h:5000/a@b",
        "postgresql://h/d?password=S'CRET", "me:S3CRET@h/d", "postgresql:/me:S3CRET@h/d",
    ],
)  # fmt: skip
def test_url_whose_password_ends_nobody_knows_where_is_ambiguous(url: str) -> None:
    assert ambiguous(url)


@pytest.mark.parametrize("kind", [UserError, TrialError])
def test_error_holds_no_password(kind: type[Exception]) -> None:
    error = kind("http://me:S3CRET@h/api failed with exception X")
    assert str(error) == "http://me:***@h/api failed with exception X"
    for text in (repr(error), str(pickle.loads(pickle.dumps(error)))):
        assert "S3CRET" not in text


def test_mistake_in_the_arguments_shows_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Parser().parse_args(["postgresql://me:S3CRET@h/d"])
    said = capsys.readouterr().err
    assert said == "error: unrecognized arguments: postgresql://me:***@h/d\n"
