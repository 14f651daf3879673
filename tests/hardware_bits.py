"""Results of a GPU and of the simulator, to be compared bit for bit."""

import contextlib

import torch


def bits_of_both(*pair):
    return [x.cpu().contiguous().view(torch.int32) if x.dtype == torch.float32 else x.cpu() for x in pair]


@contextlib.contextmanager
def nothing_waits():
    """Whatever waits for the device in the block is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
