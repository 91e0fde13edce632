"""`python -m services.delivery https`: one process per transport."""

import sys

import services.platform.lean_imports  # noqa: F401 - before all others

# isort: split
from services.delivery.app import service
from services.delivery.settings import DeliverySettings
from services.delivery.transports import TRANSPORTS
from services.platform.command_line import service_parser
from services.platform.lifecycle import run

ABOUT = "Sends what the export jobs of one transport are to send, and tells organizations when a job fails or recovers."

if __name__ == "__main__":
    parser = service_parser(ABOUT, DeliverySettings)
    parser.add_argument("transport", choices=list(TRANSPORTS), help="whose jobs this process works on")
    told = parser.parse_args()
    sys.exit(run(f"delivery-{told.transport}", DeliverySettings, service(told.transport), is_check=told.check_config))
