"""`python -m workers`: a worker that takes jobs from the broker and runs them in child processes."""

import sys

from app.broker import BrokerUnavailableError
from app.settings import Settings
from workers.celery_app import Worker

if __name__ == "__main__":
    try:
        Worker(Settings()).run()
    except BrokerUnavailableError as error:
        sys.exit(str(error))
