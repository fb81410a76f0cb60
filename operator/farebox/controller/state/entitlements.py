"""The operator's copy of the ledger's free quotas and reservations. No I/O: sources/ledger_feed.py fills it.

It can be trusted exactly while balances can (balances.py), because one feed carries all three.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from farebox.domain.billing.reservations import Buying
from farebox.domain.keys import ObjectKey
from farebox.meterapi.types import QuotaBalance, ReservationBalance


@dataclass
class Entitlements:
    """Quotas by account and model, reservations by service and uid."""

    _quotas: dict[tuple[ObjectKey, str], QuotaBalance] = field(default_factory=dict)
    _reservations: dict[ObjectKey, dict[str, ReservationBalance]] = field(default_factory=dict)

    def quota(self, account: ObjectKey, model: str) -> QuotaBalance | None:
        """Return the account's free quota on a model, if the ledger granted one."""
        return self._quotas.get((account, model))

    def reservation(self, service: ObjectKey, uid: str) -> ReservationBalance | None:
        """Return the reservation of a service with this uid, if the ledger has one."""
        return self._reservations.get(service, {}).get(uid)

    def orphans(self, service: ObjectKey, uid: str = "") -> list[ReservationBalance]:
        """Return the reservations under a service's name that still buy terms and have another uid."""
        return [
            found
            for found in self._reservations.get(service, {}).values()
            if found.uid != uid and found.buying is not Buying.NOTHING
        ]

    def services(self) -> Iterator[ObjectKey]:
        """Iterate over every service that ever reserved."""
        return iter(list(self._reservations))

    def update_quotas(self, quotas: Iterable[QuotaBalance]) -> Iterator[tuple[QuotaBalance, bool]]:
        """Apply the quotas of a page; yields each newer one, and whether it began, ended or was renewed."""
        for quota in quotas:
            key = (quota.account, quota.model)
            known = self._quotas.get(key)
            if known is not None and known.sequence >= quota.sequence:
                continue
            self._quotas[key] = quota
            turned = known is None or (known.used < known.total) != (quota.used < quota.total)
            yield quota, turned

    def update_reservations(self, reservations: Iterable[ReservationBalance]) -> Iterator[ObjectKey]:
        """Apply the reservations of a page; yields the service of each newer one."""
        for reservation in reservations:
            of_service = self._reservations.setdefault(reservation.service, {})
            known = of_service.get(reservation.uid)
            if known is None or known.sequence < reservation.sequence:
                of_service[reservation.uid] = reservation
                yield reservation.service

    def forget(self) -> None:
        """Drop everything: the ledger was replaced, or restored from an older copy."""
        self._quotas.clear()
        self._reservations.clear()
