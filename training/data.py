"""The pictures firstlight learns from: emoji in three drawing styles, composited on named backgrounds.

Comes in: the npm packages that `fetch` downloads and `objects.txt`. Goes out: sprites, pictures of 64 x 64 and
their captions. Knows nothing of models.

Sources: Fluent Emoji 3D and flat (Microsoft, MIT), Noto Emoji (Google, Apache-2.0), labels from emojibase-data (MIT).
"""

import argparse
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGES = {
    "fluent-3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "fluent-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "noto": "@iconify-json/noto@1.2.9",
    "labels": "emojibase-data@17.0.0",
}
STYLES = ("3d", "flat", "noto")
BACKGROUNDS = {  # sRGB of the middle row; every picture is a little lighter above and darker below
    "white": (238, 238, 238),
    "gray": (128, 128, 128),
    "black": (28, 28, 30),
    "red": (196, 44, 48),
    "yellow": (240, 200, 60),
    "green": (60, 150, 75),
    "blue": (45, 100, 205),
    "purple": (125, 65, 175),
}
SIDE_PX = 64
SPRITE_PX = (48, 56)
GRADIENT = 0.07
HELD_OUT_EVERY = 8  # of the (object, style, background) triples, one in so many is never trained on


@dataclass(frozen=True)
class Thing:
    """One line of objects.txt."""

    name: str  # the word in a caption
    label: str  # the emoji's CLDR short name
    article: str  # "a ", "an " or ""

    @property
    def phrase(self) -> str:
        return self.article + self.name


@dataclass(frozen=True)
class Scene:
    """What a picture shows; `position` picks size and shift, 0 is large and centred."""

    thing: int
    style: int
    background: int
    position: int = 0

    @property
    def held_out(self) -> bool:
        return (self.thing * 5 + self.style * 3 + self.background) % HELD_OUT_EVERY == 0


# (sprite px, shift right, shift down): whole latent cells, so that a shifted picture has shifted latents
POSITIONS = ((56, 0, 0), (56, -4, 0), (56, 4, 0), (56, 0, -4), (56, 0, 4), (48, 0, 0))


OBJECTS = Path(__file__).with_name("objects.txt")


@lru_cache(maxsize=1)
def things() -> list[Thing]:
    """Every object, in the order of the file."""
    out = []
    for line in OBJECTS.read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, label = (part.strip() for part in line.removeprefix("- ").partition("="))
        article = "" if line.startswith("- ") else "an " if name[0] in "aeio" or name == "umbrella" else "a "
        out.append(Thing(name, label or name, article))
    return out


def caption(thing: Thing, style: str, background: str) -> str:
    return f"{thing.phrase}, {style}, on a {background} background"


def caption_variants(thing: Thing, style: str, background: str) -> tuple[str, ...]:
    """Other ways to ask for the same picture; the last ones leave something open."""
    return (
        caption(thing, style, background),
        f"{thing.phrase} on a {background} background, {style} style",
        f"a {style} picture of {thing.phrase} on a {background} background",
        f"{thing.name}, {style}, {background} background",
        f"{thing.phrase} on a {background} background",
        f"{thing.phrase}, {style}",
        thing.phrase,
    )


