"""Pictures to latents and back: exact in bounded memory, or in blended tiles."""
