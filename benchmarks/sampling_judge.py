"""What pictures show, sampler by sampler: firstlight judged as training/evaluate.py judges it.

python benchmarks/sampling_judge.py --work build/firstlight --captions 305 --out benchmarks/sampling_cpu_2026-11-21

Writes the "judged" part of OUT.json, which sampling.py puts on its page. Recipes are judged one after the other on the
same captions, held out in training, and the same seeds, the denoiser in bfloat16. What OUT.json has already of as many
captions is kept. --work holds the sprites that training/data.py made.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sampling_worker as worker
import torch

from safelight.sampling import schedulers

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
import data
import evaluate

BATCH = 32
GUIDANCE = 3.0
# (sampler, schedule, steps); None is the sampler's own
RECIPES: tuple[tuple[str, str | None, int], ...] = (
    ("DPM++ 2M", "Karras", 20),
    ("DPM++ 2M", "Uniform", 20),
    ("DPM++ 2M SDE", None, 20),
    ("Euler a", None, 20),
    ("DPM++ SDE", None, 10),
    ("Euler a", "Karras", 20),
    ("Euler a", "SGM Uniform", 20),
    ("Euler a", None, 12),
    ("Euler a", None, 30),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--captions", type=int, default=305)
    parser.add_argument("--style", action="store_true", help="tells styles apart, too, which takes as long again")
    parser.add_argument("--only", nargs="*", type=int, help="which of RECIPES, by number; default: all")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with worker.one_thread():
        judge_all(args.work, args.captions, args.only or range(len(RECIPES)), Path(f"{args.out}.json"), args.style)


def judge_all(work: Path, captions: int, numbers: Sequence[int], file: Path, style: bool) -> None:
    scenes = evaluate.held_out(captions)
    judge = evaluate.Judge.build(data.load_sprites(work / "sprites.npz"))
    model = worker.opened([told(scene) for scene in scenes], GUIDANCE, torch.bfloat16)
    for number in numbers:
        sampler, schedule, steps = RECIPES[number]
        row = {"sampler": sampler, "schedule": schedule, "steps": steps, "captions": captions}
        if not any(row.items() <= kept.items() for kept in read(file).get("judged", [])):
            add(file, {**row, **judged(judge, scenes, model, RECIPES[number], style)})


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def add(file: Path, row: dict[str, Any]) -> None:
    """Read anew each time: sampling.py writes the rest of the file."""
    book = read(file)
    file.write_text(json.dumps({**book, "judged": [*book.get("judged", []), row]}, indent=1) + "\n")
    print(json.dumps({key: value for key, value in row.items() if not isinstance(value, list)}), flush=True)


def told(scene: data.Scene) -> str:
    return data.caption(data.things()[scene.thing], data.STYLES[scene.style], list(data.BACKGROUNDS)[scene.background])


def judged(
    judge: evaluate.Judge,
    scenes: list[data.Scene],
    model: worker.Model,
    named: tuple[str, str | None, int],
    style: bool,
) -> dict[str, Any]:
    sampler, schedule, steps = named
    recipe = schedulers.find(sampler, schedule)
    began, made, evaluations = time.process_time(), [], 0
    for begin in range(0, len(scenes), BATCH):
        part = model.only(begin, begin + BATCH)
        found = worker.drawn(part, recipe, steps, range(begin, begin + part.pictures))
        made.append(worker.pictures(part, found.latents))
        evaluations = found.evaluations
    seconds = round(time.process_time() - began, 1)
    eight_bit = (torch.cat(made) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    more = styles(judge, scenes, eight_bit) if style else {}
    return {"evaluations": evaluations, **shown(judge, scenes, eight_bit), **more, "cpu_seconds": seconds}


def shown(judge: evaluate.Judge, scenes: list[data.Scene], pictures: Any) -> dict[str, Any]:
    """Percent right, and how like the asked object's drawing the pictures are: cosine of features, 1 is the same."""
    features = evaluate.features(judge.network, pictures)
    things = torch.tensor([scene.thing for scene in scenes])
    drawn_in = torch.tensor([scene.style for scene in scenes])
    nearest = judge.objects(features, scenes) == things[:, None]
    centred = torch.nn.functional.normalize(features - judge.means[drawn_in, 0], dim=-1)
    like = (centred * judge.gallery[drawn_in, things]).sum(-1)
    grounds = torch.from_numpy(evaluate.backgrounds(pictures)) == torch.tensor([scene.background for scene in scenes])
    return {
        "object top-1": percent(nearest[:, 0]),
        "object top-5": percent(nearest.any(1)),
        "background": percent(grounds),
        "likeness": round(float(like.mean()), 4),
        "likeness of each": [round(float(one), 4) for one in like],
        "right": nearest[:, 0].int().tolist(),
    }


def styles(judge: evaluate.Judge, scenes: list[data.Scene], pictures: Any) -> dict[str, Any]:
    hits = [judge.style(picture, scene) == scene.style for picture, scene in zip(pictures, scenes, strict=True)]
    return {"style": percent(torch.tensor(hits)), "right style": [int(hit) for hit in hits]}


def percent(hits: torch.Tensor) -> float:
    return round(float(hits.float().mean()) * 100, 1)


if __name__ == "__main__":
    main()
