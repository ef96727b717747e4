"""The base of every typed block of settings."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Settings that refuse unknown keys and wrong types, and never change once read.

    Every data source, method, table and figure module defines a subclass called ``Settings``; its fields are
    what ``config.yaml`` may set for that module, and their defaults are its documentation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
