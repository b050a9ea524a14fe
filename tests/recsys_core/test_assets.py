"""The asset registry under faults: every failure leaves a whole folder or none, and says what was tried."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
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
from recsys_core.assets import Asset, Bundle, Shared, Url, Wheel, amazon, extract, movielens, shared, sources
from recsys_core.assets.datasets import AMAZON, ML_20M, ML_100K
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
    monkeypatch.setenv("WORKBENCH_SHARED_DATA", str(tmp_path / "shared"))
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
    assert set(assets.assets()) > {"ml-100k", "ml-20m", "amazon-toys", "beauty-s3rec", "smollm2-135m-instruct", "all-minilm-l6-v2"}
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
U_USER = b"1|24|M|technician|85711\n2|53|F|other|94043\n"
RECBOLE_USER = (
    b"user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n1\t24\tM\ttechnician\t85711\n2\t53\tF\tother\t94043\n"
)
U_DATA = b"196\t242\t3\t881250949\n186\t302\t3\t891717742\n"


def test_both_movielens_layouts_give_the_same_files(tmp_path: Path) -> None:
    official, recbole = tmp_path / "ml-100k.zip", tmp_path / "recbole.whl"
    official.write_bytes(zipped({"ml-100k/u.data": U_DATA, "ml-100k/u.item": U_ITEM.encode("latin-1"), "ml-100k/u.user": U_USER}))
    inter = b"user_id:token\titem_id:token\trating:float\ttimestamp:float\r\n" + U_DATA.replace(b"\n", b"\r\n")
    stem = "recbole/dataset_example/ml-100k/ml-100k"
    recbole.write_bytes(zipped({f"{stem}.inter": inter, f"{stem}.item": RECBOLE_ITEM.encode(), f"{stem}.user": RECBOLE_USER}))
    for archive, build in ((official, movielens.from_100k), (recbole, movielens.from_recbole)):
        out = tmp_path / archive.stem
        out.mkdir()
        build(archive, out)
        assert (out / "ratings.tsv").read_bytes() == U_DATA
        assert (out / "users.tsv").read_text() == "user\tage\tgender\toccupation\n1\t24\tM\ttechnician\n2\t53\tF\tother\n"
        assert (out / "items.tsv").read_text(encoding="utf-8").splitlines() == [
            "item\ttitle\tyear\tgenres",
            "1\tToy Story\t1995\tAnimation|Children's|Comedy",
            "267\tunknown\t\tunknown",
            "1201\tMarlene Dietrich: Shadow and Light\t1996\tDocumentary",
            "1412\tLand Before Time III: The Time of the Great Giving\t1995\tAnimation|Children's",
            "1633\tÁ köldum klaka (Cold Fever)\t1994\tComedy|Drama",
        ]


def test_a_broken_movielens_archive_is_a_refused_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = zipped({"ml-100k/u.item": b"1|no flags\n", "ml-100k/u.data": U_DATA, "ml-100k/u.user": U_USER})
    (tmp_path / "ml-100k.zip").write_bytes(broken)
    monkeypatch.setenv("WORKBENCH_ASSETS", str(tmp_path))
    official = ML_100K.sources[0]
    dead = Url(official.file, digest(broken), official.build, "http://127.0.0.1:9/ml-100k.zip")
    with pytest.raises(UnavailableError, match=r"ml-100k\.zip: zip\(\) argument"):
        assets.fetch(Asset("ml", "", "", (dead,), ML_100K.files))


def test_a_million_ratings_layout(tmp_path: Path) -> None:
    archive = tmp_path / "ml-1m.zip"
    movies = "1::Toy Story (1995)::Animation|Children's|Comedy\n2::Léon (1994)::Crime\n"
    members = {"ml-1m/ratings.dat": b"1::2::5::978300760\r\n2::1::3::978302109\r\n", "ml-1m/movies.dat": movies.encode("latin-1")}
    archive.write_bytes(zipped(members | {"ml-1m/users.dat": b"1::F::1::10::48067\n2::M::56::16::70072-1\n"}))
    movielens.from_1m(archive, tmp_path)
    assert (tmp_path / "ratings.tsv").read_text() == "1\t2\t5\t978300760\n2\t1\t3\t978302109\n"
    assert (tmp_path / "items.tsv").read_text(encoding="utf-8").splitlines()[1:] == [
        "1\tToy Story\t1995\tAnimation|Children's|Comedy",
        "2\tLéon\t1994\tCrime",
    ]
    assert (tmp_path / "users.tsv").read_text().splitlines()[1:] == [
        "1\tunder 18\tF\tK-12 student",
        "2\t56 and over\tM\tself-employed",
    ]


def test_the_later_movielens_layout(tmp_path: Path) -> None:
    archive, ratings = tmp_path / "ml-20m.zip", b"userId,movieId,rating,timestamp\r\n1,2,3.5,1112486027\r\n"
    movies = 'movieId,title,genres\n1,"Am, I (1995)",Adventure|IMAX\n2,Show (2006-2007),(no genres listed)\n3,Untitled,Drama\n'
    archive.write_bytes(zipped({"ml-20m/ratings.csv": ratings, "ml-20m/movies.csv": movies.encode()}))
    ML_20M.sources[0].build(archive, tmp_path)
    assert (tmp_path / "ratings.csv").read_bytes() == ratings
    assert (tmp_path / "items.tsv").read_text().splitlines()[1:] == [
        "1\tAm, I\t1995\tAdventure|IMAX",
        "2\tShow\t2006\t",
        "3\tUntitled\t\tDrama",
    ]


REVIEWS = [
    {"reviewerID": "A1", "asin": "B2", "reviewText": "good", "overall": 5.0, "unixReviewTime": 1390694400, "reviewTime": "01 26, 2014"},
    {"reviewerID": "A2", "asin": "B1", "overall": 1.0, "unixReviewTime": 1390608000},
]
PRODUCTS = [
    {"asin": "B1", "title": "Soap &amp; Water", "price": 3.17, "brand": "Lux", "categories": [["Beauty", "Bath"], ["Beauty", "Hair"]]},
    {"asin": "B9", "title": "Reviewed by nobody", "categories": [["Beauty"]]},
    {"asin": "B2", "description": "'asin': 'B9'", "categories": [["Beauty"]]},
]


def put_amazon(folder: Path, reviews: list[str], products: list[str]) -> None:
    for name, lines in (("reviews_Beauty_5.json.gz", reviews), ("meta_Beauty.json.gz", products)):
        (folder / name).write_bytes(gzip.compress("\n".join(lines).encode()))


def test_the_amazon_layout_and_digests_first_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_amazon(tmp_path, [json.dumps(r) for r in REVIEWS], [repr(p) for p in PRODUCTS])
    beauty = AMAZON[0]
    assert assets.whereabouts(beauty) == "download"
    monkeypatch.setenv("WORKBENCH_ASSETS", str(tmp_path))
    assert assets.whereabouts(beauty) == "at hand"
    folder = assets.fetch(beauty)
    assert assets.whereabouts(beauty) == "cached"
    assert (folder / "ratings.tsv").read_text() == "A1\tB2\t5\t1390694400\nA2\tB1\t1\t1390608000\n"
    assert [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()] == [
        {"item": "B1", "title": "Soap & Water", "categories": ["Beauty", "Bath", "Hair"], "brand": "Lux", "price": 3.17},
        {"item": "B2", "title": "", "categories": ["Beauty"], "brand": "", "price": None},
    ]
    # Nobody published these archives' checksums: what was read is on record, and a later change of the files is found.
    assert assets.first_seen(beauty) == {
        name: digest((tmp_path / name).read_bytes()) for name in ("reviews_Beauty_5.json.gz", "meta_Beauty.json.gz")
    }
    (folder / "ratings.tsv").write_text((folder / "ratings.tsv").read_text().replace("A1", "A3"))
    with pytest.raises(DataError, match=r"ratings\.tsv changed"):
        assets.verify(beauty)


@pytest.mark.parametrize(
    ("review", "product", "message"),
    [
        ('{"reviewerID": "A1"', "{'asin': 'B1'}", "line 2: .* is not a review"),
        ('{"reviewerID": "A1", "asin": "B1", "overall": 5}', "{'asin': 'B1'}", "line 2: .* is not a review: KeyError"),
        (json.dumps(REVIEWS[1]), "{'asin': 'B1', 'price': __import__('os').getcwd()}", "line 1: .* is not a product"),
    ],
)
def test_a_bad_line_in_an_amazon_archive_is_named(tmp_path: Path, review: str, product: str, message: str) -> None:
    put_amazon(tmp_path, [json.dumps(REVIEWS[0]), review], [product])
    with pytest.raises(DataError, match=message):
        amazon.from_gzip("Beauty")(tmp_path, tmp_path)


def test_a_cut_off_gzip_is_a_refused_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_amazon(tmp_path, [json.dumps(r) for r in REVIEWS], [repr(p) for p in PRODUCTS])
    reviews = tmp_path / "reviews_Beauty_5.json.gz"
    reviews.write_bytes(reviews.read_bytes()[:-12])
    monkeypatch.setenv("WORKBENCH_ASSETS", str(tmp_path))
    local = AMAZON[0].sources[0].inside(tmp_path)
    with pytest.raises(UnavailableError, match=r"reviews_Beauty_5\.json\.gz and .*Compressed file ended"):
        assets.fetch(Asset("cut", "", "", (local,), AMAZON[0].files))


def bundle(*parts: tuple[str, bytes]) -> Bundle:
    """A bundle of shared files that must have the given contents; joins them in order."""

    def join(folder: Path, out: Path) -> None:
        (out / "joined").write_bytes(b"".join((folder / Path(name).name).read_bytes() for name, _ in parts))

    return Bundle("both", join, tuple(Shared(name, digest(content), join) for name, content in parts))


def test_a_bundle_checks_each_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shared" / "sub"
    folder.mkdir(parents=True)
    both = Asset("both", "", "", (bundle(("sub/one", b"1"), ("sub/two", b"2")),), {"joined": digest(b"12")})
    assert assets.whereabouts(both) == "missing"
    (folder / "one").write_bytes(b"1")
    assert assets.whereabouts(both) == "missing"
    with pytest.raises(
        UnavailableError, match=r"shared file sub/one and shared file sub/two: not in .*shared, .*\(WORKBENCH_SHARED_DATA\)"
    ):
        assets.fetch(both)
    (folder / "two").write_bytes(b"3")
    assert assets.whereabouts(both) == "at hand"
    with pytest.raises(UnavailableError, match="SHA-256 is"):
        assets.fetch(both)
    (folder / "two").write_bytes(b"2")
    assert content(assets.fetch(both)) == {"joined": b"12"}
    assert assets.first_seen(both) == {}
    assert content(folder) == {"one": b"1", "two": b"2"}


def test_the_folder_of_shared_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert assets.shared_data() == tmp_path / "shared"
    monkeypatch.delenv("WORKBENCH_SHARED_DATA")
    module = tmp_path / "project" / "recsys_core" / "assets" / "sources.py"
    monkeypatch.setattr(sources, "__file__", str(module))
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert assets.shared_data() is None, "not a checkout, so its neighbours mean nothing"
    module.parent.mkdir(parents=True)
    (tmp_path / "project" / "pyproject.toml").touch()
    assert assets.shared_data() == tmp_path / "shared" / "data"
    (tmp_path / "shared" / "data").rmdir()
    assert assets.shared_data() is None


def test_agent4rec_parts_become_one_log(tmp_path: Path) -> None:
    for name, text in (("train", "0 5 3\n1 4\n"), ("valid", "0 9\n1 5\n"), ("test", "1 3 7\n0 4\n")):
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "movie_detail.csv").write_text('movie_id,title,genres,rating,summary\n3,"A, B (1990)",Drama|War,4.1,"One\n two."\n')
    shared.join_agent4rec(tmp_path, tmp_path)
    rows = [line.split("\t") for line in (tmp_path / "parts.tsv").read_text().splitlines()]
    assert rows == [list(r) for r in ("050", "030", "091", "042", "140", "151", "132", "172")]
    assert (tmp_path / "items.tsv").read_text().splitlines()[1] == "3\tA, B (1990)\tDrama|War\t4.1\tOne two."
