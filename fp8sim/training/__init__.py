"""A small language model on real text: data, model and loop."""
