"""Data-free knowledge distillation: the parts of ``coalmine.methods.dfkd``."""
