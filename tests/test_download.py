"""Downloads from a real server on loopback: whole, resumed, cut off, refused."""

from __future__ import annotations

import io
import re
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest

from rllib_calql.cli import experiments
from rllib_calql.cli.common import UserError
from rllib_calql.cli.options import TrainOptions
from rllib_calql.data import DatasetError, open_dataset
from rllib_calql.data.sources.d4rl import locate
from rllib_calql.data.sources.download import download_hdf5

NAME = "door-human-v1"
FILE = "hand_dapg_v1/door-human-v1.hdf5"


def dataset_bytes(rows: int = 2000) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["observations"] = np.random.default_rng(0).normal(size=(rows, 5)).astype(np.float32)
        file["actions"] = np.zeros((rows, 2), dtype=np.float32)
        file["rewards"] = np.ones(rows, dtype=np.float32)
        file["terminals"] = np.arange(1, rows + 1) % 100 == 0
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Serves one file; what it does wrong is switched on by its attributes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {f"/{FILE}": dataset_bytes()}
        self.requests: list[tuple[str, str | None]] = []  # path and Range header
        self.status = 0  # answer with this status
        self.ranges = True  # understands Range
        self.wrong_range = False  # answers with another range than asked for
        self.announce = True  # sends Content-Length
        self.stop_after: int | None = None  # bytes after which the connection is closed

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        body = self.server.files.get(self.path)
        if self.server.status or body is None:
            self.send_error(self.server.status or 404)
            return
        size, start = len(body), 0
        if wanted and self.server.ranges:
            match = re.fullmatch(r"bytes=(\d+)-", wanted)
            assert match
            start = int(match[1])
            if start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = 0 if self.server.wrong_range else start
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            self.send_response(200)
        if self.server.announce:
            self.send_header("Content-Length", str(size - start))
        self.end_headers()
        rest = body[start:]
        self.wfile.write(rest if self.server.stop_after is None else rest[: self.server.stop_after])

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as result:
        thread = threading.Thread(target=result.serve_forever, args=(0.02,))
        thread.start()
        yield result
        result.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "deep" / "cache"  # does not exist yet
    monkeypatch.setenv("D4RL_DATASET_DIR", str(folder))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def test_a_missing_dataset_is_downloaded_once(server: Server, cache: Path) -> None:
    for _ in range(2):
        data = open_dataset(f"d4rl://{NAME}", base_url=server.url)
        assert (len(data), data.num_episodes) == (2000, 20)
    assert server.requests == [(f"/{FILE}", None)]
    assert visible(cache) == {f"{NAME}.hdf5"}
    assert (cache / f"{NAME}.hdf5").read_bytes() == server.files[f"/{FILE}"]


def test_downloading_can_be_forbidden(server: Server, cache: Path) -> None:
    with pytest.raises(DatasetError, match=rf"switched off. Download {server.url}/{FILE} yourself"):
        open_dataset(f"d4rl://{NAME}", base_url=server.url + "/", download=False)
    assert server.requests == []
    assert not cache.exists()


def test_a_short_body_is_refused_and_resumed_by_the_next_call(server: Server, cache: Path) -> None:
    whole = server.files[f"/{FILE}"]
    server.stop_after = 10_000
    with pytest.raises(
        DatasetError,
        match=rf"only 10000 of {len(whole)} bytes arrived; the next try .* put it at {cache}/{NAME}.hdf5",
    ):
        locate(NAME, base_url=server.url)
    assert visible(cache) == {f"{NAME}.hdf5.part"}
    part = cache / f"{NAME}.hdf5.part"
    assert part.read_bytes() == whole[:10_000]

    server.stop_after = None
    path = locate(NAME, base_url=server.url)
    assert path.read_bytes() == whole
    assert [wanted for _, wanted in server.requests] == [None, "bytes=10000-"]
    assert visible(cache) == {f"{NAME}.hdf5"}


