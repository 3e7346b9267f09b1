"""`safelight upscale` and `safelight get`: files and folders, what they said of themselves, weights by name or file.

Run in this process; networks are tiny, and so are pictures.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from commandline import as_nobody, in_process
from esrgan import compact_state, state
from PIL import Image, ImageCms
from safetensors.torch import save_file

from safelight.run import metadata, upscaling
from safelight.run.infotext import parse_infotext
from safelight.run.record import Record
from safelight.sampling import catalog_upscalers as catalog

TEXT = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 24x16"
RECORD = Record(
    prompt="a cat",
    negative="",
    width=6,
    height=5,
    steps=3,
    guidance=7.0,
    seed=1,
    sampler="Euler",
    model="m",
    model_name="m",
    model_hash=None,
    revision=None,
    vae=None,
)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command line here, in an empty folder, without the settings of whoever runs the tests."""
    as_nobody(monkeypatch, tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SAFELIGHT_DEVICE", "cpu")
    with in_process(monkeypatch, capsys) as call:
        yield call


@pytest.fixture
def tiny(tmp_path):
    """A network of x2 in a file."""
    save_file(compact_state(), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def picture(path, mode="RGB", size=(6, 5), **options):
    path.parent.mkdir(exist_ok=True, parents=True)
    channels = len(mode)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), np.uint8)
    Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels, mode).save(path, **options)
    return path


def opened(path):
    with Image.open(path) as image:
        image.load()
        return image


def names(path):
    return sorted(inside.name for inside in path.iterdir())


def failed(ran, code, *words):
    """One line on stderr that holds the words, nothing on stdout."""
    assert (ran.code, ran.out) == (code, ""), ran
    assert len(ran.err.splitlines()) == 1, ran.err
    for word in words:
        assert word in ran.err, ran.err


def test_a_picture_becomes_a_larger_one(run, tmp_path):
    ran = run("upscale", picture(tmp_path / "a.png"), "b.png", "-q")

    assert (ran.code, ran.out, ran.err) == (0, "b.png\n", "")
    assert opened("b.png").size == (24, 20)


