"""Classifiers: typed settings (``settings``, without torch) and their construction (``build``)."""
