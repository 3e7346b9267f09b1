"""Which VAE classes of diffusers are known to be cut, and how. Names alone, so that a list of them costs no import."""

# whose decoders and encoders take a tile by itself
BLENDED = (
    "AutoencoderKL",
    "AutoencoderKLFlux2",
    "AutoencoderTiny",
    "AutoencoderDC",
    "AsymmetricAutoencoderKL",
    "VQModel",
)
# decoded as a whole and in strips, and compared: tests/vae/test_families.py, test_exact.py
EXACT = (
    *BLENDED,
    *("AutoencoderKLTemporalDecoder", "AutoencoderKLHunyuanImage", "AutoencoderKLHunyuanVideo"),
    *("AutoencoderKLWan", "AutoencoderKLQwenImage", "AutoencoderKLLTXVideo", "AutoencoderKLMochi"),
    *("AutoencoderKLCogVideoX", "AutoencoderKLMagvit"),
)
