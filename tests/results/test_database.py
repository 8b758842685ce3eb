"""A database that is away is waited for, and no longer than said."""

import socket

import pytest
import sqlalchemy as sa

from results.database import STORAGE_ERRORS, patiently


def test_patience_within_patience_is_not_multiplied() -> None:
    pytest.importorskip("psycopg")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        engine = sa.create_engine(f"postgresql+psycopg://127.0.0.1:{probe.getsockname()[1]}/none")
    tries = 0

    def reach() -> None:
        nonlocal tries
        tries += 1
        engine.connect()

    with pytest.raises(STORAGE_ERRORS, match="refused"):
        patiently(lambda: patiently(lambda: patiently(reach)), waits_s=(0.01,) * 3)
    assert tries == 4
    with pytest.raises(STORAGE_ERRORS):
        patiently(reach, waits_s=(0.01,))
    assert tries == 6, "each call has its own"
