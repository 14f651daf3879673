"""Public operations and modules, each with arguments that it takes; `tests/test_bad_input.py` spoils them."""

from collections.abc import Callable
from typing import Any

import torch

import fp8sim
from fp8sim import functional, nn
from fp8sim.ops import activations, cross_entropy, encode_scaled, rms_norm
from fp8sim.ops import matmul as ops

X = torch.linspace(-2, 2, 32).reshape(4, 8)
HALF = X.bfloat16()
HEADS = HALF.reshape(1, 2, 4, 4)
CLASSES = torch.tensor([1, 0, 7, 2])
STARTS = torch.tensor([0, 4], dtype=torch.int32)
CODES = torch.arange(32, dtype=torch.uint8).reshape(4, 8)
WEIGHT = torch.linspace(-1, 1, 48).reshape(6, 8)
ROW = torch.ones(8)
CAST = {"scale": 0.5, "amax": True, "transpose": True, "rounding": "TIES_TO_EVEN", "overflow": "SATURATE"}
RANDOM = {"rounding": "stochastic", "seed": 1, "stream": 2, "offset": 3, "random_bits": 16}

Call = tuple[Callable[..., Any], dict[str, Any]]

ATTENTION = {
    "query": HEADS, "key": HEADS, "value": HEADS, "dropout_p": 0.0, "is_causal": True, "scale": 0.5, "enable_gqa": True,
}  # fmt: skip
FACTORS = dict.fromkeys(("query_scale_inv", "key_scale_inv", "value_scale_inv", "output_factor"), 0.5)

