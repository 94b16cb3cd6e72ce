"""The auditor: named checks of whether a robustness number can be believed.

One file a check, registered by name. The files named in `library.RECORDS` read stored records alone, without
torch, when a report is made; the others ask the trained model and are stored as records of kind ``audit``.
"""
