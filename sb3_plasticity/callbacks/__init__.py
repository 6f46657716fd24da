"""Callbacks for any SB3 agent."""