def fetch(folder: Path) -> None:
    """Downloads and unpacks every package into `folder`; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, package in PACKAGES.items():
        if (folder / name).exists():
            continue
        packed = subprocess.run(
            ["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True, text=True
        )
        archive = folder / packed.stdout.strip().splitlines()[-1]
        with tarfile.open(archive) as tar:
            tar.extractall(folder / name, filter="data")
        archive.unlink()


def _fluent_3d(folder: Path, hexcode: str) -> Image.Image:
    assets = folder / "fluent-3d" / "package" / "assets"
    names = (hexcode, hexcode + "-fe0f", hexcode.replace("-fe0f", ""))
    found = next(path for name in names if (path := assets / f"{name}.webp").exists())
    return Image.open(found).convert("RGBA")


def _svg(folder: Path, package: str, hexcode: str, px: int) -> Image.Image:
    import resvg_py

    icons = json.loads((folder / package / "package" / "icons.json").read_text())
    chars = json.loads((folder / package / "package" / "chars.json").read_text())
    name = chars.get(hexcode) or chars[hexcode.replace("-fe0f", "")]
    icon = icons["icons"].get(name) or icons["icons"][icons["aliases"][name]["parent"]]
    side = icon.get("width", icons.get("width", 16))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{px}" height="{px}" viewBox="0 0 {side} {icon.get("height", icons.get("height", side))}">'
        f"{icon['body']}</svg>"
    )
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")


def _cropped(picture: Image.Image) -> Image.Image:
    """Square, the drawing touching two opposite edges: the three sets leave different margins."""
    box = picture.getbbox(alpha_only=True) or (0, 0, *picture.size)
    side = max(box[2] - box[0], box[3] - box[1])
    out = Image.new("RGBA", (side, side))
    out.paste(picture.crop(box), ((side - box[2] + box[0]) // 2, (side - box[3] + box[1]) // 2))
    return out


def render_sprites(folder: Path) -> dict[int, np.ndarray]:
    """{sprite_px: uint8 [things, styles, sprite_px, sprite_px, 4]}, premultiplied alpha."""
    labels = {e["label"]: e["hexcode"].lower() for e in _labels(folder)}
    out = {px: np.zeros((len(things()), len(STYLES), px, px, 4), np.uint8) for px in SPRITE_PX}
    for index, thing in enumerate(things()):
        hexcode = labels[thing.label]
        drawings = (
            _fluent_3d(folder, hexcode),
            _svg(folder, "fluent-flat", hexcode, 256),
            _svg(folder, "noto", hexcode, 256),
        )
        for style, drawing in enumerate(drawings):
            square = np.asarray(_cropped(drawing), np.float32)
            square[..., :3] *= square[..., 3:] / 255
            premultiplied = Image.fromarray(square.round().astype(np.uint8), "RGBa")
            for px in SPRITE_PX:
                out[px][index, style] = np.asarray(premultiplied.resize((px, px), Image.Resampling.BOX, reducing_gap=3))
    return out


def _labels(folder: Path) -> list[dict]:
    return json.loads((folder / "labels" / "package" / "en" / "data.json").read_text())


def background(name: str) -> np.ndarray:
    """float32 [SIDE_PX, SIDE_PX, 3] in 0..255, a light vertical gradient."""
    rows = np.linspace(1 + GRADIENT, 1 - GRADIENT, SIDE_PX, dtype=np.float32)[:, None, None]
    return np.broadcast_to(rows * np.asarray(BACKGROUNDS[name], np.float32), (SIDE_PX, SIDE_PX, 3)).clip(0, 255).copy()


def compose(sprites: dict[int, np.ndarray], scene: Scene) -> np.ndarray:
    """uint8 [SIDE_PX, SIDE_PX, 3]."""
    px, dx, dy = POSITIONS[scene.position]
    sprite = sprites[px][scene.thing, scene.style].astype(np.float32)
    picture = background(list(BACKGROUNDS)[scene.background])
    top, left = (SIDE_PX - px) // 2 + dy, (SIDE_PX - px) // 2 + dx
    window = picture[top : top + px, left : left + px]
    window *= 1 - sprite[..., 3:] / 255
    window += sprite[..., :3]
    return picture.round().clip(0, 255).astype(np.uint8)


def scenes(*, held_out: bool) -> Iterator[Scene]:
    """Every (thing, style, background) of one side of the split, centred."""
    for thing in range(len(things())):
        for style in range(len(STYLES)):
            for back in range(len(BACKGROUNDS)):
                scene = Scene(thing, style, back)
                if scene.held_out == held_out:
                    yield scene


def load_sprites(path: Path) -> dict[int, np.ndarray]:
    with np.load(path) as stored:
        return {px: stored[str(px)] for px in SPRITE_PX}


def main() -> None:
    parser = argparse.ArgumentParser(description="Download the emoji and write sprites.npz.")
    parser.add_argument("--work", type=Path, default=Path("build/firstlight"))
    work = parser.parse_args().work
    fetch(work / "packages")
    np.savez_compressed(
        work / "sprites.npz", **{str(px): array for px, array in render_sprites(work / "packages").items()}
    )
    print(f"{len(things())} objects x {len(STYLES)} styles -> {work / 'sprites.npz'}")


if __name__ == "__main__":
    main()
