"""Scores whose networks the package cannot bring: CLIP score and FID, where the user has their weights.

Comes in: pictures, and a folder or file of weights. Goes out: a number. `lacking` says in advance what is not here.
Nothing is fetched: a download of gigabytes is not to be a side effect of a measurement.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.errors import EnvironmentProblem, UnknownName, UsageError
from safelight.measure import pixels
from safelight.probe import packages

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

INCEPTION = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
CLIP = "openai/clip-vit-base-patch16, or any other folder of a CLIPModel with its tokenizer"
# Radford et al., 2021: what CLIP's pictures are centred and scaled by
CLIP_MEAN, CLIP_SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BATCH = 16
NEEDS = {"clip-score": ("transformers",), "fid": ("torchmetrics", "torch-fidelity", "torchvision")}


def lacking(name: str, weights: Path | None) -> str | None:
    """Why "clip-score" or "fid" cannot be measured with these weights; None if it can."""
    if name not in NEEDS:
        raise UnknownName("optional score", name, NEEDS)
    reasons = [reason for package in NEEDS[name] if (reason := packages.missing(package))]
    if weights is None:
        source = CLIP if name == "clip-score" else INCEPTION
        reasons.append(f"its weights are not part of Safelight: name a local copy of {source}")
    elif not weights.exists():
        reasons.append(f"there is no {weights}")
    return f"{name}: {'; '.join(reasons)}" if reasons else None


def clip_score(pictures: "Sequence[Image]", prompts: Sequence[str], weights: Path) -> float:
    """0..100, higher is better: 100 times the cosine of CLIP's picture and prompt, at least 0, mean over pictures.

    Hessel et al., "CLIPScore", 2021, as torchmetrics scales it. A prompt is cut at the tokens that the model has. The
    number depends on the model: compare none of two. weights: a folder of a CLIPModel with its tokenizer.
    """
    _check("clip-score", weights)
    if len(pictures) != len(prompts) or not prompts:
        raise UsageError(f"{len(pictures)} pictures and {len(prompts)} prompts: one for each is needed")
    import torch
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(weights, local_files_only=True).eval()
    tokens = CLIPTokenizer.from_pretrained(weights, local_files_only=True)
    side, longest = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings
    total = 0.0
    for begin in range(0, len(pictures), BATCH):
        words = tokens(
            list(prompts[begin : begin + BATCH]), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
        shown = torch.cat([_for_clip(picture, side) for picture in pictures[begin : begin + BATCH]])
        with torch.inference_mode():
            made = model(input_ids=words.input_ids, attention_mask=words.attention_mask, pixel_values=shown)
        total += float((made.image_embeds * made.text_embeds).sum(-1).clamp(min=0).sum())
    return 100 * total / len(pictures)


def _for_clip(picture: "Image", side: int) -> "Tensor":
    """float32 (1, 3, side, side): the shorter side brought to `side`, the middle cut out, centred and scaled."""
    import numpy as np
    import torch
    from PIL import Image

    pixels.of(picture)  # refuses what is not RGB
    scale = side / min(picture.size)
    width, height = (max(side, round(length * scale)) for length in picture.size)
    left, top = (width - side) // 2, (height - side) // 2
    sized = picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    values = (np.asarray(sized, np.float32) / 255 - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_SPREAD, np.float32)
    return torch.from_numpy(values).permute(2, 0, 1)[None]


def fid(plains: "Sequence[Image]", others: "Sequence[Image]", weights: Path) -> float:
    """0 and up, lower is better: the Frechet distance on InceptionV3, by torchmetrics. Heusel et al., 2017.

    Biased for few pictures: published figures are of 10000 and more. weights: the file that INCEPTION names.
    """
    _check("fid", weights)
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance  # type: ignore[import-not-found, unused-ignore]

    score = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=str(weights))
    with torch.inference_mode():
        for real, pictures in ((True, plains), (False, others)):
            for picture in pictures:
                score.update(torch.tensor(pixels.of(picture)).permute(2, 0, 1)[None], real=real)
        found = float(score.compute())
    if math.isnan(found):
        raise UsageError(f"fid of {len(plains)} and {len(others)} pictures is not a number: more of them are needed")
    return found


def _check(name: str, weights: Path) -> None:
    reason = lacking(name, weights)
    if reason:
        raise EnvironmentProblem(reason)
