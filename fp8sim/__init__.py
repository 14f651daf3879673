"""Low-precision training, simulated bit for bit."""
