"""What a run costs: the work of every job counted from its settings, priced by what finished runs have measured.

``work`` is what methods see, ``networks`` counts a network's arithmetic, ``counting`` that of loops around it,
``stages`` that of every stage, ``records`` holds measurements, ``pricing`` turns both into predictions with intervals.
No stage imports any of it but ``work``, which is small and still, so that a better estimate retrains nothing.
"""
