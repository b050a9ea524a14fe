"""The asset registry under faults: every failure leaves a whole folder or none, and says what was tried."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from recsys_core import assets
from recsys_core.assets import Asset, Url, Wheel, extract, movielens, sources
from recsys_core.assets.catalog import ML_100K
from recsys_core.errors import DataError, RunStoppedError, UnavailableError, UnknownNameError


def zipped(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return sink.getvalue()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


PAYLOAD = b"weights " * 10_000
ARCHIVE = zipped({"in/model.bin": PAYLOAD, "in/sub/config.json": b"{}", "../../escape.txt": b"hostile"})
BUILD = extract({"in/model.bin": "model.bin", "in/sub/config.json": "sub/config.json"})
FILES = {"model.bin": digest(PAYLOAD), "sub/config.json": digest(b"{}")}


def asset_of(*places: sources.Source) -> Asset:
    return Asset("toy", "a toy", "none", places, FILES)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("WORKBENCH_ASSETS", raising=False)
    return tmp_path / "cache"


class Server:
    """Serves ARCHIVE on the loopback address, well or badly, and counts the requests."""

    def __init__(self) -> None:
        outer, self.requests = self, 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                if self.path in ("/500", "/404"):
                    self.send_error(int(self.path[1:]))
                elif self.path == "/hang":
                    outer.released.wait(20)
                elif self.path == "/chunked":
                    self.protocol_version = "HTTP/1.1"
                    self.send_response(200)
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    self.wfile.write(b"ff\r\nshort")
                    self.close_connection = True
                else:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(ARCHIVE)))
                    self.end_headers()
                    self.wfile.write(ARCHIVE[: 100 if self.path == "/truncated" else None])

            def log_message(self, *args: object) -> None: ...

        self.released = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def source(self, path: str, checksum: str = digest(ARCHIVE)) -> Url:
        return Url("toy.zip", checksum, BUILD, f"http://127.0.0.1:{self.http.server_port}/{path}")


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.released.set()
    running.http.shutdown()
    running.http.server_close()


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"}


def leftovers(cache: Path) -> list[str]:
    """Everything in the cache but lock files."""
    return sorted(str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file() and not p.name.endswith(".lock"))


def test_fetches_unpacks_and_reports_progress(server: Server, cache: Path) -> None:
    seen: list[tuple[float, str]] = []
    toy = asset_of(server.source("good"))
    folder = assets.fetch(toy, lambda share, text: seen.append((share, text)))
    assert folder == cache / "assets" / "toy"
    assert content(folder) == {"model.bin": PAYLOAD, "sub/config.json": b"{}"}
    assert not list(cache.parent.rglob("escape.txt"))
    shares = [share for share, _ in seen]
    assert shares[-1] == 1.0
    assert shares == sorted(shares)


def test_a_present_asset_needs_no_source(server: Server) -> None:
    toy = asset_of(server.source("good"))
    folder = assets.fetch(toy)
    broken = asset_of(server.source("500"), Wheel("x.whl", "0" * 64, BUILD, "no-such==0"))
    before = server.requests
    assert assets.fetch(broken) == folder
    assert assets.is_present(broken)
    assert server.requests == before


@pytest.mark.parametrize(
    ("path", "reason"),
    [("500", "HTTP Error 500"), ("404", "HTTP Error 404"), ("truncated", "closed after 100 of"), ("chunked", "IncompleteRead")],
)
def test_falls_through_to_the_next_source(server: Server, cache: Path, path: str, reason: str) -> None:
    assert content(assets.fetch(asset_of(server.source(path), server.source("good"))))["model.bin"] == PAYLOAD
    other = Asset("other", "", "", (server.source(path),), FILES)
    with pytest.raises(UnavailableError, match=reason):
        assets.fetch(other)
    assert not any("other" in name for name in leftovers(cache))


def test_the_error_lists_every_attempt_in_one_line(server: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_ASSETS", str(tmp_path / "nowhere"))
    monkeypatch.setattr(sources, "STALL_SECONDS", 0.3)
    places = [server.source("404"), server.source("hang"), server.source("good", "0" * 64)]
    start = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        assets.fetch(asset_of(*places))
    text = str(caught.value)
    assert time.monotonic() - start < 5
    assert "\n" not in text
    assert all(url in text for url in (p.url for p in places))
    for reason in ("no such file", "HTTP Error 404", "timed out", "SHA-256 is", "WORKBENCH_ASSETS"):
        assert reason in text
    assert leftovers(cache) == []


def test_files_that_differ_from_the_expected_are_refused(server: Server, cache: Path) -> None:
    other = Asset("toy", "", "", (server.source("good"),), {"model.bin": "0" * 64})
    with pytest.raises(UnavailableError, match=r"model\.bin inside has SHA-256"):
        assets.fetch(other)
    assert leftovers(cache) == []


def test_a_local_folder_comes_first_and_is_checked_too(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_ASSETS", str(tmp_path))
    (tmp_path / "toy.zip").write_bytes(ARCHIVE)
    assert content(assets.fetch(asset_of(server.source("500"))))["model.bin"] == PAYLOAD
    assert server.requests == 0
    assert (tmp_path / "toy.zip").read_bytes() == ARCHIVE
    (tmp_path / "toy.zip").write_bytes(b"not the archive")
    with pytest.raises(UnavailableError, match="over 15 bytes"):
        assets.fetch(Asset("second", "", "", (server.source("500"),), FILES))


def test_a_missing_wheel_says_what_pip_said() -> None:
    wheel = Wheel("x.whl", "0" * 64, BUILD, "this is no requirement")
    with pytest.raises(UnavailableError, match=r"wheel this is no requirement: pip ended with 1: .*requirement"):
        assets.fetch(asset_of(wheel))


def test_damage_is_repaired_by_fetch_and_found_by_verify(server: Server) -> None:
    toy = asset_of(server.source("good"))
    with pytest.raises(UnavailableError, match="fetch it first"):
        assets.verify(toy)
    folder = assets.fetch(toy)
    assert assets.verify(toy) == folder
    (folder / "model.bin").write_bytes(PAYLOAD[:-1])
    assert not assets.is_present(toy)
    assert content(assets.fetch(toy))["model.bin"] == PAYLOAD
    (folder / "model.bin").write_bytes(b"W" + PAYLOAD[1:])
    with pytest.raises(DataError, match=r"model\.bin changed"):
        assets.verify(toy)


def test_an_interrupt_from_progress_passes_through_and_leaves_nothing(server: Server, cache: Path) -> None:
    def stop(share: float, text: str) -> None:
        raise RunStoppedError("stopped by the user")

    with pytest.raises(RunStoppedError):
        assets.fetch(asset_of(server.source("good"), server.source("good")), stop)
    assert server.requests == 1
    assert leftovers(cache) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(server: Server, cache: Path) -> None:
    def full(archive: Path, out: Path) -> None:
        (out / "model.bin").write_bytes(PAYLOAD[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place = server.source("good")
    with pytest.raises(UnavailableError, match="No space left on device"):
        assets.fetch(asset_of(Url(place.file, place.sha256, full, place.url)))
    assert leftovers(cache) == []


def test_an_unusable_cache_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(UnavailableError, match="WORKBENCH_CACHE"):
        assets.fetch(asset_of(server.source("good")))


def test_unknown_names_and_the_list() -> None:
    assert set(assets.assets()) == {"ml-100k", "smollm2-135m-instruct", "all-minilm-l6-v2"}
    with pytest.raises(UnknownNameError, match="did you mean 'ml-100k'"):
        assets.fetch("ml-10k")


CHILD = """
import sys, time
from pathlib import Path
from recsys_core.assets import Asset, LocalFile, fetch
from recsys_core.assets.sources import extract

