"""Automatic differentiation: modes, the graph, the declaration of operations, and the engine."""
