"""A prompt with weights, of any length, as the numbers a CLIP pipeline takes.

Comes in: a diffusers pipeline with CLIP text encoders (Stable Diffusion 1 and 2, SDXL), and texts whose schedules are
settled. Goes out: embeddings. Each chunk enters an encoder alone, with its own begin and end, so that a picture does
not depend on what is drawn beside it, and a text that the pipeline could read gives the very numbers it would.

Tensors: embeddings are (1, tokens, channels), pooled ones (1, channels).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from safelight.errors import UnknownName, UsageError
from safelight.prompts.chunks import Weighted, filled
from safelight.prompts.syntax import has_syntax, sections

if TYPE_CHECKING:
    from torch import Tensor

# A1111's names. Original: weights, then the mean of the chunk as it was. None: brackets are text.
EMPHASES = ("Original", "No norm", "Ignore", "None")
CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")


@dataclass(frozen=True, slots=True)
class Encoded:
    """Named as the arguments of the pipelines. pooled: SDXL's; negative: None without guidance."""

    prompt_embeds: "Tensor"
    negative_prompt_embeds: "Tensor | None" = None
    pooled_prompt_embeds: "Tensor | None" = None
    negative_pooled_prompt_embeds: "Tensor | None" = None


@dataclass(frozen=True, slots=True)
class Embedding:
    tokens: "Tensor"
    pooled: "Tensor | None"


def text_encoders(pipe: Any) -> list[tuple[Any, Any]]:
    """(tokenizer, model) of each text encoder, in the pipeline's order; SDXL's refiner has only the second."""
    found = [(getattr(pipe, f"tokenizer{i}", None), getattr(pipe, f"text_encoder{i}", None)) for i in ("", "_2", "_3")]
    return [(tokenizer, model) for tokenizer, model in found if model is not None]


def supports(pipe: Any) -> bool:
    """Whether the syntax is read for this pipeline: a UNet, and no other text encoder than CLIP."""
    classes = [type(model).__name__ for _, model in text_encoders(pipe)]
    return getattr(pipe, "unet", None) is not None and bool(classes) and all(name in CLIP for name in classes)


def is_plain(pipe: Any, text: str) -> bool:
    """Whether the pipeline reads the text by itself just as well: no syntax, and short enough for each encoder."""
    return not has_syntax(text) and all(
        len(_token_ids(pipe, tokenizer, text)) <= _room(tokenizer) for tokenizer, _ in text_encoders(pipe)
    )


def encode(
    pipe: Any,
    prompt: str,
    negative: str = "",
    *,
    guided: bool = True,
    clip_skip: int = 1,
    emphasis: str = "Original",
) -> Encoded:
    """One prompt without schedules or AND, and its negative one, of as many chunks."""
    encoder = Encoder(pipe, clip_skip, emphasis)
    count = max(encoder.chunk_count(text) for text in ((prompt, negative) if guided else (prompt,)))
    positive = encoder.encode(prompt, count)
    if not guided:
        return Encoded(positive.tokens, None, positive.pooled)
    unwanted = encoder.encode_negative(negative, count)
    return Encoded(positive.tokens, unwanted.tokens, positive.pooled, unwanted.pooled)


