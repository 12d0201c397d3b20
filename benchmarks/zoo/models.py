"""The zoo's models, so small that a step takes milliseconds; a further one is one entry here."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from benchmarks.zoo.batches import (
    CLASSES,
    LENGTH,
    WORDS,
    boxes,
    classified,
    continued_texts,
    contrasted,
    graphs,
    graphs_classified,
    integers,
    labelled,
    labelled_texts,
    last_classified,
    normal,
    reconstructed,
    row_classified,
    series,
    sparsely_classified,
    words,
)
from benchmarks.zoo.case import SAMPLES, Batch, Case, make, own_loss

# What configurations of transformers have in common, under the names that these give it.
LABELS: dict[str, Any] = {"num_labels": CLASSES}
ENCODER: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SPECIAL_WORDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TRANSLATOR: dict[str, Any] = {
    "vocab_size": WORDS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_target_positions": LENGTH,
}
WAVES: dict[str, Any] = ENCODER | {
    "conv_dim": (16, 16),
    "conv_kernel": (8, 4),
    "conv_stride": (4, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "apply_spec_augment": False,
}


def transformer(
    family: str,
    head: str,
    batch: Callable[[Generator], Batch],
    loss: Callable[[nn.Module, Batch], Tensor] = own_loss,
    **options: Any,
) -> Case:
    """Return a model of transformers, named by its family and its head, with options of its configuration."""

    def build() -> nn.Module:
        model: nn.Module = make(f"transformers:{family}{head}", make(f"transformers:{family}Config", **options))
        return model

    return Case("transformers", build, batch, loss)


def image_model(family: str, size: int = 16, **options: Any) -> Case:
    """Return a model that classifies pictures."""
    pictures = labelled("pixel_values", 3, size, size)
    return transformer(family, "ForImageClassification", pictures, **LABELS, **options)


def text_model(family: str, **options: Any) -> Case:
    """Return a model that classifies texts."""
    return transformer(family, "ForSequenceClassification", labelled_texts, vocab_size=WORDS, **LABELS, **options)


def language_model(family: str, head: str = "ForCausalLM", **options: Any) -> Case:
    """Return a model that tells the next word."""
    return transformer(family, head, continued_texts, vocab_size=WORDS, **SPECIAL_WORDS, **options)


def graph_model(name: str, **options: Any) -> Case:
    """Return a model of torch-geometric that classifies graphs."""
    return Case(
        "torch-geometric",
        lambda: make(f"torch_geometric.nn:{name}", 4, 16, 2, CLASSES, **options),
        graphs,
        graphs_classified,
        are_samples_told=True,
    )


TEXTS = {
    "BERT": text_model("Bert", **ENCODER),
    "DistilBERT": text_model("DistilBert", dim=32, n_layers=2, n_heads=2, hidden_dim=48),
    "ALBERT": text_model("Albert", embedding_size=16, **ENCODER),
    "Perceiver": text_model(
        "Perceiver",
        num_latents=5,
        d_latents=32,
        d_model=24,
        num_self_attends_per_block=2,
        num_self_attention_heads=2,
        num_cross_attention_heads=2,
        max_position_embeddings=LENGTH,
    ),
    "GPT-2": language_model("GPT2", "LMHeadModel", n_embd=32, n_layer=2, n_head=2),
    "OPT": language_model(
        "OPT",
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
    ),
    "Llama": language_model("Llama", num_key_value_heads=1, **ENCODER),
    "Mixtral": language_model("Mixtral", num_key_value_heads=1, num_local_experts=3, **ENCODER),
    "Mamba": language_model("Mamba", hidden_size=32, num_hidden_layers=2, state_size=4),
    "T5": transformer(
        "T5",
        "ForConditionalGeneration",
        lambda g: {"input_ids": words(g), "labels": integers(g, WORDS, 7, least=5)},
        vocab_size=WORDS,
        d_model=32,
        d_kv=16,
        d_ff=48,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
    ),
}

PICTURES = {
    "ViT": image_model("ViT", image_size=16, patch_size=4, **ENCODER),
    "DeiT": image_model("DeiT", image_size=16, patch_size=4, **ENCODER),
    "MobileNetV1": image_model("MobileNetV1", 32, depth_multiplier=0.125, classifier_dropout_prob=0.2),
    "MobileNetV2": image_model("MobileNetV2", 32, depth_multiplier=0.125, expand_ratio=2, classifier_dropout_prob=0.2),
    "ResNet": image_model("ResNet", 32, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "ConvNeXT": image_model("ConvNext", patch_size=2, num_stages=2, hidden_sizes=[8, 16], depths=[1, 1]),
    "RegNet": image_model("RegNet", 32, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4),
    "Swin": image_model(
        "Swin", image_size=16, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
    ),
    "SegFormer": transformer(
        "Segformer",
        "ForSemanticSegmentation",
        lambda g: {"pixel_values": normal(g, 3, 32, 32), "labels": integers(g, CLASSES, 32, 32)},
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        **LABELS,
    ),
    "YOLOS": transformer(
        "Yolos",
        "ForObjectDetection",
        lambda g: {"pixel_values": normal(g, 3, 16, 16), "labels": boxes(g)},
        image_size=[16, 16],
        patch_size=4,
        num_detection_tokens=4,
        **ENCODER,
        **LABELS,
    ),
    "CLIP": transformer(
        "CLIP",
        "Model",
        lambda g: {"input_ids": words(g), "pixel_values": normal(g, 3, 16, 16)},
        contrasted,
        text_config={**ENCODER, **SPECIAL_WORDS, "vocab_size": WORDS, "max_position_embeddings": LENGTH},
        vision_config={**ENCODER, "image_size": 16, "patch_size": 4},
        projection_dim=16,
    ),
    "U-Net": Case(
        "monai",
        lambda: make("monai.networks.nets:UNet", 2, 1, CLASSES, channels=(4, 8, 16), strides=(2, 2), num_res_units=1),
        lambda g: {"x": normal(g, 1, 16, 16), "labels": integers(g, CLASSES, 16, 16)},
        classified,
    ),
    "DenseNet": Case(
        "monai",
        lambda: make("monai.networks.nets:DenseNet", 2, 1, CLASSES, 8, growth_rate=4, block_config=(2, 2)),
        labelled("x", 1, 32, 32),
        classified,
    ),
}

SOUND = {
    "Whisper": transformer(
        "Whisper",
        "ForConditionalGeneration",
        lambda g: {"input_features": normal(g, 8, 24), "labels": words(g)},
        num_mel_bins=8,
        max_source_positions=12,
        decoder_start_token_id=3,
        **TRANSLATOR,
        **SPECIAL_WORDS,
    ),
    "Speech2Text": transformer(
        "Speech2Text",
        "ForConditionalGeneration",
        lambda g: {"input_features": normal(g, 24, 8), "labels": words(g)},
        input_feat_per_channel=8,
        conv_channels=16,
        max_source_positions=24,
        **TRANSLATOR,
    ),
    "wav2vec 2": transformer(
        "Wav2Vec2",
        "ForCTC",
        lambda g: {"input_values": normal(g, 400), "labels": words(g)},
        vocab_size=WORDS,
        ctc_loss_reduction="mean",
        **WAVES,
    ),
    "HuBERT": transformer(
        "Hubert",
        "ForSequenceClassification",
        labelled("input_values", 400),
        vocab_size=WORDS,
        classifier_proj_size=16,
        **WAVES,
        **LABELS,
    ),
    "AST": transformer(
        "AST",
        "ForAudioClassification",
        labelled("input_values", 24, 16),
        num_mel_bins=16,
        max_length=24,
        patch_size=8,
        frequency_stride=4,
        time_stride=4,
        **ENCODER,
        **LABELS,
    ),
    "EnCodec": transformer(
        "Encodec",
        "Model",
        lambda g: {"x": normal(g, 1, 64)},
        reconstructed,
        num_filters=4,
        hidden_size=16,
        upsampling_ratios=[4, 2],
        num_lstm_layers=1,
        codebook_size=8,
    ),
}

SERIES_TABLES_AND_GRAPHS = {
    "Time Series Transformer": transformer(
        "TimeSeriesTransformer",
        "ForPrediction",
        series,
        prediction_length=4,
        context_length=8,
        lags_sequence=[1, 2],
        num_time_features=1,
        d_model=16,
    ),
    "PatchTST": transformer(
        "PatchTST",
        "ForPrediction",
        lambda g: {"past_values": normal(g, 16, 2), "future_values": normal(g, 4, 2)},
        num_input_channels=2,
        context_length=16,
        patch_length=4,
        patch_stride=4,
        num_hidden_layers=2,
        d_model=16,
        num_attention_heads=2,
        ffn_dim=24,
        prediction_length=4,
    ),
    "TCN": Case(
        "pytorch-tcn", lambda: make("pytorch_tcn:TCN", 2, [8, 8, CLASSES]), labelled("x", 2, 16), last_classified
    ),
    "TabNet": Case(
        "pytorch-tabnet",
        lambda: make(
            "pytorch_tabnet.tab_network:TabNet",
            8,
            CLASSES,
            virtual_batch_size=SAMPLES,
            group_attention_matrix=torch.eye(8),
        ),
        labelled("x", 8),
        sparsely_classified,
    ),
    "FT-Transformer": Case(
        "rtdl_revisiting_models",
        lambda: make(
            "rtdl_revisiting_models:FTTransformer",
            n_cont_features=4,
            cat_cardinalities=[3, 4],
            d_out=CLASSES,
            n_blocks=2,
            d_block=16,
            attention_n_heads=2,
            attention_dropout=0.2,
            ffn_d_hidden_multiplier=1.5,
            ffn_dropout=0.1,
            residual_dropout=0.0,
        ),
        lambda g: {"x": normal(g, 4), "categories": integers(g, 3, 2), "labels": integers(g, CLASSES)},
        row_classified,
    ),
    "GIN": graph_model("GIN", norm="batch_norm"),
    "GAT": graph_model("GAT", heads=2),
}

CASES = TEXTS | PICTURES | SOUND | SERIES_TABLES_AND_GRAPHS
"""Every model by its name."""
