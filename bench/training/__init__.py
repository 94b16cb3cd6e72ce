"""Training a model, loading it again, and saying how it was made."""
