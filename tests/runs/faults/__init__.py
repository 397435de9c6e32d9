"""The fault harness of training. What can be many takes how many: tests run a few, `benchmarks/faults.py` more."""