@pytest.mark.parametrize(
    ("model", "scale", "size"),
    [
        ("tiny.safetensors", None, (12, 10)),
        ("tiny.safetensors", 3, (18, 15)),
        ("tiny.safetensors", 1.5, (9, 8)),
        ("tiny.safetensors", 0.5, (3, 2)),
        ("Lanczos", 2, (12, 10)),
        ("nearest", 2.5, (15, 12)),
        ("None", None, (24, 20)),
        ("realesr-animevideov3-x2", None, (12, 10)),
    ],
)
def test_any_upscaler_gives_the_scale_that_was_asked_for(run, tmp_path, tiny, model, scale, size):
    asked = () if scale is None else ("--scale", scale)
    assert run("upscale", picture(tmp_path / "a.png"), "b.png", "--model", model, *asked).code == 0
    assert opened("b.png").size == size


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_the_format_is_that_of_the_name(run, tmp_path, suffix):
    assert run("upscale", picture(tmp_path / "a.png"), f"b{suffix}", "--model", "Lanczos").code == 0
    assert opened(f"b{suffix}").format == {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[suffix]


def test_transparency_is_kept_by_lanczos(run, tmp_path, tiny):
    source = opened(picture(tmp_path / "a.png", "RGBA"))

    assert run("upscale", "a.png", "b.png", "--model", tiny).code == 0

    larger = opened("b.png")
    assert larger.mode == "RGBA"
    expected = source.getchannel("A").resize((12, 10), Image.Resampling.LANCZOS)
    assert larger.getchannel("A").tobytes() == expected.tobytes()


def test_a_jpeg_of_something_transparent_is_laid_over_white(run, tmp_path):
    Image.new("RGBA", (6, 5), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert run("upscale", "a.png", "b.jpg", "--model", "Nearest").code == 0
    assert np.asarray(opened("b.jpg")).min() > 250


def test_16_bit_is_read_as_8(run, tmp_path):
    Image.fromarray(np.full((5, 6), 0x8000, np.uint16)).save(tmp_path / "a.png")
    assert run("upscale", "a.png", "b.png", "--model", "Nearest", "--scale", 2).code == 0
    assert set(np.asarray(opened("b.png")).flat) == {128}


def test_a_colour_profile_is_kept(run, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture(tmp_path / "a.png", icc_profile=profile)
    for name in ("b.png", "b.jpg", "b.webp"):
        assert run("upscale", "a.png", name, "--model", "Nearest").code == 0
        assert opened(name).info["icc_profile"] == profile


# -- what the picture says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_what_a_picture_says_is_kept_and_what_was_done_added(run, tmp_path, suffix):
    from PIL.PngImagePlugin import PngInfo

    said = PngInfo()
    said.add_text("parameters", TEXT)
    picture(tmp_path / "a.png", pnginfo=said)

    assert run("upscale", "a.png", f"b{suffix}", "--model", "Lanczos", "--scale", 1.5).code == 0

    record, text = metadata.read(tmp_path / f"b{suffix}")
    assert record is None
    assert text == f"{TEXT}, Postprocess upscale by: 1.5, Postprocess upscaler: Lanczos"
    prompt, negative, fields = parse_infotext(text)
    assert (prompt, negative, fields["Seed"]) == ("a cat", "dog", "1")


@pytest.mark.parametrize(
    ("model", "upscale"), [("realesr-animevideov3-x4", 4), ("Lanczos", 1)], ids=["as generate does", "otherwise"]
)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_record_of_ours_tells_what_generate_would_do_again(run, tmp_path, suffix, model, upscale):
    metadata.write(Image.new("RGB", (6, 5)), tmp_path / f"a{suffix}", RECORD)

    assert run("upscale", f"a{suffix}", f"b{suffix}", "--model", model).code == 0

    record, text = metadata.read(tmp_path / f"b{suffix}")
    assert record == replace(RECORD, upscale=upscale, upscaler=model if upscale == 4 else None)
    assert f"Postprocess upscaler: {model}" in text


def test_a_picture_that_says_nothing_gets_fields_and_no_prompt(run, tmp_path):
    run("upscale", picture(tmp_path / "a.png"), "b.png")
    prompt, _, fields = parse_infotext(metadata.read(tmp_path / "b.png")[1])
    assert prompt == ""
    assert fields["Postprocess upscale by"] == "4"
    assert fields["Postprocess upscaler"] == "realesr-animevideov3-x4"


def test_a_foreign_text_keeps_its_lines():
    text = upscaling.infotext("only words,\nin two lines", catalog.UPSCALERS["R-ESRGAN 4x+"], 2.0)
    prompt, _, fields = parse_infotext(text)
    assert prompt == "only words,\nin two lines"
    assert fields["Postprocess upscaler"] == "R-ESRGAN 4x+"


# -- folders -----------------------------------------------------------------------------------------------------------


def test_a_folder_with_all_below_it_goes_flat_into_another(run, tmp_path):
    for name in ("a.png", "deeper/b.jpg", "deeper/a.png", "c.bmp"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")

    ran = run("upscale", "in", "out", "--model", "Nearest", "--scale", 2, "-q")

    assert ran.code == 0, ran
    assert names(tmp_path / "out") == ["a-1.png", "a.png", "b.jpg", "c.png"]
    assert len(ran.out.splitlines()) == 4


def test_files_and_folders_go_together(run, tmp_path):
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "b.png")
    assert run("upscale", "in", "b.png", "out", "--model", "Nearest").code == 0
    assert names(tmp_path / "out") == ["a.png", "b.png"]


def test_what_was_made_earlier_is_neither_read_nor_written_over(run, tmp_path):
    picture(tmp_path / "a.png")
    assert run("upscale", ".", "out", "--model", "Nearest").code == 0
    before = (tmp_path / "out" / "a.png").read_bytes()

    failed(run("upscale", ".", "out", "--model", "Nearest", "--scale", 2), 2, "there already", "--overwrite")
    assert (tmp_path / "out" / "a.png").read_bytes() == before

    assert run("upscale", ".", "out", "--model", "Nearest", "--scale", 2, "--overwrite").code == 0
    assert opened(tmp_path / "out" / "a.png").size == (12, 10)


def test_one_bad_file_does_not_lose_the_others(run, tmp_path):
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nhostile")
    picture(tmp_path / "in" / "c.png")

    ran = run("upscale", "in", "out", "--model", "Nearest", "--json")

    assert ran.code == 3
    assert names(tmp_path / "out") == ["a.png", "c.png"]
    assert [entry["file"] for entry in ran.document["failed"]] == ["in/b.png"]
    assert "2 of 3 files are done, 1 failed" in ran.err


def test_the_document_tells_what_was_done(run, tmp_path, tiny):
    ran = run("upscale", picture(tmp_path / "a.png"), "b.png", "--model", tiny, "--json", "--dtype", "fp32")

    made = ran.document
    assert (made["upscaler"], made["scale"], made["dtype"]) == ("tiny", 2.0, "float32")
    assert made["network"] == "SRVGGNetCompact of 4 layers, 6 features, x2"
    (entry,) = made["files"]
    assert (entry["from_width"], entry["from_height"], entry["width"], entry["height"]) == (6, 5, 12, 10)
    assert set(entry["seconds"]) == {"read", "upscale", "write"}
    assert ran.err == ""


def test_tiles_give_the_same_picture(run, tmp_path, tiny):
    picture(tmp_path / "a.png", size=(60, 40))
    for name, more in (("whole.png", ()), ("tiled.png", ("--tile", 16))):
        assert run("upscale", "a.png", name, "--model", tiny, "--dtype", "float32", *more).code == 0
    whole, tiled = (np.asarray(opened(name)).astype(int) for name in ("whole.png", "tiled.png"))
    assert np.abs(whole - tiled).max() <= 1


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("a.png",), 2, ("IN... OUT",)),
        (("a.png", "a.png"), 2, ("is what is read",)),
        (("a.png", "b.gif"), 2, ("pictures are written as",)),
        (("missing.png", "b.png"), 2, ("no file at missing.png",)),
        (("empty", "out"), 2, ("holds no picture",)),
        (("a.png", "tiny.safetensors", "b.png"), 2, ("is one file", "give a folder")),
        (("a.png", "b.png", "--scale", "0"), 2, ("more than 0",)),
        (("a.png", "b.png", "--scale", "nan"), 2, ("--scale nan",)),
        (("a.png", "b.png", "--scale", "33"), 2, ("at most 32",)),
        (("a.png", "b.png", "--tile", "2"), 2, ("--tile",)),
        (("a.png", "b.png", "--model", "Lanzcos"), 2, ("did you mean", "Lanczos")),
        (("a.png", "b.png", "--model", "Latent"), 2, ("is for latents",)),
        (("a.png", "b.png", "--model", "gone.pth"), 2, ("no file of weights at gone.pth",)),
        (("a.png", "b.png", "--model", "pickled.pth"), 2, ("--allow-pickle",)),
        (("a.png", "b.png", "--model", "R-ESRGAN 4x+"), 4, ("safelight get 'R-ESRGAN 4x+'",)),
        (("a.png", "b.png", "--dtype", "int8"), 2, ("unknown dtype 'int8'",)),
        (("tiny.safetensors", "b.png"), 2, ("no picture that can be read",)),
    ],
)
def test_what_cannot_be_is_one_line(run, tmp_path, tiny, arguments, code, words):
    picture(tmp_path / "a.png")
    torch.save({"params": state()}, tmp_path / "pickled.pth")
    (tmp_path / "empty").mkdir()

    failed(run("upscale", *arguments), code, *words)

    assert not (tmp_path / "b.png").exists()


