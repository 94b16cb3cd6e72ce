"""The figures, one a file, from tables and records alone. No torch."""
