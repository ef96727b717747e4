"""Data sources, one module each; a new data set is a new module here, and nothing else has to name it.

Every source module offers

- ``Settings``: what ``config.yaml`` may set for it;
- ``files(settings)``: the ``RemoteFile`` objects that must be fetched first, none where nothing is fetched;
- ``load(settings, files, rng)``: the ``Splits``, from the fetched files in the order of ``files(settings)``;
- ``public_objection(settings)``: why these data may not serve as public data, or None; and, if it can be told
- ``expected_size(settings)``: the number of private samples before any is read, so that a design that needs more is
  refused at once.

Importing one is cheap: whatever decodes, draws or loads is imported by the function that needs it.
"""
