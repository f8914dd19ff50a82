"""Networks as ONNX files in memory, for ONNX Runtime: a graph is written operation by operation."""
from __future__ import annotations

from typing import Any

import numpy as np

from muladd.tensor import Tensor

OPSET = 20  # the first with Gelu


class Graph:
    """An ONNX graph being written. Values are their names, as in the file.

        g = Graph()
        y = g("Gemm", "x", g.weight(w), g.weight(b), transB=1)
        data = g.file({"x": (1, 16)}, y)
    """

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """An operation of this kind; gives its (first) result."""
        from onnx import helper

        result = f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [result], **attributes))
        return result

    def weight(self, value: Tensor | np.ndarray | np.generic | None) -> str:
        """A constant. None is an input that is left out."""
        from onnx import numpy_helper

        if value is None:
            return ""
        array = value.detach().numpy() if isinstance(value, Tensor) else value
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def linear(self, x: str, weight: Tensor, bias: Tensor) -> str:
        """x @ weight.T + bias; the weight is turned ahead, as exporters do."""
        turned = self.weight(np.asarray(weight.detach().numpy()).T)
        return self("Add", self("MatMul", x, turned), self.weight(bias))

    def convolution(self, x: str, layer: Any) -> str:
        """nn.Conv2d; its padding is the same at both ends."""
        pads = [low for low, _ in layer.padding] + [high for _, high in layer.padding]
        return self("Conv", x, self.weight(layer.weight), self.weight(layer.bias),
                    kernel_shape=layer.kernel_size, strides=layer.stride, pads=pads,
                    group=layer.groups)  # fmt: skip

    def batch_norm(self, x: str, layer: Any) -> str:
        """nn.BatchNorm2d by its running statistics."""
        parts = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
        return self("BatchNormalization", x, *map(self.weight, parts), epsilon=layer.eps)

    def layer_norm(self, x: str, layer: Any) -> str:
        """nn.LayerNorm over the last axis."""
        return self("LayerNormalization", x, self.weight(layer.weight), self.weight(layer.bias),
                    axis=-1, epsilon=layer.eps)  # fmt: skip

    def file(self, inputs: dict[str, tuple[int, ...]], result: str) -> bytes:
        """The bytes of the file: float32 inputs of these shapes, one result."""
        from onnx import TensorProto, helper

        given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                 for name, shape in inputs.items()]  # fmt: skip
        found = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
        graph = helper.make_graph(self._nodes, "muladd bench", given, [found], self._weights)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return bytes(model.SerializeToString())
