"""Downloads of D4RL files from hosts that work, break off, lie or are down: HTTP servers on this machine."""

import hashlib
import importlib
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import TINY, hopper_log, run_as_main, run_here, write_hdf5


@pytest.fixture
def rambo():
    """The plumbing is word for word the same in both scripts, see test_twins.py: one of them is enough here."""
    return importlib.import_module("rambo_continuous")


NAME = "hopper_medium_replay-v2.hdf5"
ENV_ID = "hopper-medium-replay-v2"
NOBODY_LISTENS = "http://127.0.0.1:9"


class Handler(BaseHTTPRequestHandler):
    """The first part of the path says how the host behaves: /good/FILE, /ignores_range/FILE, /half/FILE, ..."""

    def do_GET(self):
        _, behaviour, name = self.path.split("/")
        content, start = self.server.content, 0
        self.server.requests.append((behaviour, name, self.headers.get("Range")))
        if behaviour == "gibberish":
            self.wfile.write(b"this is no HTTP\r\n\r\n")
            return
        if behaviour == "missing":
            self.send_error(404)
            return
        if behaviour == "wrong":
            content = bytes(len(content))
        if behaviour == "error_page":  # a login page, say, that comes instead of the file
            content = b"<html>Under maintenance</html>"
        if self.headers.get("Range") and behaviour not in ("ignores_range", "error_page"):
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        self.wfile.write(rest[: len(rest) // 2] if behaviour == "half" else rest)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(rambo, tmp_path, monkeypatch):
    """A server whose file is the one that the script's table expects, in an empty folder of datasets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "datasets"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content = write_hdf5(tmp_path / "original.hdf5", hopper_log()).read_bytes()
    server.requests = []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.file, server.part = tmp_path / "datasets" / NAME, tmp_path / "datasets" / f"{NAME}.part"
    monkeypatch.setitem(rambo.D4RL_FILES, ENV_ID, (len(server.content), hashlib.sha256(server.content).hexdigest()))

    def use(*behaviours):
        urls = [b if b.startswith("http") else f"{server.url}/{b}" for b in behaviours]
        monkeypatch.setattr(rambo, "D4RL_HOSTS", tuple(urls))
        server.requests.clear()

    server.use = use
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def downloaded(rambo, server):
    """Finds the dataset, which has to be complete and the only file in its folder."""
    path = rambo.find_dataset(ENV_ID, None)
    assert path == server.file and path.read_bytes() == server.content
    assert files_of(server) == [path]


def files_of(server):
    """The datasets there, whole or not; the lock that keeps other runs from downloading them, too, does not count."""
    return [path for path in server.file.parent.iterdir() if path.suffix != ".lock"]


def refused(rambo):
    with pytest.raises(rambo.InputError) as error:
        rambo.find_dataset(ENV_ID, None)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_run_downloads_its_dataset_once(rambo, server):
    server.use("good", "missing")
    assert run_here(rambo, "--env-id", ENV_ID, *TINY).is_dir()
    assert [request[:2] for request in server.requests] == [("good", NAME)]
    downloaded(rambo, server)
    assert len(server.requests) == 1


def test_the_mirror_steps_in(rambo, server, subtests):
    for first in ["missing", "gibberish", "wrong", "error_page", NOBODY_LISTENS]:
        with subtests.test(first=str(first)):
            server.file.unlink(missing_ok=True)
            server.use(first, "good")
            downloaded(rambo, server)
    with subtests.test("an HF_ENDPOINT without https://"):
        server.file.unlink()
        rambo.D4RL_HOSTS = ("hf-mirror.com", rambo.D4RL_HOSTS[1])
        downloaded(rambo, server)


PARTIAL_FILES = {  # what an earlier try left, the hosts, and what is asked of the first
    "a beginning": (lambda whole: whole[:1000], ("good", "missing"), "bytes=1000-"),
    "a beginning, and a host that sends it all": (lambda whole: whole[:1000], ("ignores_range", "missing"), "bytes=1000-"),
    "the whole file": (lambda whole: whole, (NOBODY_LISTENS, NOBODY_LISTENS), None),
    "damaged": (lambda whole: b"x" * 1000, ("good", "good"), "bytes=1000-"),
    "too long": (lambda whole: whole + b"more", ("good", "good"), None),
}


def test_partial_files_of_an_earlier_try(rambo, server, subtests):
    for case, (content, hosts, asked) in PARTIAL_FILES.items():
        with subtests.test(case=case):
            server.file.parent.mkdir(exist_ok=True)
            server.file.unlink(missing_ok=True)
            server.part.write_bytes(content(server.content))
            server.use(*hosts)
            downloaded(rambo, server)
            ranges = [request[2] for request in server.requests]
            assert asked in ranges if asked else set(ranges) <= {f"bytes={len(content(server.content))}-", "bytes=0-"}


def test_a_transfer_that_breaks_off_goes_on_at_the_mirror(rambo, server):
    server.use("half", "good")
    downloaded(rambo, server)
    assert server.requests[1] == ("good", NAME, f"bytes={len(server.content) // 2}-")


def test_a_transfer_that_broke_off_everywhere_goes_on_in_the_next_try(rambo, server):
    server.use("half", "half")
    message = refused(rambo)
    assert "broke off" in message and "run again" in message
    assert not server.file.exists()
    assert server.part.read_bytes() == server.content[: server.part.stat().st_size]
    got = server.part.stat().st_size
    server.use("good", "missing")
    downloaded(rambo, server)
    assert server.requests == [("good", NAME, f"bytes={got}-")]


def test_a_wrong_checksum_leaves_no_file(rambo, server):
    server.use("wrong", "wrong")
    assert "wrong checksum" in refused(rambo)
    assert not files_of(server)


def test_when_both_hosts_are_down_the_message_names_the_ways_out(rambo, server):
    server.use(NOBODY_LISTENS, f"{NOBODY_LISTENS}/mirror")
    message = refused(rambo)
    for way_out in ("--dataset-path", f"{NOBODY_LISTENS}/mirror/{NAME}", str(server.file.parent), "D4RL_DATASET_DIR"):
        assert way_out in message
    assert not server.file.exists() and not server.part.exists()


def test_several_runs_download_a_file_once(rambo, server):
    """Threads stand for processes: a file lock keeps both apart."""
    server.use("good", "missing")
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: rambo.find_dataset(ENV_ID, None), range(4))) == {server.file}
    assert server.requests == [("good", NAME, "bytes=0-")]


def test_a_dataset_that_is_there_needs_no_right_to_write(rambo, server, monkeypatch):
    """A folder that a laboratory shares: no lock, no network."""
    server.file.parent.mkdir()
    server.file.touch()
    monkeypatch.delattr(rambo, "FileLock")
    assert rambo.find_dataset(ENV_ID, None) == server.file and not server.requests


def test_nobody_knows_where_home_is(rambo, monkeypatch):
    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("D4RL_DATASET_DIR", raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    assert "$D4RL_DATASET_DIR names another folder" in refused(rambo)


def test_a_folder_that_cannot_be_written(rambo, server, monkeypatch):
    Path("occupied").touch()
    monkeypatch.setenv("D4RL_DATASET_DIR", "occupied/datasets")
    server.use("good", "good")
    assert "occupied" in refused(rambo)


def test_the_command_line_without_a_network(script, tmp_path, monkeypatch):
    """A proxy where nobody listens stands for no network."""
    monkeypatch.chdir(tmp_path)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, NOBODY_LISTENS)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "datasets"))
    process = run_as_main(script, "--env-id", ENV_ID)
    assert process.returncode == 1
    assert len(process.stderr.strip().splitlines()) == 1 and process.stderr.startswith("error: could not download")
    assert not [path for path in tmp_path.rglob("*.*") if path.suffix != ".lock"]
