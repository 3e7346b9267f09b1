"""The engine's interface over a VAE's own encode and decode: the whole picture at once, the budget not heeded."""


def encode(vae, pictures, *, budget_bytes=None, how="auto"):
    return vae.encode(pictures).latent_dist.mode()


def decode(vae, latents, *, budget_bytes=None, how="auto", sink=None):
    decoded = vae.decode(latents).sample
    if sink is None:
        return decoded
    for first in range(0, decoded.shape[2], 48):
        sink(first, decoded[:, :, first : first + 48])
    return None