OPERATIONS: dict[str, Call] = {
    "cast": (fp8sim.cast, {"x": X, "fmt": "e4m3", "grad_format": "e5m2", **RANDOM}),
    "cast of an array": (fp8sim.cast, {"x": X.numpy(), "fmt": "e4m3", "rounding": "to_odd", "overflow": "SATURATE"}),
    "cast into": (fp8sim.cast, {"x": X, "fmt": "e4m3", "out": X.clone()}),
    "encode": (fp8sim.encode, {"x": X, "fmt": "e4m3", **RANDOM}),
    "encode by a preset": (fp8sim.encode, {"x": X, "fmt": "e4m3", "preset": "torch"}),
    "decode": (fp8sim.decode, {"codes": CODES, "fmt": "e4m3", "dtype": torch.float32}),
    "quantize": (fp8sim.quantize, {"x": X, "quantizer": "fp8_128x128"}),
    "quantize at random": (
        fp8sim.quantize,
        {"x": X, "quantizer": "e2m1:STOCHASTIC", "seed": 1, "stream": 2, "offset": 3, "random_bits": 16},
    ),
    "matmul": (
        fp8sim.matmul,
        {"a": CODES, "b": CODES.mT, "c": torch.ones(4, 4), "a_format": "e4m3", "b_format": "e5m2", "a_scale_inv": 0.5,
         "b_scale_inv": 2.0, "accumulate": "sm90.wgmma", "output": "float32"},
    ),
    "matmul by a plan": (fp8sim.matmul, {"a": HALF, "b": HALF.mT, "plan": "sm90.wgmma;flush=128"}),
    "attention": (
        fp8sim.scaled_dot_product_attention,
        {**ATTENTION, **FACTORS, "plan": "bf16", "window": 3, "lower_right": False, "dtype": torch.float32,
         "cu_seqlens_q": STARTS, "cu_seqlens_k": STARTS, "fp8_backward": False},
    ),
    "set_deterministic": (fp8sim.set_deterministic, {"on": False}),
    "fixed_point": (fp8sim.fixed_point, {"bits": 8, "fraction_bits": 6}),
    "will_fp8_pay": (fp8sim.will_fp8_pay, {"M": 16, "N": 32, "K": 64, "device": "H100"}),
    "functional.attention": (
        functional.scaled_dot_product_attention,
        {**ATTENTION, "mult": 2.0, "scale_power": 0.5, "root_softmax": False, "factor_length": 4,
         "factor_causal": True, "recipe": "unit_scaled", "name": ""},
    ),
    "functional.attention, masked": (
        functional.scaled_dot_product_attention,
        {"query": HEADS, "key": HEADS, "value": HEADS, "attn_mask": torch.ones(4, 4).bool(), "root_softmax": True},
    ),
    "functional.attention by a plan": (functional.scaled_dot_product_attention, {**ATTENTION, "plan": "bf16"}),
    "softmax": (functional.softmax, {"input": X, "dim": -1, "dtype": torch.float64, "mult": 2.0, "constraint": None}),
    "gelu": (functional.gelu, {"input": X, "approximate": "tanh", "mult": 2.0, "recipe": "fp32", "constraint": None}),
    "silu": (functional.silu, {"input": X, "mult": 2.0, "recipe": "unit_scaled", "constraint": "gmean"}),
    "silu_glu": (functional.silu_glu, {"input": X, "gate": X, "mult": 2.0, "recipe": "unit_scaled"}),
    "dropout": (functional.dropout, {"input": X, "p": 0.5, "training": True, "recipe": "fp32"}),
    "functional.matmul": (functional.matmul, {"a": X, "b": WEIGHT.mT, "recipe": "fp32", "constraint": None}),
    "linear": (
        functional.linear,
        {"input": X, "weight": WEIGHT, "bias": torch.ones(6), "recipe": "unit_scaled_fp8", "constraint": None,
         "scale_power": (0.5, 0.5, 0.5), "batch_tokens": 4, "name": ""},
    ),
    "linear_readout": (functional.linear_readout, {"input": X, "weight": WEIGHT, "bias": WEIGHT[:, 0]}),
    "conv1d": (
        functional.conv1d,
        {"input": X[None], "weight": torch.ones(6, 2, 3), "bias": torch.ones(6), "stride": 2, "padding": 1,
         "dilation": 1, "groups": 2, "recipe": "fp32", "constraint": None, "batch_tokens": 4},
    ),
    "add": (functional.add, {"input": X, "other": X, "recipe": "unit_scaled", "constraint": None}),
    "add of a row": (functional.add, {"input": X, "other": ROW, "batch_tokens": 4}),
    "residual_split": (functional.residual_split, {"input": X, "tau": 0.5, "convention": "ratio", "recipe": "fp32"}),
    "residual_add": (functional.residual_add, {"branch": X, "skip": X, "tau": 0.5, "convention": "share"}),
    "embedding": (functional.embedding, {"input": CLASSES, "weight": WEIGHT.mT, "padding_idx": 1, "batch_tokens": 4}),
    "layer_norm": (
        functional.layer_norm,
        {"input": X, "normalized_shape": (8,), "weight": ROW, "bias": ROW, "eps": 1e-5, "batch_tokens": 4},
    ),
    "rms_norm": (functional.rms_norm, {"input": X, "normalized_shape": (8,), "weight": ROW, "eps": 1e-5}),
    "cross_entropy": (
        functional.cross_entropy,
        {"input": X, "target": CLASSES, "weight": ROW, "ignore_index": 3, "reduction": "mean", "label_smoothing": 0.1,
         "mult": 2.0, "z_loss": 0.1, "recipe": "fp32"},
    ),
    "cross_entropy, unit-scaled": (
        functional.cross_entropy,
        {"input": X, "target": X.softmax(1), "label_smoothing": 0.1},
    ),
    "mse_loss": (functional.mse_loss, {"input": X, "target": X, "reduction": "sum", "recipe": "unit_scaled"}),
    "batch_parts": (lambda parts: functional.batch_parts(parts).__enter__(), {"parts": 1}),
    "functional.gelu_encode": (
        functional.gelu_encode,
        {"input": X, "fmt": "e4m3", "approximate": "none", "mult": 1.0, "recipe": "fp32", "values": torch.float32,
         **CAST},
    ),
    "functional.silu_glu_encode": (functional.silu_glu_encode, {"input": X, "gate": X, "fmt": "e4m3", "mult": 1.0}),
    "functional.rms_norm_encode": (
        functional.rms_norm_encode,
        {"input": X, "weight": ROW, "fmt": "e4m3", "eps": 1e-5, "batch_tokens": 4, **CAST},
    ),
    "fused_cross_entropy": (
        functional.fused_cross_entropy,
        {"input": X, "target": CLASSES, "weight": ROW, "label_smoothing": 0.1, "in_place": False, "reduction": "mean",
         "ignore_index": 3, "mult": 2.0, "z_loss": 0.1},
    ),
    "ops.matmul": (ops.matmul, {"a": X, "b": WEIGHT.mT, "recipe": "fp8_naive", "name": ""}),
    "ops.linear": (ops.linear, {"input": X, "weight": WEIGHT, "bias": torch.ones(6), "recipe": "fp8_naive"}),
    "encode_scaled": (encode_scaled.encode_scaled, {"x": X, "fmt": "e4m3", "fused": False, **CAST}),
    "gelu_encode": (
        activations.gelu_encode,
        {"x": X, "fmt": "e4m3", "approximate": "none", "mult": 1.0, "alpha": 1.0, "beta": 1.0, **RANDOM},
    ),
    "gelu_backward_encode": (
        activations.gelu_backward_encode,
        {"grad": X, "x": X, "fmt": "e4m3", "beta": 1.0, "mult": 1.0},
    ),
    "silu_glu_encode": (activations.silu_glu_encode, {"x": X, "gate": X, "fmt": "e4m3", "mult": 1.0, "factor": 2.0}),
    "silu_glu_backward_encode": (
        activations.silu_glu_backward_encode,
        {"grad": X, "x": X, "gate": X, "fmt": "e4m3", "mult": 1.0, "factor": 2.0},
    ),
    "rms_norm_encode": (
        rms_norm.rms_norm_encode,
        {"x": X, "gain": ROW, "fmt": "e4m3", "eps": 1e-5, "gain_factor": 0.5},
    ),
    "rms_norm_backward_encode": (
        rms_norm.rms_norm_backward_encode,
        {"grad": X, "x": X, "gain": ROW, "inverse": torch.ones(4), "fmt": "e4m3", "gain_factor": 0.5},
    ),
    "ops.cross_entropy": (cross_entropy.cross_entropy, {"logits": X, "target": CLASSES, "weight": ROW, "beta": 1.0}),
}  # fmt: skip
"""An operation and arguments that it takes."""


