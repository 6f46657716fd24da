"""
A matrix of methods x seeds x environments and its report: ``python -m sb3_plasticity.study run | report``.

One process trains one run; everything it leaves lies in the run's folder, and the report reads nothing else.
"""
