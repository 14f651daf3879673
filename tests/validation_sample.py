"""A small content of validation.json, made of real figures of made-up tensors."""

import dataclasses
import json

import torch

from fp8sim import recipes
from fp8sim.analysis.figures import cast_figures, gradient_figures
from fp8sim.formats import parse


def operand(layer, name, fmt, x):
    y = x.to(getattr(torch, str(parse(fmt)))).to(x.dtype)
    figures = dataclasses.asdict(cast_figures(x, y, parse(fmt)))
    return {"layer": layer, "operand": name, "format": str(parse(fmt)), "high_precision": False, **figures}


def look(step, blocks, scale):
    """Two steps of a made-up model whose gradients are `scale` times a normal tensor."""
    generator = torch.Generator().manual_seed(step)
    operands = []
    for i in range(blocks):
        x = [torch.randn(512, generator=generator) for _ in range(3)]
        operands.append(operand(f"block{i}.up", "input", "e4m3", x[0]))
        operands.append(operand(f"block{i}.up", "weight", "e4m3", x[1]))
        operands.append(operand(f"block{i}.up", "grad_output", "e5m2", x[2] * scale))
    x = torch.randn(512, generator=generator)
    gradients = {"up": dataclasses.asdict(gradient_figures(x * 1.01, x))}
    return {"step": step, "loss": 4.5 - 0.01 * step, "operands": operands, "gradients": gradients}


def entry(name="unit_scaled_fp8", blocks=2, scale=1.0, decides=True):
    decisive = {"subject": "block1.up input", "figure": "sqnr", "value": None, "verdict": "PASS", "margin": 0.9}
    looks = [look(0, blocks, scale), look(50, blocks, scale)]
    decisive["value"] = looks[1]["operands"][3]["sqnr"] if blocks > 1 else 1.0
    return {
        "recipe": recipes.parse(name).to_dict(),
        "learning_rate": 1.0,
        "losses": [4.5 - 0.01 * step for step in range(50)],
        "skipped_steps": [],
        "verdict": "PASS",
        "decisive": {**decisive, "reason": "0.1 dB below the plateau"},
        "worst": {"sqnr": 25.4, "zeroed": 0.005, "clipped": 0.0, "cosine": 0.9966},
        "looks": looks,
        "decides": decides,
    }


def row(name="linear", verdict="PASS", compared=1234567, detail=""):
    plain = {"name": name, "ran_on": "simulate", "contract": "bitwise", "compared": compared, "mismatches": 0}
    return {**plain, "detail": detail, "verdict": verdict}


def validation(scaling, arithmetic):
    size = {"width": 128, "blocks": 4, "heads": 4, "symbols": 103}
    optimizer = {"name": "AdamW", "betas": [0.9, 0.95], "weight_decay": 0.0, "warm_up": 0}
    run = {"seed": 7, "steps": 50, "model": size, "length": 128, "batch": 8, "optimizer": optimizer}
    versions = {"fp8sim": "0.1.0", "torch": "2.13.0+cpu", "numpy": "2.4.6", "python": "3.11.7", "machine": "x86_64"}
    data = {
        "schema": 2,
        "exit_code": 0,
        "seconds": 41.4,
        "environment": {**versions, "device": "CPU", "threads": 2, "isa": "AVX-512"},
        "text": {"name": "topics", "characters": 465048, "sha256": "2a95af4a"},
        "run": {**run, "accumulation": "float32 (BLAS)"},
        "scaling": scaling,
        "arithmetic": arithmetic,
    }
    return json.loads(json.dumps(data, allow_nan=False))
