"""Keeps an overflow visible in ONNX Runtime: its maxima pass over NaN, so that a label would come out of none.

Each maximum is given infinity instead, which it does pass on, and which is NaN again at the latest in the softmax. One
behind a ReLU is left alone: what overflows there is infinite already, and such a graph stays as quick as it was.
"""

from typing import Any

import numpy as np

from edge_client.inference.onnx_engine import import_onnx

_MAXIMA = ("MaxPool", "ReduceMax")
_INFINITY = "edgenewton.infinity"


def keep_overflows(model: Any) -> Any:
    """Change a float32 model (an ONNX ModelProto) so that its maxima are infinite where an operand is NaN."""
    onnx = import_onnx("onnx")
    graph = model.graph
    is_float = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    is_relu = {name for node in graph.node if node.op_type == "Relu" for name in node.output}
    nodes = []
    for node in graph.node:
        operand = node.input[0] if node.input else ""
        if node.op_type in _MAXIMA and operand in is_float - is_relu:
            nan, kept = f"{node.output[0]}/nan", f"{node.output[0]}/kept"
            nodes.append(onnx.helper.make_node("IsNaN", [operand], [nan]))
            nodes.append(onnx.helper.make_node("Where", [nan, _INFINITY, operand], [kept]))
            node.input[0] = kept
        nodes.append(node)
    if len(nodes) > len(graph.node):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(np.inf, np.float32), _INFINITY))
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(nodes)
    return model


def refuse_overflows(model: Any, inputs: str, rank: int, output: str) -> None:
    """Change a model so that its output `[n, labels]` is NaN where `inputs`, of so many dimensions, are not finite.

    An int8 model would else clip what its preprocessing made of a sample, NaN too, to the range of its integers.
    """
    onnx = import_onnx("onnx")
    graph = model.graph
    parts = ("clipped", "zero", "sum", "column", "axes", "1")
    clipped, zero, total, column, axes, one = (f"{output}/{part}" for part in parts)
    for node in graph.node:
        for place, name in enumerate(node.output):
            if name == output:
                node.output[place] = clipped
    for name, values in ((axes, range(1, rank)), (one, [1])):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
    graph.node.extend(
        [
            onnx.helper.make_node("Sub", [inputs, inputs], [zero]),  # of what is not finite it is NaN
            onnx.helper.make_node("ReduceSum", [zero, axes], [total], keepdims=0),
            onnx.helper.make_node("Unsqueeze", [total, one], [column]),
            onnx.helper.make_node("Add", [clipped, column], [output]),
        ]
    )
