"""Tests; and the checker behind jaxtyping's pytest hook: beartype, an int taken where a float is asked for (PEP 484)."""

from beartype import BeartypeConf, beartype

check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))
