"""Judges firstlight by what its pictures show, on captions that it was never trained on.

python training/evaluate.py --work build/firstlight --model safelight/firstlight/model --out build/firstlight/evaluation

Object: the picture's EfficientNet-lite0 features (pooled, 1280) against those of all objects drawn in the asked style
on white, mean-centred cosine; top-1 and top-5. Pictures are enlarged to 128 px first: at 64 px true drawings are told
apart in 60 % of cases, at 128 px in 98 %. Background: the named colour nearest to the border's median. Style: of the
three true drawings of the asked object on the asked background, at the best of their positions, the one with the least
LPIPS. VAE: PSNR of held-out pictures through it. The same figures of true drawings, after the VAE, stand beside them:
no model can do better.
"""

import argparse
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

import data
import loop
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from networks import WEIGHTS, EfficientNetLite0, Lpips
from PIL import Image
from torch.nn import functional as F

FEATURE_PX = 128


@dataclass(frozen=True)
class Judge:
    """gallery: float32 [styles, things, 1280], every object on white, centred per style and of unit length."""

    network: EfficientNetLite0
    sprites: dict[int, np.ndarray]
    gallery: torch.Tensor
    means: torch.Tensor
    lpips: Lpips

    @classmethod
    def build(cls, sprites: dict[int, np.ndarray]) -> "Judge":
        network = EfficientNetLite0.load(WEIGHTS)
        things, styles = len(data.things()), len(data.STYLES)
        white = list(data.BACKGROUNDS).index("white")
        drawn = np.stack([data.compose(sprites, data.Scene(t, s, white)) for s in range(styles) for t in range(things)])
        gallery = features(network, drawn).view(styles, things, -1)
        means = gallery.mean(1, keepdim=True)
        return cls(network, sprites, F.normalize(gallery - means, dim=-1), means, Lpips.load(WEIGHTS))

    def objects(self, found: torch.Tensor, scenes: list[data.Scene]) -> torch.Tensor:
        """int64 [n, 5]: the five nearest objects, best first."""
        styles = torch.tensor([s.style for s in scenes])
        centred = F.normalize(found - self.means[styles, 0], dim=-1)
        return torch.einsum("nf,ntf->nt", centred, self.gallery[styles]).topk(5).indices

    @torch.inference_mode()
    def style(self, picture: np.ndarray, scene: data.Scene) -> int:
        """In which style the asked object looks most like the picture."""
        drawn = [
            data.compose(self.sprites, replace(scene, style=style, position=position))
            for style in range(len(data.STYLES))
            for position in range(len(data.POSITIONS))
        ]
        true = _signed(np.stack(drawn))
        distances = self.lpips(_signed(picture[None]).expand_as(true), true)
        return int(distances.view(len(data.STYLES), -1).amin(1).argmin())


