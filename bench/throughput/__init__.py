"""How fast a model is, and how far from what its device allows."""
