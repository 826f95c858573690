"""The periodic audit of claims: what is leaked is given back, what else is wrong is logged and counted."""

from virtfleet_common.auditor import audit
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.store import Store


class ClaimAudit:
    """See `virtfleet_common.auditor`."""

    def __init__(self, store: Store, settings: PowerSyncSettings) -> None:
        self._store = store
        self._settings = settings

    async def check(self) -> None:
        """One audit of every host."""
        await audit(self._store, grace=self._settings.audit_grace)
