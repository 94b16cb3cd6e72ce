"""The figures, one per file. No torch."""
