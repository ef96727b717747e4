"""Training and querying classifiers: ``recipe`` (without torch), ``augment``, ``loop``, ``inference``, ``device``."""
