"""What is stored, looked at again: verification, submissions, and examples shown to other models."""
