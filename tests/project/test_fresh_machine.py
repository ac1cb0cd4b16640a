"""The suite runs as on a fresh machine: no data, caches or network of this one, in processes that it starts, too."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edp_fx.data.idx import find_fashion_mnist
from edp_fx.files import cache_directory

ELSEWHERE = ("192.0.2.1", 80)  # an address kept for documentation


def test_no_data_set_and_no_home_is_seen() -> None:
    assert find_fashion_mnist() is None
    assert Path.home() in cache_directory().parents
    assert "edp_fx-tests-" in str(Path.home())


def test_another_machine_is_refused_and_this_one_is_not() -> None:
    with socket.socket() as client, pytest.raises(OSError, match="without a network"):
        client.connect(ELSEWHERE)
    with pytest.raises(OSError, match=r"without a network: pypi\.example"):
        socket.create_connection(("pypi.example", 443), timeout=1)
    with socket.create_server(("localhost", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_a_process_that_a_test_starts_has_no_network_either() -> None:
    code = f"import socket; socket.create_connection({ELSEWHERE}, timeout=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "tests run without a network" in done.stderr
