"""
Training from YAML in rl-zoo's format, and what can be done with the runs: a module for each command.

``config`` reads an entry, ``spec`` is a run's description, ``folder`` and ``checkpoints`` are what it leaves on disk,
``experiment`` makes environments, agent and callbacks of it, and ``training`` brings it to its end.
"""
