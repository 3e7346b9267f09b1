"""`safelight vae`: pictures and latents through a VAE alone; one file's failure does not lose the others.

Run in this process, on a tiny pipeline saved as a folder, whose VAE's factor is 2.
"""

import numpy as np
import pytest
import tiny
import torch
from commandline import as_nobody, in_process
from PIL import Image
from safetensors.torch import save_file

from safelight.run import coding, picture_files
from safelight.run.load import Loaded
from safelight.vae import engine


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, folder):
    """Runs the command line here, in an empty folder, without the settings of whoever runs the tests."""
    as_nobody(monkeypatch, tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("SAFELIGHT_MODEL", str(folder))
    monkeypatch.setenv("SAFELIGHT_DEVICE", "cpu")
    with in_process(monkeypatch, capsys, "vae") as call:
        yield call


def picture(path, width=24, height=16):
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def failed(ran, code, *words):
    """One line on stderr that holds the words, nothing on stdout."""
    assert (ran.code, ran.out) == (code, ""), ran
    assert ran.err.startswith("safelight: "), ran.err
    assert len(ran.err.splitlines()) == 1, ran.err
    for word in words:
        assert word in ran.err, ran.err


def names(path):
    return sorted(inside.name for inside in path.iterdir())


# -- what comes out ----------------------------------------------------------------------------------------------------


def test_a_round_trip_writes_the_picture_and_tells_how_near_it_is(run, tmp_path):
    picture(tmp_path / "cat.png")
    ran = run("roundtrip", "cat.png")
    assert (ran.code, ran.out) == (0, "cat-roundtrip.png\n"), ran
    error = pixels("cat-roundtrip.png") - pixels("cat.png")
    assert f"PSNR {10 * np.log10(255**2 / (error**2).mean()):.2f} dB" in ran.err
    assert "24x16" in ran.err
    assert "peak" in ran.err
    assert names(tmp_path) == ["cat-roundtrip.png", "cat.png"]


def test_what_was_encoded_decodes_to_what_a_round_trip_gives(run, tmp_path):
    picture(tmp_path / "cat.png", 23, 15)
    assert run("encode", "cat.png").out == "cat.safetensors\n"
    assert run("decode", "cat.safetensors", "--out", "decoded.png").out == "decoded.png\n"
    run("roundtrip", "cat.png")
    assert pixels("decoded.png").shape == (15, 23, 3)
    assert abs(pixels("decoded.png") - pixels("cat-roundtrip.png")).max() <= 1


def test_latents_are_scaled_and_say_where_they_come_from(run, tmp_path):
    picture(tmp_path / "cat.png", 23, 15)
    run("encode", "cat.png")
    from safelight.run import latents

    found = latents.read(tmp_path / "cat.safetensors")
    made = tiny.sd().vae
    tensor = picture_files.as_tensor(picture_files.read(tmp_path / "cat.png"), torch.float32, 2)
    with torch.inference_mode():
        expected = made.encode(tensor).latent_dist.mode() * made.config.scaling_factor
    assert torch.allclose(found.values, expected, atol=1e-5)
    assert (found.model, found.vae_class) == ("tiny-sd", "AutoencoderKL")
    assert (found.scaling_factor, found.shift_factor) == (0.18215, None)
    assert (found.width, found.height) == (23, 15)


def test_sides_that_are_no_multiple_are_padded_and_cropped_and_it_is_said(run, tmp_path):
    picture(tmp_path / "odd.png", 23, 15)
    ran = run("roundtrip", "odd.png")
    assert "23x15, padded to 24x16 for the VAE" in ran.err
    assert pixels("odd-roundtrip.png").shape == (15, 23, 3)
    assert "padded" not in run("roundtrip", picture(tmp_path / "even.png", 22, 14)).err


def test_json_is_one_document_and_stderr_is_silent(run, tmp_path):
    picture(tmp_path / "cat.png", 23, 15)
    ran = run("roundtrip", "cat.png", "--json", "--budget", "2GiB", "--dtype", "bf16")
    assert (ran.code, ran.err) == (0, "")
    (made,) = ran.document["files"]
    assert (made["file"], made["paths"]) == ("cat.png", ["cat-roundtrip.png"])
    assert (made["width"], made["height"], made["padded_width"], made["padded_height"]) == (23, 15, 24, 16)
    assert made["seconds"].keys() == {"read", "encode", "decode", "write"}
    assert made["peak_bytes"] is None or made["peak_bytes"] > 0
    assert made["psnr_db"] == pytest.approx(10 * np.log10(255**2 / made["mse"]))
    assert (ran.document["budget_bytes"], ran.document["dtype"], ran.document["failed"]) == (2**31, "bfloat16", [])


def test_latents_of_several_pictures_become_several_files(run, tmp_path):
    save_file({"latents": torch.randn(2, 4, 8, 8)}, tmp_path / "two.safetensors")
    ran = run("decode", "two.safetensors")
    assert ran.out.splitlines() == ["two-0000.png", "two-0001.png"]
    assert not np.array_equal(pixels("two-0000.png"), pixels("two-0001.png"))
    assert run("decode", "two.safetensors", "-O", "a.png").out.splitlines() == ["a-0000.png", "a-0001.png"]


def test_the_bundled_model_makes_the_round_trip(run, tmp_path):
    picture(tmp_path / "cat.png", 64, 64)
    assert run("roundtrip", "cat.png", "--model", "firstlight", "--how", "whole", "-q").code == 0


# -- files -------------------------------------------------------------------------------------------------------------


def test_of_a_folder_every_picture_is_taken(run, tmp_path):
    for name in ("b.png", "a.jpg", "c.webp"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    ran = run("encode", "in", "--out", "new/out")
    assert (ran.code, ran.out.splitlines()) == (0, [f"new/out/{name}.safetensors" for name in "abc"])
    assert "picture 3 of 3" in ran.err
    assert len(run("decode", "new/out").out.splitlines()) == 3


def test_nothing_that_is_there_is_overwritten_unless_it_is_named(run, tmp_path):
    before = picture(tmp_path / "cat.png").read_bytes()
    run("encode", "cat.png")
    assert run("decode", "cat.safetensors").out == "cat-1.png\n"
    assert run("decode", "cat.safetensors").out == "cat-2.png\n"
    assert (tmp_path / "cat.png").read_bytes() == before
    written = (tmp_path / "cat-1.png").read_bytes()
    assert run("decode", "cat.safetensors", "-O", "cat-1.png", "--dtype", "bfloat16").out == "cat-1.png\n"
    assert (tmp_path / "cat-1.png").read_bytes() != written


def test_one_failure_does_not_lose_the_others(run, tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    picture(tmp_path / "c.png")
    ran = run("roundtrip", "a.png", "b.png", "missing.png", "c.png", "--quiet")
    assert (ran.code, ran.out.splitlines()) == (3, ["a-roundtrip.png", "c-roundtrip.png"])
    lines = ran.err.splitlines()
    assert lines[-1] == "safelight: 2 of 4 files are done, 2 failed"
    assert [line for line in lines if "b.png" in line]
    assert [line for line in lines if "missing.png" in line]
    assert names(tmp_path) == ["a-roundtrip.png", "a.png", "b.png", "c-roundtrip.png", "c.png"]


def test_json_names_what_failed(run, tmp_path):
    picture(tmp_path / "a.png")
    ran = run("roundtrip", "a.png", "missing.png", "--json")
    assert ran.code == 3
    assert [made["file"] for made in ran.document["files"]] == ["a.png"]
    assert ran.document["failed"] == [{"file": "missing.png", "error": "no file at missing.png"}]


def test_where_everything_fails_nothing_is_partly_done(run):
    ran = run("encode", "a.png", "b.png")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines()[-1] == "safelight: 0 of 2 files are done, 2 failed"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("encode", "missing.png"), 2, ("no file at missing.png",)),
        (("encode", "empty"), 2, ("empty holds no", ".webp")),
        (("decode", "cat.png"), 1, ("cat.png", "safetensors")),
        (("encode", "weights.safetensors"), 2, ("no picture",)),
        (("decode", "weights.safetensors"), 2, ("no tensor 'latents'",)),
        (("decode", "wide.safetensors"), 2, ("16 channels", "takes 4", "--model")),
        (("roundtrip", "cat.png", "--out", "cat.jpg"), 2, ("--out cat.jpg", ".png or .tif")),
        (("roundtrip", "cat.png", "--out", "cat.png"), 2, ("--out cat.png is what is read",)),
        (("encode", "cat.png", "--out", "cat.png"), 2, (".safetensors",)),
        (("roundtrip", "cat.png", "other.png", "--out", "a.png"), 2, ("one file", "there are 2")),
        (("roundtrip", "cat.png", "--budget", "much"), 2, ("'much' is no amount of memory",)),
        (("roundtrip", "cat.png", "--how", "exakt"), 2, ("'exakt'", "did you mean exact")),
        (("roundtrip", "cat.png", "--dtype", "int8"), 2, ("unknown dtype 'int8'",)),
        (("roundtrip", "cat.png", "--device", "abacus"), 2, ("unknown device 'abacus'",)),
        (("roundtrip", "cat.png", "--model", "./nothing"), 2, ("no model at ./nothing",)),
        (("roundtrip", "cat.png", "--buget", "1GiB"), 2, ("did you mean --budget",)),
        (("roundtrp", "cat.png"), 2, ("did you mean vae roundtrip",)),
        (("encode", "cat.png", "--fidelity", "lossy"), 2, ("unknown fidelity", "rounding")),
        (("encode", "cat.png", "--how", "whole", "--budget", "1GiB"), 2, ("keeps no budget",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_is_one_line_that_says_what_to_do(run, tmp_path, arguments, code, words):
    picture(tmp_path / "cat.png")
    picture(tmp_path / "other.png")
    (tmp_path / "empty").mkdir()
    save_file({"weight": torch.ones(2)}, tmp_path / "weights.safetensors")
    save_file({"latents": torch.ones(1, 16, 4, 4)}, tmp_path / "wide.safetensors")
    before = names(tmp_path)
    failed(run(*arguments), code, *words)
    assert names(tmp_path) == before


def test_advice_names_each_way_its_bytes_and_the_one_to_take(run):
    told = run("advise", "64x48", "--model", "firstlight")
    assert told.code == 0 and "decode 64x48 px, AutoencoderKL, float32" in told.out
    assert "Take exact (--how exact): " in told.out
    made = run("advise", "64x48", "--model", "firstlight", "--json", "--encode", "--budget", "8MiB").document
    assert (made["schema"], made["what"], made["width"], made["height"]) == (1, "encode", 64, 48)
    assert made["best"] in made["options"] and made["best"]["nbytes"] <= made["budget_bytes"] == 8 * 2**20


def test_list_prints_the_catalogue_and_as_json_all_that_is_known(run):
    told, made = run("list"), run("list", "--json")
    names = [row["name"] for row in made.document["vaes"]]
    assert (told.code, made.code, made.document["schema"]) == (0, 0, 1)
    assert [line.split()[0] for line in told.out.splitlines()[1:]] == names
    assert {"ft-mse", "sdxl-vae-fp16-fix", "taesd"} <= set(names)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("64",), 2, ("'64' is no size", "1024x768")),
        (("63x64",), 2, ("multiples of 4",)),
        (("64x64", "--budget", "0.001MiB"), 6, ("no way to decode 64x64 fits in 0.001MiB",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_advice_that_cannot_be_given_is_one_line(run, arguments, code, words):
    told = run("advise", *arguments, "--model", "firstlight")
    assert told.code == code and all(word in told.err for word in words), told.err


# -- the work itself, its engine a seam --------------------------------------------------------------------------------


@pytest.fixture
def coder():
    return lambda make: coding.Coder(vae := tiny.sd().vae, Loaded("tiny", "tiny"), tiny.cpu(), make(vae))


def whole(vae):
    return engine.Engine(vae, how="whole")


def test_the_engine_gets_padded_pictures(coder, tmp_path):
    seen = []

    class Watched(engine.Engine):
        def encode(self, pictures):
            seen.append(tuple(pictures.shape))
            return super().encode(pictures)

        def decode(self, latents, sink=None):
            seen.append(tuple(latents.shape))
            return super().decode(latents, sink)

    coding.roundtrip(coder(Watched), picture(tmp_path / "a.png", 23, 15), tmp_path / "b.png")
    assert seen == [(1, 3, 16, 24), (1, 4, 8, 12)]


def test_how_fidelity_and_budget_reach_the_engine(run, tmp_path, monkeypatch):
    made = []

    class Noted(engine.Engine):
        def __post_init__(self):
            made.append((self.budget_bytes, self.how, self.fidelity))
            super().__post_init__()

    monkeypatch.setattr(engine, "Engine", Noted)
    done = run("encode", str(picture(tmp_path / "a.png")), "--how", "exact", "--fidelity", "exact", "--budget", "1GiB")
    assert done.code == 0
    assert made == [(2**30, "exact", "exact")]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."),
            True,
        ),
        (MemoryError(), True),
        (RuntimeError("a mistake of ours"), False),
    ],
    ids=["torch", "python", "another"],
)
def test_memory_that_runs_out_half_way_is_told_and_leaves_no_file(coder, tmp_path, error, raised):
    from safelight.errors import OutOfMemory

    class Failing(engine.Engine):
        def decode(self, latents, sink=None):
            sink(0, torch.zeros(1, 3, 4, 24))
            raise error

    picture(tmp_path / "a.png")
    with pytest.raises(OutOfMemory if raised else RuntimeError, match="decode of .* ran out" if raised else "of ours"):
        coding.roundtrip(coder(Failing), tmp_path / "a.png", tmp_path / "b.png")
    assert names(tmp_path) == ["a.png"]


def test_a_picture_that_comes_back_equal_has_no_psnr(coder, tmp_path):
    class Mirror(engine.Engine):
        def encode(self, pictures):
            return pictures

        def decode(self, latents, sink=None):
            sink(0, latents)

    made = coding.roundtrip(coder(Mirror), picture(tmp_path / "a.png"), tmp_path / "b.png")
    assert (made.mse, made.psnr_db) == (0, None)


def test_latents_for_a_picture_of_another_size_give_all_that_they_cover(coder, tmp_path):
    told = {"width": "999", "height": "7"}
    save_file({"latents": torch.zeros(1, 4, 4, 6)}, tmp_path / "a.safetensors", told)
    made = coding.decode(coder(whole), tmp_path / "a.safetensors", lambda count: [tmp_path / "a.png"])
    assert (made.width, made.height) == (12, 8)
