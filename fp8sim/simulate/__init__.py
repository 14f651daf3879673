"""Each operation as its definition: readable like the paper it comes from, on CPU tensors, bit for bit."""
