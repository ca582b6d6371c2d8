"""What is diagnosed: the System protocol, equilibrium blocks, adapters, analytic systems, checkpoint files."""
