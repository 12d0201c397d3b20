import contextlib
import gc
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks.shared.ports import free_port
from benchmarks.shared.tcp_proxy import TcpProxy

DELAY_S = 0.1
ROOT = Path(__file__).parents[3]


@pytest.fixture
def echo():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(ConnectionError):
                    while data := connection.recv(1 << 16):
                        connection.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def connect(proxy: TcpProxy) -> socket.socket:
    host, port = proxy.address.split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def is_cut(end: socket.socket) -> bool:
    try:
        return end.recv(1) == b""
    except ConnectionError:
        return True


def test_data_goes_there_and_back_each_piece_as_late_as_asked(echo):
    with TcpProxy(echo, DELAY_S) as proxy, connect(proxy) as end:
        began = time.monotonic()
        end.sendall(b"hello")
        assert end.recv(16) == b"hello"
        assert time.monotonic() - began >= 2 * DELAY_S


def test_data_come_no_faster_than_the_rate_each_way(echo):
    data = bytes(50_000)
    with TcpProxy(echo, rate_bit_s=1e6) as proxy, connect(proxy) as end:
        began = time.monotonic()
        end.sendall(data)
        left = len(data)
        while left:
            left -= len(end.recv(left))
        # 0.4 s up; down goes beside it, but for the last piece. A busy machine may take longer, never less.
        assert 0.4 <= time.monotonic() - began < 10


def test_a_cut_ends_connections_and_new_ones_are_taken(echo):
    with TcpProxy(echo) as proxy:
        with connect(proxy) as end:
            end.sendall(b"a")
            assert end.recv(1) == b"a"
            proxy.cut()
            assert is_cut(end)
        with connect(proxy) as end:
            end.sendall(b"b")
            assert end.recv(1) == b"b"


def test_a_connection_ends_in_the_middle_of_what_it_carries(echo):
    with TcpProxy(echo) as proxy, connect(proxy) as end:
        proxy.cut_after(3)
        end.sendall(b"hello")
        assert is_cut(end)
        with connect(proxy) as another:
            another.sendall(b"hello")
            assert another.recv(16) == b"hello", "once"


def test_nobody_behind_it_is_a_closed_connection():
    with TcpProxy(f"127.0.0.1:{free_port()}") as proxy, connect(proxy) as end:
        assert is_cut(end)


def test_it_closes_in_the_middle_of_a_connection_and_leaves_nothing_behind(echo, caplog):
    proxy = TcpProxy(echo, DELAY_S)
    with connect(proxy) as end:
        end.sendall(b"under way")
        proxy.close()
        assert is_cut(end)
    del proxy
    gc.collect()
    assert caplog.records == [], "a task that was destroyed while it was pending is logged"


def test_the_files_that_the_image_takes_of_it_run_alone(tmp_path):
    (line,) = [line for line in (ROOT / "docker/Dockerfile").read_text().splitlines() if "tcp_proxy" in line]
    *files, _ = line.removeprefix("COPY ").split()
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    command = [sys.executable, "-P", "-m", "benchmarks.shared.tcp_proxy", "--help"]
    subprocess.run(command, env={"PYTHONPATH": str(tmp_path)}, timeout=60, check=True, stdout=subprocess.DEVNULL)
