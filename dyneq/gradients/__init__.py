"""Estimators of the gradient of a loss at the equilibrium with respect to the parameters."""
