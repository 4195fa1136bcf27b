"""`python -m workers`: a worker that takes jobs from the broker and runs them in child processes."""

import sys

from app.broker import BrokerUnavailableError
from app.logs import configure_logs
from app.settings import Settings
from workers.celery_app import Worker

if __name__ == "__main__":
    settings = Settings()
    configure_logs(settings.log_level)
    try:
        Worker(settings).run()
    except BrokerUnavailableError as error:
        sys.exit(str(error))
