"""Audits of a trained model, one per file; a file is called as its audit, with ``_`` for ``-``."""
