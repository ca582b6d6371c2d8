"""Residuals, relaxation, roots and linearisation of a system."""
