"""What the API server must let in and what it must refuse, as tables of merge patches to the samples."""

from tests.api.tables.cases import Accepted, Refused
from tests.api.tables.changes import CHANGES_ACCEPTED, CHANGES_REFUSED
from tests.api.tables.keys import KEYS_ACCEPTED, KEYS_REFUSED
from tests.api.tables.models import MODELS_ACCEPTED, MODELS_REFUSED
from tests.api.tables.money import MONEY_ACCEPTED, MONEY_REFUSED
from tests.api.tables.services import SERVICES_ACCEPTED, SERVICES_REFUSED

REFUSED = [*MODELS_REFUSED, *SERVICES_REFUSED, *MONEY_REFUSED, *KEYS_REFUSED]
ACCEPTED = [*MODELS_ACCEPTED, *SERVICES_ACCEPTED, *MONEY_ACCEPTED, *KEYS_ACCEPTED]

__all__ = ["ACCEPTED", "CHANGES_ACCEPTED", "CHANGES_REFUSED", "REFUSED", "Accepted", "Refused"]
