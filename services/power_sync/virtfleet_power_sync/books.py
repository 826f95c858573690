"""The audit of claims, done periodically and by the command `virtfleet-audit`: what is leaked is given back, what else
is wrong is logged and counted."""

import argparse
import asyncio

from virtfleet_common.auditor import as_lines, audit, audit_database
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


def main() -> None:
    """The command `virtfleet-audit`: exit code 0 if the books agree, 1 if not."""
    parser = argparse.ArgumentParser(description="Compare the claims on hosts with instances, moves and clean-ups.")
    parser.add_argument("--report-only", action="store_true", help="give nothing back")
    asked = parser.parse_args()
    settings = PowerSyncSettings()
    report = asyncio.run(audit_database(settings, grace=settings.audit_grace, is_mending=not asked.report_only))
    print(*as_lines(report), sep="\n")  # noqa: T201
    raise SystemExit(0 if report.is_clean else 1)


if __name__ == "__main__":
    main()
