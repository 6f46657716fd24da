"""
rl_zoo3 with our algorithms: ``python -m sb3_plasticity.zoo <train|enjoy|plots|record_video|benchmark> ...``.

rl_zoo3's own scripts run, with ``ppo_l2er`` among their algorithms, the packaged hyper-parameters as their defaults and
an experiment manager that evaluates, checkpoints and resumes as a changing world needs.
"""
