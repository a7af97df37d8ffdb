"""Looking at leases changes nothing, and sees what the claims themselves would do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emosteer.records.claims import Claims
from emosteer.records.leases import holder, holders

MINUTE = 60.0


@pytest.fixture
def claims(tmp_path: Path) -> Claims:
    return Claims(tmp_path / "claims", MINUTE)


def dead_process() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lease_of_this_process_is_live(claims: Claims) -> None:
    claims.take("a")
    before = sorted(claims.directory.iterdir())
    found = holders(claims.directory)

    assert list(found) == ["a"]
    assert found["a"].pid == os.getpid()
    assert found["a"].is_live(MINUTE)
    assert sorted(claims.directory.iterdir()) == before


@pytest.mark.parametrize("case", ["silent", "gone"])
def test_what_the_claims_would_take_over_is_not_live(claims: Claims, case: str) -> None:
    lease = claims.take("a")
    assert lease is not None
    change = {"host": "elsewhere"} if case == "silent" else {"pid": dead_process()}
    lease.path.write_text(json.dumps(json.loads(lease.path.read_text()) | change))
    if case == "silent":
        os.utime(lease.path, (time.time() - 2 * MINUTE,) * 2)

    assert not holders(claims.directory)["a"].is_live(MINUTE)
    assert claims.take("a") is not None


def test_of_another_host_only_the_silence_tells(claims: Claims) -> None:
    lease = claims.take("a")
    assert lease is not None
    lease.path.write_text(json.dumps({"host": "elsewhere", "pid": dead_process(), "started": 0.0, "token": "t", "attempt": 1}))

    assert holders(claims.directory)["a"].is_live(MINUTE)
    assert claims.take("a") is None


def test_nothing_held_and_a_lease_that_says_nothing(claims: Claims, tmp_path: Path) -> None:
    assert holders(tmp_path / "nowhere") == {}
    assert holder(claims.directory / "a") is None
    (claims.directory / "a").write_text("{broken")
    found = holder(claims.directory / "a")
    assert found is not None
    assert (found.host, found.pid, found.is_gone) == ("", 0, False)
