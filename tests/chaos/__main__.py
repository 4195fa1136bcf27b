"""Kills parts of the service at random while jobs run, and prints what became of them.

python -m tests.chaos --kills 50 --seeds 0 1 --out benchmarks/results/chaos.md
"""

import argparse
import sys
import tempfile
from pathlib import Path

import typer

from benchmarks.conditions import conditions
from tests.chaos.back_ends import BACK_ENDS, POSTGRES, chaos, has_postgres
from tests.chaos.run import Outcome, table


def main() -> None:
    """Runs, prints the table and ends with 1 where anything is not as it should be."""
    parser = argparse.ArgumentParser("tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--back-ends", nargs="+", choices=BACK_ENDS, default=list(BACK_ENDS))
    parser.add_argument("--kills", type=int, default=50, help="in each run (default 50)")
    parser.add_argument("--jobs", type=int, default=9, help="at the same time (default 9; more follow)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--pause", type=float, default=3.0, help="mean seconds between kills (default 3)")
    parser.add_argument("--out", type=Path, help="Markdown file for the table, with the command that made it")
    args = parser.parse_args()
    if "postgresql" in args.back_ends and not has_postgres():
        parser.error(f"no PostgreSQL at {POSTGRES}: set TEST_POSTGRES, or give --back-ends sqlite")
    outcomes: dict[str, Outcome] = {}
    for seed in args.seeds:
        for back_end in args.back_ends:
            with (
                tempfile.TemporaryDirectory() as name,
                chaos(back_end, Path(name), seed, _tell) as run,
            ):
                outcomes[f"{back_end}, seed {seed}"] = run.run(kills=args.kills, jobs=args.jobs, mean_pause=args.pause)
    text = _text(outcomes)
    typer.echo(text)
    if args.out:
        args.out.write_text(f"{_conditions()}\n\n{text}\n")
    sys.exit(0 if all(outcome.is_clean for outcome in outcomes.values()) else 1)


def _text(outcomes: dict[str, Outcome]) -> str:
    """The table, what was killed how often, and everything that is not as it should be."""
    lines = [table([outcome.row(name) for name, outcome in outcomes.items()]), ""]
    for name, outcome in outcomes.items():
        lines.append(f"{name}: {', '.join(f'{count} {what}' for what, count in sorted(outcome.kills.items()))}  ")
        found = (outcome.lost, outcome.duplicated, outcome.stuck, outcome.wrong, outcome.left)
        lines += [f"- {line}" for part in found for line in part]
    return "\n".join(lines)


def _conditions() -> str:
    made = conditions("tests.chaos", sys.argv[1:], threads=1)
    versions = ", ".join(f"{name} {version}" for name, version in made.versions.items())
    return f"command: {made.command}\n\n{made.device}, {made.cores} cores; {versions}"


def _tell(text: str) -> None:
    typer.echo(text, err=True)


if __name__ == "__main__":
    main()
