"""Attacks of other libraries as threats, by name: ``torchattacks:MIFGSM``, ``adv_lib:ddn``."""
