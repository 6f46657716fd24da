"""Tuned hyper-parameters in rl-zoo format, one file an algorithm, keyed by env id."""
