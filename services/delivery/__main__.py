"""`python -m services.delivery https`: one process per transport."""

import sys

from services.delivery.app import service
from services.delivery.settings import DeliverySettings
from services.delivery.transports import TRANSPORTS
from services.platform.lifecycle import EXIT_BAD_SETTINGS, run

if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in TRANSPORTS:
        print(f"usage: python -m services.delivery TRANSPORT, one of: {', '.join(TRANSPORTS)}", file=sys.stderr)  # noqa: T201 - logging is not configured yet
        sys.exit(EXIT_BAD_SETTINGS)
    sys.exit(run(f"delivery-{name}", DeliverySettings, service(name)))