def _signed(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [n, height, width, 3] -> float32 [n, 3, height, width] in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def features(network: EfficientNetLite0, pictures: np.ndarray) -> torch.Tensor:
    """uint8 [n, side, side, 3] -> float32 [n, 1280]."""
    out = []
    for i in range(0, len(pictures), 64):
        x = torch.from_numpy(pictures[i : i + 64]).permute(0, 3, 1, 2).float()
        x = F.interpolate(x, size=FEATURE_PX, mode="bilinear", align_corners=False)
        out.append(network.features(x.permute(0, 2, 3, 1)))
    return torch.cat(out)


def backgrounds(pictures: np.ndarray) -> np.ndarray:
    """int64 [n]: the named colour nearest to the median of the two outermost rows and columns."""
    border = np.ones(pictures.shape[1:3], bool)
    border[2:-2, 2:-2] = False
    found = np.median(pictures[:, border].astype(np.float32), axis=1)
    named = np.array(list(data.BACKGROUNDS.values()), np.float32)
    return ((found[:, None] - named[None]) ** 2).sum(-1).argmin(1)


def scores(judge: Judge, scenes: list[data.Scene], pictures: np.ndarray) -> dict[str, float]:
    """Percent of pictures that show what their caption asked for."""
    found = features(judge.network, pictures)
    nearest = judge.objects(found, scenes) == torch.tensor([s.thing for s in scenes])[:, None]
    right = {
        "object top-1": nearest[:, 0],
        "object top-5": nearest.any(1),
        "background": torch.from_numpy(backgrounds(pictures) == np.array([s.background for s in scenes])),
        "style": torch.tensor([judge.style(p, s) == s.style for p, s in zip(pictures, scenes, strict=True)]),
    }
    return {name: round(float(hits.float().mean()) * 100, 1) for name, hits in right.items()}


def held_out(count: int) -> list[data.Scene]:
    """The same captions every time, every object as often as the next."""
    scenes = list(data.scenes(held_out=True))
    random.Random(0).shuffle(scenes)
    seen: dict[int, int] = {}
    ranked = []
    for scene in scenes:
        seen[scene.thing] = seen.get(scene.thing, 0) + 1
        ranked.append((seen[scene.thing], scene))
    return [scene for _, scene in sorted(ranked, key=lambda pair: pair[0])][:count]


@torch.inference_mode()
def draw(pipe: StableDiffusionPipeline, scenes: list[data.Scene], *, steps: int, guidance: float) -> np.ndarray:
    """uint8 [n, 64, 64, 3]; picture i has seed i."""
    out = []
    for i in range(0, len(scenes), 32):
        chunk = scenes[i : i + 32]
        captions = [
            data.caption(data.things()[s.thing], data.STYLES[s.style], list(data.BACKGROUNDS)[s.background])
            for s in chunk
        ]
        generators = [torch.Generator().manual_seed(i + j) for j in range(len(chunk))]
        made = pipe(
            captions, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="np"
        )
        out.append((made.images * 255).round().astype(np.uint8))
    return np.concatenate(out)


@torch.inference_mode()
def reconstructed(pipe: StableDiffusionPipeline, pictures: np.ndarray) -> np.ndarray:
    """Through the VAE and back, uint8 [n, 64, 64, 3] both."""
    x = _signed(pictures).to(pipe.vae.device)
    back = [pipe.vae.decode(pipe.vae.encode(x[i : i + 32]).latent_dist.mode()).sample for i in range(0, len(x), 32)]
    eight_bit = ((torch.cat(back).clamp(-1, 1) + 1) * 127.5).round().byte()
    return eight_bit.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over pictures, dB."""
    error = ((a.astype(np.float64) - b) ** 2).mean((1, 2, 3))
    return round(float((10 * np.log10(255**2 / error)).mean()), 2)


def contact_sheet(pictures: np.ndarray, columns: int = 20) -> Image.Image:
    rows = -(-len(pictures) // columns)
    side = pictures.shape[1]
    sheet = Image.new("RGB", (columns * side, rows * side))
    for i, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture), ((i % columns) * side, (i // columns) * side))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/firstlight"))
    parser.add_argument("--model", type=Path, default=Path("safelight/firstlight/model"))
    parser.add_argument("--out", type=Path, default=Path("build/firstlight/evaluation"))
    parser.add_argument("--count", type=int, default=610)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    args = parser.parse_args()
    sprites = data.load_sprites(args.work / "sprites.npz")
    pipe = StableDiffusionPipeline.from_pretrained(args.model, dtype=torch.float32).to(loop.device())
    pipe.set_progress_bar_config(disable=True)
    scenes = held_out(args.count)
    true = np.stack([data.compose(sprites, s) for s in scenes])
    judge = Judge.build(sprites)
    back = reconstructed(pipe, true)
    drawn = draw(pipe, scenes, steps=args.steps, guidance=args.guidance)
    report = {
        "captions": len(scenes),
        "objects": len(data.things()),
        "steps": args.steps,
        "guidance": args.guidance,
        "firstlight": scores(judge, scenes, drawn),
        "true drawings": scores(judge, scenes, back),
        "VAE PSNR dB": psnr(true, back),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")
    contact_sheet(drawn[:200]).save(args.out / "sheet.png")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
