"""Start programs on one rank or many: ``python -m distgrad.launch``."""