def build(archive, out):
    extract({"in/model.bin": "model.bin"})(archive, out)
    with Path(sys.argv[2]).open("a") as log:
        log.write("built\\n")
    time.sleep(float(sys.argv[3]))
    extract({"in/sub/config.json": "sub/config.json"})(archive, out)

archive = Path(sys.argv[1])
toy = Asset("toy", "", "", (LocalFile(archive.name, sys.argv[4], build, archive.parent),), dict(zip(sys.argv[5::2], sys.argv[6::2])))
print(fetch(toy))
"""


@pytest.fixture
def child(tmp_path: Path) -> Callable[[float], subprocess.Popen[str]]:
    (tmp_path / "toy.zip").write_bytes(ARCHIVE)
    files = [text for pair in FILES.items() for text in pair]

    def start(pause: float) -> subprocess.Popen[str]:
        arguments = [str(tmp_path / "toy.zip"), str(tmp_path / "builds"), str(pause), digest(ARCHIVE), *files]
        return subprocess.Popen([sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, text=True)

    return start


def test_kill_in_mid_build_leaves_nothing_half_made(
    child: Callable[[float], subprocess.Popen[str]], tmp_path: Path, cache: Path, server: Server
) -> None:
    victim = child(60)
    while not (tmp_path / "builds").exists():
        assert victim.poll() is None
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    toy = asset_of(server.source("good"))
    assert leftovers(cache), "the victim was to die with files on disk"
    assert not assets.is_present(toy)
    assert not (cache / "assets" / "toy").exists()
    assert content(assets.fetch(toy)) == {"model.bin": PAYLOAD, "sub/config.json": b"{}"}
    assert leftovers(cache) == ["assets/toy/manifest.json", "assets/toy/model.bin", "assets/toy/sub/config.json"]


def test_two_processes_build_once(child: Callable[[float], subprocess.Popen[str]], tmp_path: Path, cache: Path) -> None:
    both = [child(0.5), child(0.5)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [text.strip() for text in outputs] == [str(cache / "assets" / "toy")] * 2
    assert (tmp_path / "builds").read_text() == "built\n"


def test_derived_is_built_once_and_offline_afterwards(server: Server, cache: Path) -> None:
    calls: list[Path] = []

    def convert(source: Path, out: Path) -> None:
        calls.append(source)
        (out / "upper.bin").write_bytes((source / "model.bin").read_bytes().upper())

    toy = asset_of(server.source("good"))
    first = assets.derived(toy, "v1", convert)
    assert (first / "upper.bin").read_bytes() == PAYLOAD.upper()
    assert calls == [assets.folder(toy)]
    (assets.folder(toy) / "model.bin").unlink()
    assert assets.derived(asset_of(server.source("500")), "v1", convert) == first
    assert assets.derived(asset_of(server.source("good")), "v2", convert) != first
    assert len(calls) == 2


def test_a_failing_derivation_leaves_nothing(server: Server, cache: Path) -> None:
    def fail(source: Path, out: Path) -> None:
        (out / "half").write_text("half")
        raise DataError("cannot convert")

    with pytest.raises(DataError, match="cannot convert"):
        assets.derived(asset_of(server.source("good")), "v1", fail)
    assert not any("derived" in name for name in leftovers(cache))


U_ITEM = (
    "1|Toy Story (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Toy%20Story%20(1995)|0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
    "267|unknown||||1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
    "1201|Marlene Dietrich: Shadow and Light (1996) |02-Apr-1996||http://x|0|0|0|0|0|0|0|1|0|0|0|0|0|0|0|0|0|0|0\n"
    "1412|Land Before Time III: The Time of the Great Giving (1995) (V)|01-Jan-1995||http://x|0|0|0|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
    "1633|Á köldum klaka (Cold Fever) (1994)|08-Mar-1996||http://x|0|0|0|0|0|1|0|0|1|0|0|0|0|0|0|0|0|0|0\n"
)
RECBOLE_ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tToy Story\t1995\tAnimation Children's Comedy\n"
    "267\tunkonwn\tunkonwn\tunknown\n"
    "1201\tMarlene Dietrich: Shadow and Light\t1996\tDocumentary\n"
    "1412\tLand Before Time III: The Time of the Great Giving (1995)\tV\tAnimation Children's\n"
    "1633\tÁ köldum klaka (Cold Fever)\t1994\tComedy Drama\n"
)
U_DATA = b"196\t242\t3\t881250949\n186\t302\t3\t891717742\n"


def test_both_movielens_layouts_give_the_same_files(tmp_path: Path) -> None:
    official, recbole = tmp_path / "ml-100k.zip", tmp_path / "recbole.whl"
    official.write_bytes(zipped({"ml-100k/u.data": U_DATA, "ml-100k/u.item": U_ITEM.encode("latin-1")}))
    inter = b"user_id:token\titem_id:token\trating:float\ttimestamp:float\r\n" + U_DATA.replace(b"\n", b"\r\n")
    stem = "recbole/dataset_example/ml-100k/ml-100k"
    recbole.write_bytes(zipped({f"{stem}.inter": inter, f"{stem}.item": RECBOLE_ITEM.encode()}))
    for archive, build in ((official, movielens.from_official), (recbole, movielens.from_recbole)):
        out = tmp_path / archive.stem
        out.mkdir()
        build(archive, out)
        assert (out / "ratings.tsv").read_bytes() == U_DATA
        assert (out / "items.tsv").read_text(encoding="utf-8").splitlines() == [
            "item\ttitle\tyear\tgenres",
            "1\tToy Story\t1995\tAnimation|Children's|Comedy",
            "267\tunknown\t\tunknown",
            "1201\tMarlene Dietrich: Shadow and Light\t1996\tDocumentary",
            "1412\tLand Before Time III: The Time of the Great Giving\t1995\tAnimation|Children's",
            "1633\tÁ köldum klaka (Cold Fever)\t1994\tComedy|Drama",
        ]


def test_a_broken_movielens_archive_is_a_refused_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = zipped({"ml-100k/u.item": b"1|no flags\n", "ml-100k/u.data": U_DATA})
    (tmp_path / "ml-100k.zip").write_bytes(broken)
    monkeypatch.setenv("WORKBENCH_ASSETS", str(tmp_path))
    official = ML_100K.sources[0]
    dead = Url(official.file, digest(broken), official.build, "http://127.0.0.1:9/ml-100k.zip")
    with pytest.raises(UnavailableError, match=r"ml-100k\.zip: zip\(\) argument"):
        assets.fetch(Asset("ml", "", "", (dead,), ML_100K.files))
