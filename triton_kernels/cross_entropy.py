"""Softmax cross-entropy with its gradient, in one kernel: it takes the place of the logits, or memory of its own.

One program per row, in chunks, twice: for the logarithm of the sum of exponentials, and for the gradient. A row of
131,072 bfloat16 logits is 256 KiB, so that the second reading comes from the cache.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from fp8sim.triton_kernels import interpreter
from fp8sim.triton_kernels.results import load_float32, matrix_rows

CHUNK = 4096
"""Logits per step, of 256 threads."""

_LOG2_E = tl.constexpr(math.log2(math.e))
_INFINITY = tl.constexpr(math.inf)


@triton.jit
def _exp(x):
    return tl.exp2(x * _LOG2_E)


@triton.jit(do_not_specialize=["ignored", "mult", "smoothing", "z_loss", "grad_factor"])
def _cross_entropy_kernel(
    logits_ptr,
    grad_ptr,
    loss_ptr,
    target_ptr,
    weight_ptr,
    weight_sum_ptr,
    factor_ptr,
    classes,
    logits_stride,
    grad_stride,
    ignored,
    mult,
    smoothing,
    z_loss,
    grad_factor,
    BLOCK: tl.constexpr,
):
    """One row: its loss, and factor * grad_factor times the gradient of the loss by mult * logits.

    With z = mult * logits, l = logsumexp(z), class y, weights w (None: ones) and smoothing e:

        loss = (1 - e) w_y (l - z_y) + e/V sum_v w_v (l - z_v) + z_loss w_y l^2
        grad = ((1 - e) w_y + e/V sum w + 2 z_loss w_y l) softmax(z)_j - (1 - e) w_y [j = y] - e/V w_j

    An ignored row has loss and gradient 0, one whose class there is not NaN. `grad_ptr` may be `logits_ptr`.
    """
    program = tl.program_id(0).to(tl.int64)
    logits_ptr += program * logits_stride
    grad_ptr += program * grad_stride
    target = tl.load(target_ptr + program).to(tl.int64)
    kept = target != ignored
    exists = (target >= 0) & (target < classes)
    column = tl.arange(0, BLOCK)

    largest = tl.full([], -_INFINITY, tl.float32)
    total = tl.zeros([], tl.float32)
    smooth = tl.zeros([BLOCK], tl.float32)
    for left in range(0, classes, BLOCK):
        mask = left + column < classes
        z = tl.load(logits_ptr + left + column, mask=mask, other=-_INFINITY).to(tl.float32) * mult
        above = tl.maximum(largest, tl.max(z, axis=0))
        reference = tl.where(above == -_INFINITY, 0.0, above)
        total = total * _exp(largest - reference) + tl.sum(_exp(z - reference), axis=0)
        largest = above
        if smoothing > 0.0:
            smooth += tl.where(mask, z, 0.0) * _weight(weight_ptr, left + column, mask)
    log_sum = largest + tl.log(total)

    picked = load_float32(logits_ptr, target, kept & exists) * mult
    row_weight = _weight(weight_ptr, target, kept & exists)
    whole = classes.to(tl.float32) if weight_sum_ptr is None else tl.load(weight_sum_ptr)
    spread = smoothing / classes.to(tl.float32)
    hit = (1.0 - smoothing) * row_weight
    loss = hit * (log_sum - picked) + z_loss * row_weight * log_sum * log_sum
    if smoothing > 0.0:
        loss += spread * (whole * log_sum - tl.sum(smooth, axis=0))
    loss = tl.where(exists, loss, float("nan"))
    tl.store(loss_ptr + program, tl.where(kept, loss, 0.0))

    factor = grad_factor if factor_ptr is None else grad_factor * tl.load(factor_ptr)
    share = hit + spread * whole + 2.0 * z_loss * row_weight * log_sum
    share = tl.where(exists, share, float("nan"))
    for left in range(0, classes, BLOCK):
        mask = left + column < classes
        z = load_float32(logits_ptr, left + column, mask) * mult
        gradient = share * _exp(z - log_sum) - tl.where(left + column == target, hit, 0.0)
        if smoothing > 0.0:
            gradient -= spread * _weight(weight_ptr, left + column, mask)
        gradient = tl.where(kept, gradient * factor, 0.0)
        tl.store(grad_ptr + left + column, gradient.to(grad_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _weight(weight_ptr, index, mask):
    """The weights of classes, ones without any."""
    if weight_ptr is None:
        return mask.to(tl.float32)
    else:
        return load_float32(weight_ptr, index, mask)


@triton.jit
def _scale_kernel(x_ptr, factor_ptr, columns, x_stride, factor_stride, BLOCK: tl.constexpr):
    """A piece of a row times the row's factor, in place; nothing moves where that is 1."""
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(factor_ptr + row * factor_stride).to(tl.float32)
    if factor != 1.0:
        column = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        index = row * x_stride + column
        product = load_float32(x_ptr, index, column < columns) * factor
        tl.store(x_ptr + index, product.to(x_ptr.dtype.element_ty), mask=column < columns)


def cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    mult: float = 1.0,
    z_loss: float = 0.0,
    grad_factor: float = 1.0,
    factor: torch.Tensor | None = None,
    in_place: bool = False,
    block: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each row and its gradient, as `fp8sim.simulate.cross_entropy.cross_entropy` defines them.

    Args:
        logits: [..., V], float32, float16 or bfloat16; on a CUDA device, or interpreted on the CPU.
        target, weight, ignore_index, label_smoothing, mult, z_loss, grad_factor, factor: as for the definition.
        in_place: whether the gradient takes the place of the logits, which then are rows of neighbours without copies.
        block: logits per step, a power of two.

    Returns:
        Losses [...], float32; gradients [..., V] in the dtype of the logits.

    Raises:
        TypeError, ValueError, RuntimeError: a dtype, layout or device that no kernel takes.
    """
    rows = matrix_rows("logits", logits)
    if in_place and logits.numel() > 0 and rows.data_ptr() != logits.data_ptr():
        raise ValueError(
            f"in_place=True needs logits whose rows are evenly spaced and have no gaps inside, got strides "
            f"{list(logits.stride())} of {list(logits.shape)}: call .contiguous() first"
        )
    grad = rows if in_place else torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    losses = torch.empty(target.shape, dtype=torch.float32, device=logits.device)
    if rows.numel() > 0:
        chunk = block or (min(triton.next_power_of_2(rows.shape[1]), 1 << 16) if interpreter.is_enabled() else CHUNK)
        total = None if weight is None else weight.float().sum()
        with torch.cuda.device_of(logits):
            _cross_entropy_kernel[(rows.shape[0],)](
                rows, grad, losses, target.contiguous(), None if weight is None else weight.float().contiguous(), total,
                factor, rows.shape[1], rows.stride(0), grad.stride(0), ignore_index, mult, label_smoothing, z_loss,
                grad_factor, BLOCK=chunk, num_warps=8,
            )  # fmt: skip
    return losses, logits if in_place else grad.view(logits.shape)


def scale_rows(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """x, every row times its factor, in place; a factor of 1 moves no memory, and nothing waits for the device.

    Args:
        x: [..., V], as the logits of `cross_entropy` in place. factor: one number or [...], floating point.
    """
    rows = matrix_rows("x", x)
    if x.numel() > 0:
        flat = factor.detach().contiguous()
        block = 1 << 16 if interpreter.is_enabled() else CHUNK
        grid = (rows.shape[0], triton.cdiv(rows.shape[1], block))
        with torch.cuda.device_of(x):
            _scale_kernel[grid](rows, flat, rows.shape[1], rows.stride(0), int(flat.numel() > 1), BLOCK=block)
    return x
