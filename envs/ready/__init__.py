"""Task sequences: published sequences of tasks, and classic control tasks whose physics changes."""
