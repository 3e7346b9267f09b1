"""firstlight's tokenizer and text encoder: CLIP's own classes, with a vocabulary made from the captions.

A byte-pair vocabulary is trained until every word of a caption is one token; other words fall into pieces, so any
prompt can be read.
"""

import json
from pathlib import Path

import data
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

MAX_TOKENS = 32
START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def tokenizer_in(folder: Path) -> CLIPTokenizer:
    """The one that is there, so that a training that goes on keeps its ids; or a new one, saved there."""
    if not folder.exists():
        build_tokenizer().save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def build_tokenizer() -> CLIPTokenizer:
    words = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        min_frequency=1,
        show_progress=False,
    )
    words.train_from_iterator(_captions(), trainer)
    learned = _merges(words)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = alphabet + [c + "</w>" for c in alphabet] + ["".join(pair) for pair in learned]
    vocabulary = [*dict.fromkeys(vocabulary), START, END]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)}, merges=learned, model_max_length=MAX_TOKENS
    )


def _merges(words: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(words.to_str())["model"]["merges"]]


def _captions() -> list[str]:
    return [
        text
        for thing in data.things()
        for style in data.STYLES
        for back in data.BACKGROUNDS
        for text in data.caption_variants(thing, style, back)
    ]


def build_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=128,
            hidden_act="quick_gelu",
            bos_token_id=len(tokenizer) - 2,
            eos_token_id=len(tokenizer) - 1,
            pad_token_id=len(tokenizer) - 1,
        )
    )


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]):
    """int64 [len(texts), MAX_TOKENS]."""
    return tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt").input_ids
