"""The zoo's larger models, with layers and batches of a size that people train; only the benchmark does."""

from typing import Any

import torch
from torch import Generator, Tensor

from benchmarks.zoo.batches import CLASSES
from benchmarks.zoo.case import Batch, Case
from benchmarks.zoo.models import LABELS, SPECIAL_WORDS, transformer

SAMPLES = 16
WORDS = 2000
LENGTH = 32

ENCODER: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}


def words(g: Generator) -> Tensor:
    """Return texts."""
    return torch.randint(5, WORDS, (SAMPLES, LENGTH), generator=g)


def texts(g: Generator) -> Batch:
    """Return texts, each with a label."""
    return {"input_ids": words(g), "labels": torch.randint(0, CLASSES, (SAMPLES,), generator=g)}


def continued_texts(g: Generator) -> Batch:
    """Return texts whose every next word is to be told."""
    texts = words(g)
    return {"input_ids": texts, "labels": texts}


def pictures(g: Generator) -> Batch:
    """Return pictures, each with a label."""
    labels = torch.randint(0, CLASSES, (SAMPLES,), generator=g)
    return {"pixel_values": torch.randn(SAMPLES, 3, 64, 64, generator=g), "labels": labels}


def speech(g: Generator) -> Batch:
    """Return spectrograms, with what is said in them."""
    return {"input_features": torch.randn(SAMPLES, 80, 100, generator=g), "labels": words(g)}


def larger(*args: Any, **options: Any) -> Case:
    """Return a model of transformers with batches of the size that the larger ones have."""
    case = transformer(*args, **options)
    return Case(case.package, case.build, case.batch, samples=SAMPLES)


LARGER_CASES = {
    "BERT, 4 x 256": larger("Bert", "ForSequenceClassification", texts, vocab_size=WORDS, **ENCODER, **LABELS),
    "GPT-2, 4 x 256": larger(
        "GPT2",
        "LMHeadModel",
        continued_texts,
        vocab_size=WORDS,
        n_embd=256,
        n_layer=4,
        n_head=4,
        **SPECIAL_WORDS,
    ),
    "Llama, 4 x 256": larger(
        "Llama", "ForCausalLM", continued_texts, vocab_size=WORDS, num_key_value_heads=2, **ENCODER, **SPECIAL_WORDS
    ),
    "ViT, 12 x 192": larger(
        "ViT",
        "ForImageClassification",
        pictures,
        image_size=64,
        patch_size=8,
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        **LABELS,
    ),
    "ResNet-18, half as wide": larger(
        "ResNet",
        "ForImageClassification",
        pictures,
        embedding_size=32,
        hidden_sizes=[32, 64, 128, 256],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        **LABELS,
    ),
    "MobileNetV2 x 0.5": larger(
        "MobileNetV2",
        "ForImageClassification",
        pictures,
        depth_multiplier=0.5,
        classifier_dropout_prob=0.2,
        **LABELS,
    ),
    "ConvNeXT, Atto": larger(
        "ConvNext",
        "ForImageClassification",
        pictures,
        hidden_sizes=[40, 80, 160, 320],
        depths=[2, 2, 6, 2],
        **LABELS,
    ),
    "Whisper, 4 x 192": larger(
        "Whisper",
        "ForConditionalGeneration",
        speech,
        vocab_size=WORDS,
        d_model=192,
        encoder_ffn_dim=768,
        decoder_ffn_dim=768,
        max_source_positions=50,
        max_target_positions=LENGTH,
        decoder_start_token_id=3,
        **SPECIAL_WORDS,
    ),
}
"""Every larger model by its name."""
