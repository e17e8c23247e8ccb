"""What a proof has measured: the record that a backbone carries and a saved directory holds."""

from dataclasses import dataclass
from typing import Literal

Route = Literal["packed", "mask", "alone"]
"""`packed`: our attention, no mask. `mask`: the family's own under a block-diagonal mask. `alone`: texts by length, one
call each, for models with recurrent layers, which are causal anyway."""


@dataclass(frozen=True)
class Proof:
    """What was measured. Differences are relative to the length of a token's vector."""

    layers: int
    """Decoder layers whose mixing was watched."""
    leak: float
    """Largest movement of a text when the others in its pack change; rounding only."""
    difference: float
    """Largest difference between a text in a pack and the same text alone in the family's own attention."""
    route: Route
    """How packed rows are read."""
    notes: tuple[str, ...]
    """Conditions under which this holds."""
    fingerprint: str
    """The weights it was measured on (`Backbone.fingerprint`)."""
    versions: dict[str, str]
    """Releases of PROVEN_WITH it was measured with."""
