"""Benchmarks of whole networks that only answer: ResNet-50, BERT-base, a tiny perceptron.

ONNX Runtime gets the same weights as a file in memory, written by `onnx_resnet` and `onnx_bert`,
and rewrites it as it likes before anything is timed.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import muladd
from muladd import Tensor
from muladd.bench import jax_networks, networks
from muladd.bench.case import US, Call, Case, Contest, Target, compare, work
from muladd.bench.onnx_graph import Graph
from muladd.bench.peers import Peers
from muladd.compile import parameters

_CLOSE = 1e-3  # of the outputs' range, after fifty layers


def cases() -> Iterator[Case]:
    yield Case("resnet-50 inference, batch 1", "models", resnet,
               beside={"onnxruntime": Target(1.2, must=0.95)})  # fmt: skip
    yield Case("bert-base encoder, 128 tokens", "models", bert,
               beside={"torch": Target(2.0), "onnxruntime": Target(1.0)})  # fmt: skip
    yield Case("mlp 10x16 batch 1, jit", "foundation", mlp, Target(seconds=3e-6), beside={
        "torch": Target(25), "torch.compile": Target(12), "jax": Target(8)})  # fmt: skip


def resnet(
    peers: Peers, blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, size: int = 224
) -> Contest:
    """One image of size x size to its scores."""
    model = networks.resnet(blocks, width)
    image = np.random.default_rng(0).standard_normal((1, 3, size, size), dtype=np.float32)
    return _inference(model, image, {"onnxruntime": _session(peers, onnx_resnet, model)})


def bert(
    peers: Peers, layers: int = 12, width: int = 768, heads: int = 12, time: int = 128
) -> Contest:
    """One sentence, already embedded, through all layers."""
    model = networks.bert(layers, width, heads)
    x = np.random.default_rng(0).standard_normal((1, time, width), dtype=np.float32)
    others = {"onnxruntime": _session(peers, onnx_bert, model)}
    torch = peers.torch
    if torch is not None:
        twin = networks.torch_bert(torch, layers, width, heads)
        networks.copy_weights(torch, model, twin)
        others["torch"] = _torch_answer(torch, twin)
    return _inference(model, x, others)


def mlp(peers: Peers) -> Contest:
    """A call so small that nothing but calling costs."""
    model = networks.mlp()
    others: dict[str, Answer | None] = {}
    for name, torch in (("torch", peers.torch), ("torch.compile", peers.torch_compile)):
        if torch is not None:
            twin = networks.torch_mlp(torch)
            networks.copy_weights(torch, model, twin)
            others[name] = _torch_answer(torch, twin if name == "torch" else torch.compile(twin))
    jax = peers.jax
    if jax is not None:
        others["jax"] = jax_networks.mlp(jax, model)
    x = np.random.default_rng(0).standard_normal((1, 16), dtype=np.float32)
    return _inference(model, x, others)


Answer = Callable[[np.ndarray], Call]  # an input to a call of the network


def _inference(model: Any, x: np.ndarray, others: dict[str, Answer | None]) -> Contest:
    """Our jitted call and those of the others, whose answers agree."""
    ours = Tensor(x).realize()

    @muladd.jit
    def forward(x: Tensor) -> Tensor:
        with muladd.no_grad():
            return model(x)

    graph, _ = parameters((model(ours).node,))
    flops, nbytes = work(graph)
    contest = Contest({US: lambda: forward(ours)}, flops=flops, nbytes=nbytes)
    expected = forward(ours).numpy()
    for name, answer in others.items():
        if answer is not None:
            contest.enter(name, answer(x),
                          lambda call: compare([expected], [np.asarray(call())], _CLOSE))
    return contest


def _torch_answer(torch: Any, model: Any) -> Answer:
    def answer(x: np.ndarray) -> Call:
        given = torch.from_numpy(x)

        def call() -> Any:
            with torch.inference_mode():
                return model(given)

        return call

    return answer


def _session(peers: Peers, write: Callable[[Any, tuple], bytes], model: Any) -> Answer | None:
    """ONNX Runtime on a file of the model, if it takes part."""
    runtime = peers.onnxruntime
    if runtime is None:
        return None

    def answer(x: np.ndarray) -> Call:
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = peers.threads, 1
        session = runtime.InferenceSession(write(model, x.shape), options,
                                           providers=["CPUExecutionProvider"])  # fmt: skip
        return lambda: session.run(None, {"x": x})[0]

    return answer


# --- the same networks as files ------------------------------------------------------------------


def onnx_resnet(model: networks.ResNet, shape: tuple[int, ...]) -> bytes:
    """ResNet as an ONNX file: convolutions and batch norms apart, as exporters write them."""
    g = Graph()

    def unit(x: str, convolution: Any, norm: Any) -> str:
        return g.batch_norm(g.convolution(x, convolution), norm)

    x = g("Relu", unit("x", model.conv, model.norm))
    x = g("MaxPool", x, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
    for block in model.blocks:
        y = g("Relu", unit(x, block.conv1, block.norm1))
        y = g("Relu", unit(y, block.conv2, block.norm2))
        y = unit(y, block.conv3, block.norm3)
        x = g("Relu", g("Add", y, x if block.short is None else unit(x, *block.short)))
    x = g("Flatten", g("GlobalAveragePool", x))
    head = model.head
    return g.file({"x": shape}, g("Gemm", x, g.weight(head.weight), g.weight(head.bias), transB=1))


def onnx_bert(model: Any, shape: tuple[int, ...]) -> bytes:
    """BERT's encoder as an ONNX file; query, key and value are one product, as with us."""
    g, x = Graph(), "x"
    batch, time, width = shape
    for block in model:
        attention = block.self_attn
        heads = attention.num_heads
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        parts = g("Reshape", g.linear(x, weight, bias),
                  g.weight(np.array([batch, time, 3, heads, width // heads])))  # fmt: skip
        parts = g("Transpose", parts, perm=(2, 0, 3, 1, 4))
        q, k, v = (g("Gather", parts, g.weight(np.array(i)), axis=0) for i in range(3))
        scores = g("MatMul", q, g("Transpose", k, perm=(0, 1, 3, 2)))
        scores = g("Mul", scores, g.weight(np.float32((width // heads) ** -0.5)))
        y = g("MatMul", g("Softmax", scores, axis=-1), v)
        y = g("Reshape", g("Transpose", y, perm=(0, 2, 1, 3)), g.weight(np.array(shape)))
        y = g.linear(y, attention.out_proj.weight, attention.out_proj.bias)
        x = g.layer_norm(g("Add", x, y), block.norm1)
        y = g("Gelu", g.linear(x, block.linear1.weight, block.linear1.bias))
        y = g.linear(y, block.linear2.weight, block.linear2.bias)
        x = g.layer_norm(g("Add", x, y), block.norm2)
    return g.file({"x": shape}, x)
