"""Stored results checked again, and adversarial examples that someone submits."""
