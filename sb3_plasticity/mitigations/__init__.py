"""Remedies for the loss of plasticity, composable and for any algorithm."""
