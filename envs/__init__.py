"""Non-stationary MuJoCo tasks for Gymnasium."""
