"""How many clients one server serves: `python -m benchmarks.scale`."""