def test_a_pickle_of_ones_own_is_read_when_it_is_allowed(run, tmp_path):
    torch.save({"params": state(doublings=1)}, tmp_path / "mine.pth")
    picture(tmp_path / "a.png")
    assert run("upscale", "a.png", "b.png", "--model", "mine.pth", "--allow-pickle").code == 0
    assert opened("b.png").size == (12, 10)


# -- weights -----------------------------------------------------------------------------------------------------------


def test_get_lists_what_there_is(run):
    ran = run("get")
    assert ran.code == 0
    assert len(ran.out.splitlines()) == len(catalog.ROWS)
    (line,) = [line for line in ran.out.splitlines() if line.startswith("R-ESRGAN 4x+  ")]
    assert all(word in line for word in ("67.0 MB", "BSD-3-Clause", "safelight get 'R-ESRGAN 4x+'"))


def test_get_lists_for_machines(run):
    listed = {row["name"]: row for row in run("get", "--json").document["upscalers"]}
    assert set(listed) == set(catalog.UPSCALERS)
    assert listed["realesr-animevideov3-x4"]["here"] is True
    assert listed["R-ESRGAN 4x+"]["here"] is False
    assert listed["R-ESRGAN 4x+"]["path"] is None


def test_get_takes_a_file_and_then_the_name_works(run, tmp_path):
    general = compact_state(layers=34, features=64, scale=4)
    save_file(general, tmp_path / "brought.safetensors")

    ran = run("get", "realesr-general-x4v3", "--from", "brought.safetensors")

    assert (ran.code, ran.out.strip()) == (
        0,
        str(tmp_path / "cache/safelight/upscalers/realesr-general-x4v3.safetensors"),
    )
    picture(tmp_path / "a.png")
    assert run("upscale", "a.png", "b.png", "--model", "R-ESRGAN General 4xV3").code == 0
    assert opened("b.png").size == (24, 20)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("R-ESRGAN 4x",), 2, ("did you mean", "R-ESRGAN 4x+")),
        (("Lanczos",), 2, ("has no weights",)),
        (("R-ESRGAN 4x+", "--from", "gone.pth"), 2, ("no file of weights",)),
        (("R-ESRGAN 4x+", "--from", "tiny.safetensors"), 2, ("is not R-ESRGAN 4x+",)),
        (("--from", "tiny.safetensors"), 2, ("say which upscaler",)),
    ],
)
def test_get_says_what_it_cannot_do(run, tiny, arguments, code, words):
    failed(run("get", *arguments), code, *words)


def test_what_is_bundled_is_here_already(run):
    assert run("get", "R-ESRGAN AnimeVideo").out.strip().endswith("weights/realesr-animevideov3-x4.safetensors")


def test_get_without_a_network_says_how_to_bring_the_file(run, monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    failed(run("get", "R-ESRGAN 4x+", "-q"), 4, "cannot fetch", "--from FILE")
