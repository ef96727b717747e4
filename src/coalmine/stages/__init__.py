"""Stages: thin command lines, ``python -m coalmine.stages.NAME --spec JSON … --out …``, one per rule.

The command that Snakemake logs can be copied and run without Snakemake.
"""
