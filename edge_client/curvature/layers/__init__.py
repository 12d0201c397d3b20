"""Layers in the common format, one class for each kind of module; a new kind is one class and one line here."""

from torch import nn

from edge_client.curvature.layers.base import Layer, MatrixShape
from edge_client.curvature.layers.convolution import ConvolutionLayer
from edge_client.curvature.layers.embedding import EmbeddingLayer
from edge_client.curvature.layers.linear import LinearLayer
from edge_client.curvature.layers.normalisation import BatchNormLayer, GroupNormLayer, LayerNormLayer

LAYERS: dict[type[nn.Module], type[Layer]] = {
    nn.Linear: LinearLayer,
    nn.Conv1d: ConvolutionLayer,
    nn.Conv2d: ConvolutionLayer,
    nn.Embedding: EmbeddingLayer,
    nn.BatchNorm1d: BatchNormLayer,
    nn.BatchNorm2d: BatchNormLayer,
    nn.GroupNorm: GroupNormLayer,
    nn.LayerNorm: LayerNormLayer,
    nn.RMSNorm: LayerNormLayer,
}
"""Supported modules. Exact types: a subclass may compute something else in its forward."""

__all__ = ["LAYERS", "Layer", "MatrixShape", "supported_layer"]


def supported_layer(name: str, module: nn.Module) -> Layer | None:
    """Return a module in the common format, or None if it is of no supported kind, or its weight is frozen."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or not weight.requires_grad or type(module) not in LAYERS:
        return None
    return LAYERS[type(module)](name, module)
