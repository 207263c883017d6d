"""Tests; and the checker behind jaxtyping's pytest hook: beartype, with an int taken for a float (PEP 484)."""

from beartype import BeartypeConf, beartype

check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))