@dataclass(slots=True)
class Encoder:
    """Encodes texts for one run, each chunk once.

    clip_skip: A1111's number: 1 is CLIP's last layer, 2 the one before, with the final norm. For SDXL it is always the
    last but one without it, as it was trained; A1111 and this then leave clip_skip aside.
    """

    pipe: Any
    clip_skip: int = 1
    emphasis: str = "Original"
    _known: dict[tuple[int, tuple[int, ...]], Embedding] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.emphasis not in EMPHASES:
            raise UnknownName("emphasis", self.emphasis, EMPHASES)
        layers = min(model.config.num_hidden_layers for _, model in text_encoders(self.pipe))
        if not self.is_xl and not 1 <= self.clip_skip <= layers:
            raise UsageError(f"clip-skip is {self.clip_skip}: this text encoder has {layers} layers, 1 is the last")

    @property
    def is_xl(self) -> bool:
        return type(text_encoders(self.pipe)[-1][1]).__name__ == "CLIPTextModelWithProjection"

    def chunk_count(self, text: str) -> int:
        return max(len(self._chunks(tokenizer, text)) for tokenizer, _ in text_encoders(self.pipe))

    def _chunks(self, tokenizer: Any, text: str) -> list[list[Weighted]]:
        weighted = [
            [(token, piece.weight) for piece in section for token in _token_ids(self.pipe, tokenizer, piece.text)]
            for section in sections(text, self.emphasis)
        ]
        return filled(weighted, _room(tokenizer), tokenizer.get_vocab().get(",</w>"))

    def encode(self, text: str, count: int) -> Embedding:
        """`count` chunks of the text; those that it does not fill are empty prompts."""
        import torch

        made = [self._encode_for(place, text, count) for place in range(len(text_encoders(self.pipe)))]
        tokens = torch.cat([embedding.tokens for embedding in made], dim=-1)
        device, dtype = self.pipe._execution_device, text_encoders(self.pipe)[-1][1].dtype
        pooled = made[-1].pooled
        return Embedding(tokens.to(device, dtype), None if pooled is None else pooled.to(device))

    def encode_negative(self, text: str, count: int) -> Embedding:
        """As `encode`, but zeros for an empty one where the model was trained so (SDXL)."""
        import torch

        made = self.encode(text, count)
        if text or not self.pipe.config.get("force_zeros_for_empty_prompt", False):
            return made
        return Embedding(torch.zeros_like(made.tokens), None if made.pooled is None else torch.zeros_like(made.pooled))

    def _encode_for(self, place: int, text: str, count: int) -> Embedding:
        import torch

        chunks = self._chunks(text_encoders(self.pipe)[place][0], text)
        chunks += [[] for _ in range(count - len(chunks))]
        made = [self._encode_chunk(place, tuple(token for token, _ in chunk)) for chunk in chunks]
        emphasized = [
            self._emphasized(embedding.tokens, [weight for _, weight in chunk])
            for embedding, chunk in zip(made, chunks, strict=True)
        ]
        return Embedding(torch.cat(emphasized, dim=1), made[0].pooled)

    def _emphasized(self, tokens: "Tensor", weights: list[float]) -> "Tensor":
        import torch

        if self.emphasis in ("Ignore", "None") or all(weight == 1 for weight in weights):
            return tokens
        factors = torch.ones(tokens.shape[1], device=tokens.device)
        factors[1 : len(weights) + 1] = torch.tensor(weights, device=tokens.device)
        plain = tokens.float()
        scaled = plain * factors[None, :, None]
        if self.emphasis == "Original":
            scaled = scaled * (plain.mean() / scaled.mean())
        return scaled.to(tokens.dtype)

    def _encode_chunk(self, place: int, tokens: tuple[int, ...]) -> Embedding:
        if (place, tokens) not in self._known:
            self._known[place, tokens] = self._run(*text_encoders(self.pipe)[place], tokens)
        return self._known[place, tokens]

    def _run(self, tokenizer: Any, model: Any, tokens: tuple[int, ...]) -> Embedding:
        import torch
        from diffusers.utils.torch_utils import get_module_execution_device

        device = get_module_execution_device(model)
        ids, seen = _padded(tokenizer, tokens)
        # asked as the pipelines ask: most checkpoints do not mask their padding
        masked = not self.is_xl and getattr(model.config, "use_attention_mask", False)
        mask = torch.tensor([seen], device=device) if masked else None
        with torch.no_grad():
            output = model(torch.tensor([ids], device=device), attention_mask=mask, output_hidden_states=True)
            if self.is_xl:
                return Embedding(output.hidden_states[-2], output[0] if output[0].ndim == 2 else None)
            if self.clip_skip == 1:
                return Embedding(output.last_hidden_state, None)
            return Embedding(_final_norm(model)(output.hidden_states[-self.clip_skip]), None)


def _final_norm(model: Any) -> Any:
    """The encoder's last layer norm: transformers has it in the model or in its `text_model`, by version."""
    return next(module for name, module in model.named_modules() if name.split(".")[-1] == "final_layer_norm")


def _room(tokenizer: Any) -> int:
    """Tokens of a chunk without its begin and end: 75 of CLIP's 77."""
    return tokenizer.model_max_length - 2


def _token_ids(pipe: Any, tokenizer: Any, text: str) -> list[int]:
    """Without begin and end. The pipeline writes out the names of learned words that have more than one token."""
    text = pipe.maybe_convert_prompt(text, tokenizer)
    return tokenizer(text, truncation=False, add_special_tokens=False, verbose=False).input_ids


def _padded(tokenizer: Any, tokens: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """(token numbers, 1 where they count) at the encoder's full length."""
    used = [tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id]
    rest = tokenizer.model_max_length - len(used)
    return used + [tokenizer.pad_token_id] * rest, [1] * len(used) + [0] * rest
