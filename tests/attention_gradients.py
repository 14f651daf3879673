"""Inputs of an attention's backward pass, its gradients in float64, and how far a kernel's may lie from them."""

import math

import torch

BF16, FP16 = torch.bfloat16, torch.float16
LN2 = math.log(2)


def integers(low, high, *shape, seed):
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def exact_inputs(dtypes, *, batch=1, heads=2, groups=1, length=100, keys=130, width=64, features=64, seed=0):
    """Operands whose logits in base 2 are integers, with integers for `lse`, and whose sums of rows are exact.

    Few features of query and key are not zero, so that probabilities lie between 2^-17 and 1.
    """
    q, k = (
        integers(-2, 2, batch, n, rows, width, seed=seed + i)
        for i, (n, rows) in enumerate([(heads, length), (groups, keys)])
    )
    q[..., 2:] = 0
    v = integers(-3, 3, batch, groups, keys, features, seed=seed + 2)
    grad = integers(-3, 3, batch, heads, length, features, seed=seed + 3).to(BF16)
    output = integers(-2, 2, batch, heads, length, features, seed=seed + 4).to(BF16)
    lse = integers(8, 9, batch, heads, length, seed=seed + 5)
    q, k, v = (x.to(dtype) for x, dtype in zip((q, k, v), dtypes, strict=True))
    return grad, q, k, v, output, lse


def reference(grad, q, k, v, scale, **mask):
    """Output, lse and what the gradients are made of, in float64: p, d = the gradient of the logits, g and its sums."""
    q, k, v, g = (x.double() for x in (q, k, v, grad))
    shared = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(shared, 1) for x in (k, v))
    logits = (q @ k.mT * scale).masked_fill(~visible(q.shape[2], k.shape[2], **mask), -math.inf)
    lse = torch.logsumexp(logits, -1)
    lse = torch.where(lse.isneginf(), math.inf, lse)
    p = torch.exp(logits - lse[..., None])
    output = p @ v
    t, delta = g @ v.mT, (g * output).sum(-1)
    d = p * (t - delta[..., None])
    parts = {"q": q, "k": k, "g": g, "p": p, "d": d, "shared": shared}
    parts["reach"] = p * (g.abs() @ v.abs().mT + (g * output).abs().sum(-1)[..., None])
    return output.float(), (lse / LN2).float(), parts


def visible(length, keys, is_causal=False, window=None, lower_right=False):
    place = torch.arange(length)[:, None] + (keys - length if lower_right else 0)
    key = torch.arange(keys)[None]
    seen = (key <= place) if is_causal or window else torch.ones(length, keys, dtype=torch.bool)
    return seen & (key > place - window) if window else seen


def of_groups(x, parts):
    """[B, H, ...] added over the heads that share a key."""
    return x.unflatten(1, (-1, parts["shared"])).sum(2)


def gradients(parts, scale):
    """Gradients of query, key and value."""
    q, k, g, p, d = (parts[name] for name in "qkgpd")
    return d @ k * scale, of_groups(d.mT @ q, parts) * scale, of_groups(p.mT @ g, parts)


UNITS = {"bf16": (2.0**-8, 0.0, 2.0**-8), "fp16": (2.0**-11, 0.0, 2.0**-11), "fp8": (2.0**-4, 2.0**-3, 2.0**-3)}
"""Largest relative error of casting p, g and d."""

SUBNORMAL = {"bf16": (0.0, 0.0), "fp16": (2.0**-25, 2.0**-25), "fp8": (2.0**-18, 2.0**-17)}
"""Largest error of casting a subnormal p, its offset taken off, and d, times its scale."""


def bounds(parts, scale, kind, logits_scale):
    """How far each gradient may lie from `gradients`.

    A float32 sum of K products errs by K 2^-22 of the sum of their magnitudes (`mma.float32_error_bound`), FP8 on
    Hopper by 2^-6 of it: each step of 32 cuts 33 terms below 2^-13 of the largest. p errs by what its exponent does.
    Then come the casts.
    """
    unit_p, unit_g, unit_d = UNITS[kind]
    tiny_p, tiny_d = SUBNORMAL[kind]
    longest = max(*parts["p"].shape[-2:], parts["shared"] * parts["p"].shape[-2], 256)
    sums = longest * 2.0**-22 + (2.0**-6 if kind == "fp8" else 0)
    exponent = 2.0**-9 if kind == "fp8" else 2.0**-14
    q, k, g, p, d = (parts[name].abs() for name in "qkgpd")
    wrong_p = p * ((1 + unit_p) * (1 + exponent) - 1) + tiny_p
    value = ((p + wrong_p).mT @ g) * (1 + unit_g) * (1 + sums) - p.mT @ g
    wrong_d = parts["reach"] * ((1 + unit_g + sums) * (1 + exponent) - 1)
    wrong_d = (d + wrong_d) * (1 + unit_d) - d + tiny_d / logits_scale
    query, key = ((d + wrong_d) @ k * (1 + sums) - d @ k), (d + wrong_d).mT @ q * (1 + sums) - d.mT @ q
    return query * scale, of_groups(key, parts) * scale, of_groups(value, parts)


def random_inputs(dtype, length, keys, width=64, features=64, heads=2, groups=1, seed=0, **mask):
    g = torch.Generator().manual_seed(seed)
    shapes = [(1, heads, length, width), (1, groups, keys, width), (1, groups, keys, features)]
    q, k, v = (torch.randn(shape, generator=g).to(dtype) for shape in shapes)
    grad = torch.randn(1, heads, length, features, generator=g).to(FP16 if dtype == FP16 else BF16)
    output, lse, parts = reference(grad, q, k, v, width**-0.5, **mask)
    return (grad, q, k, v, output, lse), parts
