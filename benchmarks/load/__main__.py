"""The API under load, beside a bare route of the same framework in the same run.

Polling a job at concurrency 64, pages of a project's jobs with few and with very many of them, uploads beside a plain
streamed write with sha256, and hundreds of listeners to events. Every comparison is made in turn, several times, and
the ratios are medians over the rounds.

    python -m benchmarks.load --out benchmarks/results/load.json
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.conditions import conditions
from benchmarks.load.listeners import measure_listeners
from benchmarks.load.polling import measure_listing, measure_polling
from benchmarks.load.uploads import measure_uploads

PARTS = ("polling", "listing", "uploads", "listeners")


def main() -> None:
    """Measures, prints a table and writes the numbers."""
    args = _arguments()
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "polling": lambda: measure_polling(args.rounds, args.seconds),
        "listing": lambda: measure_listing((1_000, args.jobs), args.rounds, args.seconds),
        "uploads": lambda: measure_uploads(args.rounds, args.megabytes),
        "listeners": lambda: measure_listeners(args.listeners, args.events),
    }
    found: dict[str, Any] = {}
    for part in args.parts:
        print(f"measuring {part} ...", file=sys.stderr, flush=True)
        found[part] = measures[part]()
        print(_lines(part, found[part]))
    if args.out:
        known = json.loads(args.out.read_text()) if args.out.exists() else {}
        made = conditions("benchmarks.load", sys.argv[1:], threads=1).model_dump(mode="json")
        known |= {part: {**values, "conditions": made} for part, values in found.items()}
        args.out.write_text(json.dumps(known, indent=1) + "\n")


def _lines(part: str, found: dict[str, Any]) -> str:
    match part:
        case "polling":
            ours, bare = found["service"], found["bare"]
            return (
                f"polling at concurrency {found['concurrency']}: {ours['requests_per_second']:.0f} a second, p50 "
                f"{ours['p50_ms']:.0f} ms, p99 {ours['p99_ms']:.0f} ms; bare route {bare['requests_per_second']:.0f}, "
                f"{bare['p50_ms']:.0f}, {bare['p99_ms']:.0f}; {found['share']:.0%} of it (target 40 %); "
                f"lost or failed: {ours['lost_or_failed']}"
            )
        case "listing":
            few, many = found["few"], found["many"]
            return (
                f"listing with {found['jobs'][0]:,} and {found['jobs'][1]:,} jobs: p99 {few['p99_ms']:.0f} and "
                f"{many['p99_ms']:.0f} ms, ratio {found['p99_ratio']:.2f} (target 1.5); lost or failed: "
                f"{few['lost_or_failed'] + many['lost_or_failed']}"
            )
        case "uploads":
            rates, shares = found["megabytes_per_second"], found["share_of_plain"]
            return (
                f"uploads of {found['megabytes']} MB: checked file {rates['file']:.0f} MB/s ({shares['file']:.0%} of "
                f"the plain write's {rates['plain']:.0f}), part {rates['part']:.0f} MB/s ({shares['part']:.0%}); "
                "target 60 %"
            )
        case _:
            return (
                f"{found['listeners']} listeners: {found['delivered']} events delivered, {found['lost']} lost, "
                f"{found['doubled']} doubled; p50 {found['p50_seconds']} s, p99 {found['p99_seconds']} s after the "
                f"commit; the server grew by {found['server_memory_megabytes']} MB"
            )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("benchmarks.load", description=__doc__, formatter_class=_KeepLines)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each arm in a round (default 5)")
    parser.add_argument("--jobs", type=int, default=1_000_000, help="of the long list (default 1,000,000)")
    parser.add_argument("--megabytes", type=int, default=200, help="of an upload (default 200)")
    parser.add_argument("--listeners", type=int, default=500)
    parser.add_argument("--events", type=int, default=40, help="that are added to every job (default 40)")
    parser.add_argument("--out", type=Path, help="JSON file; other parts that it has stay")
    return parser.parse_args()


class _KeepLines(argparse.RawDescriptionHelpFormatter):
    """The description is laid out already."""


if __name__ == "__main__":
    main()
