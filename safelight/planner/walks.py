"""What a prediction is made for, beside the pictures' number: one walk of the denoiser, or two.

Here are the numbers alone. What a request means by them, run/expected.py knows.
"""

from dataclasses import dataclass

DEFAULT_STEPS = 20
ONE, EACH = "one", "each"  # of the pictures of a batch


@dataclass(frozen=True, slots=True)
class Walk:
    """From noise, or from latents there are, to latents. width, height: pixels of their picture.

    steps: as they were asked for. evaluations: of the model, which two a step make nearly twice as many and a picture
    to begin from fewer; 0 where nothing is drawn anew.
    encodes: the VAE makes the first latents of pictures: of EACH in a batch, or of ONE for all; "" for noise, and for
    latents that are there. decodes: it makes pictures of the last.
    """

    width: int
    height: int
    steps: int
    evaluations: int
    encodes: str = ""
    decodes: bool = True
