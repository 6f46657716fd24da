"""Worlds under an id: the published sequences of tasks, and simple physics that changes."""
