"""Reinforcement learning that keeps learning: an extension of stable-baselines3."""
