"""Results of a GPU and of the simulator, to be compared bit for bit."""

import torch


def bits_of_both(*pair):
    return [x.cpu().contiguous().view(torch.int32) if x.dtype == torch.float32 else x.cpu() for x in pair]
