"""Registered operations (`torch.ops.fp8sim`), their autograd, and the public functions over them."""
