"""The membership audit in pure NumPy and SciPy: arrays in, numbers out, no file and no model in sight.

Arrays are always ``(canary, model[, view[, class]])`` and membership is bool ``(canary, model)``; a larger score means
more likely a member. The modules, in the order of an audit:

- :mod:`~coalmine.audit.design`: draw canaries, wrong labels and membership; say what each model trains on.
- :mod:`~coalmine.audit.scores`: turn logits into scores of single queries.
- :mod:`~coalmine.audit.lira`, :mod:`~coalmine.audit.rmia`: attack each model with the others as its shadows.
- :mod:`~coalmine.audit.attacks`: all attacks at once, by name.
- :mod:`~coalmine.audit.roc`, :mod:`~coalmine.audit.bootstrap`, :mod:`~coalmine.audit.epsilon`: what an attack shows,
  and how sure that is.
- :mod:`~coalmine.audit.metrics`: everything that is reported about one attack.
- :mod:`~coalmine.audit.inheritance`: what a student that never saw private data takes over from its teacher.
- :mod:`~coalmine.audit.visual`: whether synthetic images show private ones, which no attack's score tells.
"""
