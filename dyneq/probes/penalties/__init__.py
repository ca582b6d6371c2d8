"""Penalties: each the differentiable form of a probe's measure, and what it adds to a gradient."""
