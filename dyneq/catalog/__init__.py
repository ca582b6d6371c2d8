"""Where checkpoints are found by name, and where results go."""
