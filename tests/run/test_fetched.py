"""Weights are fetched once, checked by their SHA-256, and are there whole or not at all."""

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from esrgan import compact_state, state
from hub import byte_range
from safetensors.torch import load_file, save_file

from safelight.errors import DamagedModel, EnvironmentProblem, ModelNotFound, UsageError
from safelight.run import fetched
from safelight.sampling import catalog_upscalers as catalog
from safelight.sampling import recognition, upscalers

X4PLUS = catalog.UPSCALERS["R-ESRGAN 4x+"]
TINY = "RRDBNet of 2 blocks, 8 features, 4 growing, x4"


@dataclass
class Release:
    """A server of one file. breaks_at: bytes after which it hangs up, once. ranges: whether it goes on where asked."""

    data: bytes
    breaks_at: int | None = None
    ranges: bool = True
    asked: list[str | None] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(release):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers["Range"]
            release.asked.append(wanted)
            if self.path.endswith("/missing.pth"):
                self.send_error(404)
                return
            part = byte_range(wanted, len(release.data)) if release.ranges else None
            start, stop = part or (0, len(release.data))
            self.send_response(206 if part else 200)
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            if release.breaks_at is not None:
                stop, release.breaks_at = release.breaks_at, None
            self.wfile.write(release.data[start:stop])

        def log_message(self, *_):
            """Tests look at `asked` instead."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    release.url = f"http://127.0.0.1:{server.server_port}/RealESRGAN.pth"
    try:
        yield release
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "safelight" / "upscalers"


@pytest.fixture
def pickled(tmp_path):
    """What upstream publishes: a pickle with params_ema."""
    path = tmp_path / "RealESRGAN.pth"
    torch.save({"params_ema": state()}, path)
    return path


@pytest.fixture
def release(pickled):
    with serving(Release(pickled.read_bytes())) as made:
        yield made


def row_of(release, **changes):
    known = {"sha256": hashlib.sha256(release.data).hexdigest(), "size_bytes": len(release.data)}
    return replace(X4PLUS, **({"url": release.url, "network": TINY} | known | changes))


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_what_is_fetched_becomes_safetensors_of_the_same_values(release, cache):
    told = []
    row = row_of(release)

    path = fetched.fetch(row, report=lambda *report: told.append(report))

    assert names(cache) == [path.name] == ["realesrgan-x4plus.safetensors"]
    assert all(torch.equal(tensor, state()[name]) for name, tensor in load_file(path).items())
    assert upscalers.open_network(row).kind == TINY
    assert told[-1][0] == "download"


def test_it_is_fetched_once(release):
    fetched.fetch(row_of(release))
    fetched.fetch(row_of(release))
    assert len(release.asked) == 1


def test_what_lies_there_damaged_is_fetched_again(release, cache):
    cache.mkdir(parents=True)
    (cache / X4PLUS.file).write_bytes(b"half a file")

    assert upscalers.open_network(replace(row_of(release), file=str(fetched.fetch(row_of(release))))).kind == TINY


def test_a_download_that_broke_off_goes_on_where_it_was(release, cache):
    release.breaks_at = 1000
    with pytest.raises(EnvironmentProblem, match="--from FILE"):
        fetched.fetch(row_of(release))
    assert names(cache) == ["RealESRGAN.pth.part"]

    fetched.fetch(row_of(release))

    assert release.asked == [None, "bytes=1000-"]
    assert names(cache) == [X4PLUS.file]


def test_a_server_without_ranges_sends_all_of_it_again(release, cache):
    release.breaks_at, release.ranges = 1000, False
    with pytest.raises(EnvironmentProblem):
        fetched.fetch(row_of(release))

    fetched.fetch(row_of(release))

    assert names(cache) == [X4PLUS.file]


@pytest.mark.parametrize("change", [b"x", b"far longer than it was said to be" * 1000], ids=["one byte", "longer"])
def test_a_file_of_another_checksum_is_refused_and_not_kept(release, cache, change):
    row = row_of(release)
    release.data = release.data[:-1] + change

    with pytest.raises(DamagedModel, match=r"SHA-256 .* nothing was kept"):
        fetched.fetch(row)

    assert names(cache) == []


def test_a_release_of_another_network_is_refused(release, cache):
    with pytest.raises(UsageError, match=r"is not R-ESRGAN 4x\+"):
        fetched.fetch(row_of(release, network="RRDBNet of 23 blocks, 64 features, 32 growing, x4"))
    assert not [name for name in names(cache) if name.endswith(".safetensors")]


def test_without_a_network_it_says_what_to_do(release):
    row = replace(row_of(release), url="http://127.0.0.1:9/RealESRGAN.pth")
    with pytest.raises(EnvironmentProblem, match=r"cannot fetch .*safelight get 'R-ESRGAN 4x\+' --from FILE") as error:
        fetched.fetch(row)
    assert error.value.exit_code == 4
    assert "\n" not in str(error.value)


def test_what_the_server_does_not_have_is_said(release):
    row = row_of(release, url=release.url.replace("RealESRGAN", "missing"))
    with pytest.raises(EnvironmentProblem, match="404"):
        fetched.fetch(row)


def test_a_cache_that_cannot_be_written_is_said(release, cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    with pytest.raises(EnvironmentProblem, match=r"cannot keep R-ESRGAN 4x\+"):
        fetched.fetch(row_of(release))


@pytest.mark.parametrize("name", ["Lanczos", "realesr-animevideov3-x4", "Latent"])
def test_what_needs_no_fetching_is_said(name):
    with pytest.raises(UsageError, match="safelight get lists"):
        fetched.take(catalog.UPSCALERS[name], catalog.BUNDLED / "any")


# -- brought by hand ---------------------------------------------------------------------------------------------------


def test_safetensors_that_were_brought_are_taken(tmp_path, cache):
    save_file({name: tensor.half() for name, tensor in state().items()}, tmp_path / "a.safetensors")
    row = replace(X4PLUS, network=TINY)

    path = fetched.take(row, tmp_path / "a.safetensors")

    assert names(cache) == [path.name]
    assert upscalers.open_network(row).kind == TINY
    assert recognition.read(path)["conv_first.weight"].dtype == torch.float16


def test_a_pickle_that_was_brought_must_be_allowed(pickled, cache):
    row = replace(X4PLUS, network=TINY)
    with pytest.raises(UsageError, match="--allow-pickle"):
        fetched.take(row, pickled)
    assert names(cache) == []

    assert fetched.take(row, pickled, allow_pickle=True).is_file()


def test_the_published_pickle_is_known_by_its_checksum(pickled, release):
    assert fetched.take(row_of(release), pickled).is_file()


@pytest.mark.parametrize("weights", [compact_state(), state(blocks=1)], ids=["compact", "fewer blocks"])
def test_another_network_is_refused_with_what_it_is(tmp_path, cache, weights):
    save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=r"a.safetensors is not R-ESRGAN 4x\+, which is a RRDBNet.*: it is a "):
        fetched.take(replace(X4PLUS, network=TINY), tmp_path / "a.safetensors")
    assert names(cache) == []


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ModelNotFound):
        fetched.take(X4PLUS, tmp_path / "nothing.safetensors")
