"""What the tests ask of types: the checker for the annotations, and the form of an error."""

import re
from functools import partial

import pytest
import torch
from beartype import BeartypeConf, beartype

# PEP 484's tower: `gamma=1` is a float. See conftest.py for who calls this.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))

# Expected values are Python floats, which float32 would round.
double = partial(torch.tensor, dtype=torch.float64)


def refuses(argument: str, came: str) -> pytest.RaisesExc[ValueError]:
    """Expect minippo's error: "caller: argument must ..., got what came."."""
    return pytest.raises(
        ValueError, match=rf"^{re.escape(argument)} must .*, got {re.escape(came)}\.$"
    )
