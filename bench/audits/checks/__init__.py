"""The audits, one per file."""