def test_a_resumed_download_can_be_cut_off_again(server: Server, cache: Path) -> None:
    server.stop_after = 7_000
    size = len(server.files[f"/{FILE}"])
    for _ in range(-(-size // 7_000) - 1):
        with pytest.raises(DatasetError, match=r"only \d+ of \d+ bytes arrived"):
            locate(NAME, base_url=server.url)
    assert locate(NAME, base_url=server.url).read_bytes() == server.files[f"/{FILE}"]


def leave_part(cache: Path, content: bytes) -> None:
    cache.mkdir(parents=True)
    (cache / f"{NAME}.hdf5.part").write_bytes(content)


def test_a_server_without_ranges_starts_again(server: Server, cache: Path) -> None:
    leave_part(cache, b"x" * 500)
    server.ranges = False
    assert locate(NAME, base_url=server.url).read_bytes() == server.files[f"/{FILE}"]
    assert server.requests == [(f"/{FILE}", "bytes=500-")]


def test_a_complete_part_only_takes_its_name(server: Server, cache: Path) -> None:
    leave_part(cache, server.files[f"/{FILE}"])
    assert locate(NAME, base_url=server.url).read_bytes() == server.files[f"/{FILE}"]
    assert len(server.requests) == 1


def test_a_part_longer_than_the_file_starts_again(server: Server, cache: Path) -> None:
    leave_part(cache, server.files[f"/{FILE}"] + b"more")
    assert locate(NAME, base_url=server.url).read_bytes() == server.files[f"/{FILE}"]
    assert [wanted is None for _, wanted in server.requests] == [False, True]


def test_another_range_than_asked_for(server: Server, cache: Path) -> None:
    leave_part(cache, b"x" * 500)
    server.wrong_range = True
    with pytest.raises(DatasetError, match="the server sent another part of the file than asked for; try again"):
        locate(NAME, base_url=server.url)
    assert locate(NAME, base_url=server.url).read_bytes() == server.files[f"/{FILE}"]


def test_what_is_no_dataset_does_not_get_the_name(server: Server, cache: Path) -> None:
    server.files[f"/{FILE}"] = b"<html>please log in</html>"
    with pytest.raises(DatasetError, match=rf"what {server.url}/{FILE} sent is not an HDF5 file. Download"):
        locate(NAME, base_url=server.url)
    assert visible(cache) == set()


def test_a_part_of_another_file_is_not_kept(server: Server, cache: Path) -> None:
    leave_part(cache, b"x" * 500)
    with pytest.raises(DatasetError, match="is not an HDF5 file"):
        locate(NAME, base_url=server.url)
    assert locate(NAME, base_url=server.url).read_bytes() == server.files[f"/{FILE}"]


def test_an_unannounced_short_body_is_found_out(server: Server, cache: Path) -> None:
    server.announce, server.stop_after = False, 10_000
    with pytest.raises(DatasetError, match="is not an HDF5 file"):
        locate(NAME, base_url=server.url)
    server.stop_after = None
    assert locate(NAME, base_url=server.url).read_bytes() == server.files[f"/{FILE}"]


@pytest.mark.parametrize("status", [403, 404, 500])
def test_the_server_refuses(server: Server, cache: Path, status: int) -> None:
    server.status = status
    message = (
        rf"could not be downloaded \(HTTP Error {status}: .*\). "
        rf"Download {server.url}/{FILE} yourself and put it at {cache}/{NAME}.hdf5"
    )
    with pytest.raises(DatasetError, match=message):
        open_dataset(f"d4rl://{NAME}", base_url=server.url)
    assert visible(cache) == set()


def test_no_connection(cache: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    message = (
        rf"{url}/{FILE} could not be downloaded \(.*refused.*\). "
        rf"Download {url}/{FILE} yourself and put it at {cache}/{NAME}.hdf5"
    )
    with pytest.raises(DatasetError, match=message):
        open_dataset(f"d4rl://{NAME}", base_url=url)


def test_a_cache_folder_that_cannot_be_made(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(DatasetError, match=r"could not be downloaded .* yourself and put it at"):
        locate(NAME, base_url=server.url)


def test_processes_that_want_the_same_file_wait_for_each_other(server: Server, cache: Path) -> None:
    target = cache / "data.hdf5"
    threads = [threading.Thread(target=download_hdf5, args=(f"{server.url}/{FILE}", target)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() == server.files[f"/{FILE}"]
    assert len(server.requests) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_the_progress_bar_is_for_terminals_only(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    screen = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    locate(NAME, base_url=server.url)
    assert ("door-human-v1.hdf5: 100%" in screen.getvalue()) == terminal
    assert terminal or screen.getvalue() == ""


def test_no_download_beside_a_search_over_datasets_is_refused() -> None:
    several = {"run": "CalQL", "config": {"input_": {"grid_search": ["d4rl://a", "d4rl://b"]}}}
    with pytest.raises(UserError, match="do not know which of several datasets"):
        experiments.override("x", several, TrainOptions(download=False))
