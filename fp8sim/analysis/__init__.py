"""Observation: figures of merit of casts and gradients, verdicts, checks of arithmetic, reports."""
