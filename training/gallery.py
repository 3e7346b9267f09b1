"""What firstlight's objects look like to EfficientNet: safelight/measure/weights/firstlight_gallery.safetensors.

python training/gallery.py --work build/firstlight

float16 (styles, things, 1280): every object of objects.txt, centred on white, in each drawing style, at 128 px. The
words for them, and the colours of backgrounds, are in the file's metadata. safelight.measure.following reads it.
"""

import argparse
import json
from pathlib import Path

import data
import numpy as np
import torch
from safetensors.torch import save_file

from safelight.measure import following


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/firstlight"))
    sprites = data.load_sprites(parser.parse_args().work / "sprites.npz")
    white = list(data.BACKGROUNDS).index("white")
    seen = [
        following.seen([data.compose(sprites, data.Scene(thing, style, white)) for thing in range(len(data.things()))])
        for style in range(len(data.STYLES))
    ]
    words = {
        "things": [thing.name for thing in data.things()],
        "styles": list(data.STYLES),
        "backgrounds": data.BACKGROUNDS,
    }
    told = {name: json.dumps(value) for name, value in words.items()}
    save_file({"gallery": torch.from_numpy(np.stack(seen)).half()}, following.FILE, told)


if __name__ == "__main__":
    main()
