"""`python -m workers.counting`: a CountSpec on standard input, a CountResult on standard output, both as JSON."""

import os
import sys

from app.contracts.counting import CountSpec


def main() -> int:
    """Reads, counts, answers."""
    # Where torch is installed, transformers imports it, which would be two thirds of the time; nothing here needs it.
    sys.modules["torch"] = None  # type: ignore[assignment]
    # Libraries that print something must not print it into the answer.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answer:
        os.dup2(2, 1)
        from workers.counting.run import count

        answer.write(count(CountSpec.model_validate_json(sys.stdin.read())).model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
