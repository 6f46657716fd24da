"""PPO with the L2-ER objective."""
