"""`gradoscope trials`: its options, and what it calls."""

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, redirect_stdout
from functools import partial
from typing import Any

__all__ = ["add"]

CODES = """exit codes:
  0  done                            3  a training cannot be run
  1  --prove: a proof fails          4  a result cannot be written
  2  wrong usage                    70  an error in gradoscope itself
                                   130  interrupted with Ctrl-C
"""


def add(commands: Any, count: Callable[[str], int], bar: Callable[[], AbstractContextManager[Any]]) -> None:
    """Add the command to a parser.

    Args:
        commands: what `add_subparsers` gave.
        count: reads a whole number of at least 1.
        bar: a context that gives a function to tell progress.
    """
    parser = commands.add_parser(
        "trials",
        help="try the diagnosis on trainings whose obstacle is known, beside threshold rules",
        description="Interrupted at any point, the same command goes on from what is there.",
        epilog=CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=count, metavar="N", help="seeds per trial (default 3, with --prove 1)")
    parser.add_argument("--half", choices=("tune", "report", "all"), default="all", help="families to tune on, to report, or all (default)")
    parser.add_argument("--only", metavar="PATTERN", help='only trials that match, such as "digits-mlp/*", or whose name holds it')
    parser.add_argument("--workers", type=count, metavar="N", help="processes on this machine (default: one per core)")
    parser.add_argument("--out", metavar="DIR", default="studies", help="where the folder trials is made (default: studies)")
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout")
    parser.add_argument("--prove", action="store_true", help="run every training with its repair and its rivals, and judge nothing")
    parser.add_argument("--list", action="store_true", help="list the trials and run nothing")
    parser.set_defaults(run=partial(_run, bar))


def _run(bar: Callable[[], AbstractContextManager[Any]], arguments: argparse.Namespace) -> int:
    import json

    from gradoscope.trials import table
    from gradoscope.trials.trial import select

    if arguments.list:
        sys.stdout.write(table.listing(select(arguments.only, arguments.half)))
        return 0
    from gradoscope.trials.run import SEEDS, examine, proofs

    options = {"half": arguments.half, "only": arguments.only, "workers": arguments.workers, "out": arguments.out}
    told: Any
    with redirect_stdout(sys.stderr), bar() as tell:
        if arguments.prove:
            told = {"proofs": proofs(seeds=arguments.seeds or 1, progress=tell, **options)}
        else:
            told = examine(seeds=arguments.seeds or SEEDS, progress=tell, **options)
    if arguments.json:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    elif arguments.prove:
        table.print_proofs(told["proofs"])
    else:
        table.print_table(told, f"{arguments.out}/trials")
    sys.stdout.flush()
    return 1 if arguments.prove and not table.proved(told["proofs"]) else 0
