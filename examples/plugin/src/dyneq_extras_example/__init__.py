"""A probe, a gradient estimator and a kind of system for dyneq, found through entry points."""