MODULES: dict[str, Call] = {
    "Linear": (
        nn.Linear,
        {"in_features": 8, "out_features": 6, "bias": True, "recipe": "fp32", "role": "hidden", "constraint": None,
         "init_std": 0.5, "multiplier": 2.0},
    ),
    "LinearReadout": (nn.LinearReadout, {"in_features": 8, "out_features": 6, "init_std": 1.0, "multiplier": 2.0}),
    "Conv1d": (
        nn.Conv1d,
        {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "groups": 2, "bias": True, "recipe": "fp32"},
    ),
    "LayerNorm": (
        nn.LayerNorm,
        {"normalized_shape": 8, "eps": 1e-5, "elementwise_affine": True, "bias": True, "recipe": "fp32"},
    ),
    "RMSNorm": (nn.RMSNorm, {"normalized_shape": (8,), "eps": 1e-5, "elementwise_affine": True, "recipe": "fp32"}),
    "Embedding": (
        nn.Embedding,
        {"vocabulary": 8, "width": 4, "padding_idx": 1, "recipe": "fp32", "init_std": 1.0, "multiplier": 2.0},
    ),
    "Dropout": (nn.Dropout, {"p": 0.5, "recipe": "fp32"}),
    "MLP": (nn.MLP, {"width": 8, "expansion": 2.0, "activation": "gelu", "bias": True, "recipe": "fp32"}),
    "Attention": (
        nn.Attention,
        {"width": 8, "heads": 2, "key_value_heads": 1, "is_causal": True, "rotary_base": 100.0, "recipe": "fp32"},
    ),
    "MultiheadAttention": (nn.MultiheadAttention, {"embed_dim": 8, "num_heads": 2, "dropout": 0.1, "bias": True}),
    "TransformerConfig": (
        nn.TransformerConfig,
        {"vocabulary": 50, "width": 32, "blocks": 2, "heads": 4, "dropout": 0.1, "init_std": 1.0, "alpha_res": 1.0,
         "tau": 0.4, "activation": "gelu", "norm": "rms"},
    ),
    "convert": (nn.convert, {"model": torch.nn.Linear(4, 4), "recipe": "fp32"}),
}  # fmt: skip
"""Modules, and arguments with which they are made."""
