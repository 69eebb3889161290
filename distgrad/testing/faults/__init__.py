"""Faults on purpose: every way in which ranks, hosts and disks fail, at every phase of training.

``python -m distgrad.testing.faults`` runs a small job under the supervisor once per fault, and
prints what became of it.  ``plan`` lists the faults, ``strike`` does one inside a rank, ``rank`` is
the program of such a rank, ``trial`` runs one job and judges it.
"""
