"""Audits: named checks of whether a robustness number can be believed.

A new audit is one new file. In `model_audits` it measures the trained model, and its result is stored in a
record of kind ``audit``. In `record_audits` it reads stored records alone, without torch, when a report is
made. The file registers one audit, called as the file with ``-`` for ``_``.
"""
