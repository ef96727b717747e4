"""Methods: one file a family; the configuration names the file as ``module``.

A method file defines ``class Settings(coalmine.settings.Settings)``, its hyper-parameters, with units and the paper's
values, and is of one of four kinds. It defines exactly one of the functions

- ``synthesize(shadows, settings, setup)``, which yields one :class:`coalmine.shadows.Synthetic` per shadow model, in
  order: the audited model is then trained on that set with the run's recipe;
- ``train(shadows, settings, setup)``, which yields one :class:`coalmine.training.loop.Trained` per shadow model, in
  order: the method is a way to train on the private data themselves;
- ``distil(teachers, settings, setup)``, which yields one :class:`coalmine.shadows.Distilled` per
  :class:`coalmine.shadows.Teacher`, in order: the method is data-free. Its ``Settings`` have a field ``teacher: str``,
  an entry of ``methods`` that trains on the private data themselves; it is given that entry's models and no private
  data, and makes the audited models, its students (with the architecture and the recipe of its own entry), together
  with a sample of the images that they learned from;

or none of them, and its ``Settings`` have a field ``set: str``: an entry of ``methods`` whose synthetic sets the
audited models are trained on. These are not made again.

It may also define, for what it needs,

- ``uses_public(settings)``, whether it needs the run's public data with these settings;
- ``SOURCE = "initialised"`` if the ``source`` of a synthetic image is the private sample that it started from; else it
  is the one that it is a copy of (``"copied"``);
- ``RECIPE``, the fields of the run's training recipe that ``train`` or ``distil`` uses, if not all;
- ``objection(settings, model, recipe, outline)``, which returns the field and the reason why settings cannot work, or
  None, before any job starts (``outline``: what is known about the run by then, :class:`coalmine.outline.Outline`);
- ``guarantee(settings, population)``, if the method is differentially private: its
  :class:`coalmine.accounting.Guarantee`. ``setup.mechanism`` is then what it may do, ``Settings`` have ``clip``;
- ``fit(shadows, own, setup)``, beside ``synthesize``: it yields one :class:`coalmine.shadows.Fitted` per shadow model,
  in order, a generative model that ``synthesize`` then draws from (``setup.generator(shadow)`` is its file). ``own`` is
  the block ``fit`` of ``Settings``, and all that fitting depends on: what else they hold says what is drawn. Neither
  stage is told the audited model, its recipe or the normalisation. ``guarantee`` is then given that block, which has
  ``clip``, and ``setup.mechanism`` is ``fit``'s.

``Settings`` of a method with ``fit`` may have a field ``generator: str | None``: another entry of the same file, whose
generative models are drawn from in place of its own, and the block ``fit`` a field ``pretrained: str | None``: an entry
of the section ``pretrained``, a denoiser that public data train once for all shadow models. ``fit`` is given its file
(``setup.pretrained``).

A method whose ``Settings`` have a field ``experts: str`` names an entry of the section ``experts`` with it, and is
given the file of that entry's trajectories (``setup.experts``).

Nothing else has to be edited: a new file and an entry in ``config.yaml`` make a new row.
Keep heavy imports (torch) inside functions where that is no burden: ``Settings`` are checked before any job starts.
"""
