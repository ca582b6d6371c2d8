"""The parts equilibrium blocks are composed of, each with hand-derived products of its Jacobian and its transpose."""
