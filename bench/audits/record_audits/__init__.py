"""Audits of stored records, run by every report and without torch, one per file.

A file is called as its audit, with ``_`` for ``-``.
"""
