"""Speed, measured: `python -m benchmarks.run`. A wrong result is never timed."""
