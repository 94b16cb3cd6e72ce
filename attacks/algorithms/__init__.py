"""The attack algorithms, one per file."""
