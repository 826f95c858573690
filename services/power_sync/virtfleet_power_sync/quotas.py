"""The periodic audit of quotas: what a process that died while accepting left counted is taken back."""

import structlog
from virtfleet_common.quota_audit import QuotaAudit
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.store import Store

log = structlog.get_logger()


class QuotaKeeper:
    """See the module's text."""

    def __init__(self, store: Store, settings: PowerSyncSettings) -> None:
        self._audit = QuotaAudit(store, settings.quota_audit_patience)

    async def check(self) -> None:
        """Audit every project once; what was wrong is mended and told."""
        for found in await self._audit.run():
            log.warning(
                "quota.mended",
                project_id=found.project_id,
                uncounted=len(found.uncounted),
                gone=len(found.gone),
                wrong_size=len(found.wrong_size),
                counters=dict(found.counters),
            )
