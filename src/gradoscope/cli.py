"""The command line. It parses, calls, prints and chooses the exit code; what it calls is imported when it is needed."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from gradoscope.errors import GradoscopeError, Usage
from gradoscope.trials import command as trials

if TYPE_CHECKING:
    from gradoscope.diagnosis import Diagnosis
    from gradoscope.landscape.result import Landscape

__all__ = ["main"]

INTERRUPTED, OUT_OF_MEMORY, BUG = 130, 3, 70
CHECK = {"healthy": 0, "obstructed": 1, "undetermined": 5}
CODES = """exit codes:
  0  done                            4  a result cannot be written
  1  --check: obstructed             5  --check: undetermined
  2  wrong usage                    70  an error in gradoscope itself
  3  the training cannot be run    130  interrupted with Ctrl-C
"""
WITHOUT_CHECK = """exit codes:
  0  done                            4  a result cannot be written
  2  wrong usage                    70  an error in gradoscope itself
  3  the training cannot be run    130  interrupted with Ctrl-C
"""
TARGET = """what to diagnose:
  digits:deep-sigmoid        a problem of the catalogue (see: gradoscope list problems)
  parity:d=30,lr=0.1         the same with options
  path/to/file.py:function   a function of yours that returns a gradoscope.Training
  runs/monday                the folder of a recorded run

"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; argparse itself exits with 2 on wrong usage."""
    arguments = _parser().parse_args(argv)
    if not hasattr(arguments, "run"):
        _parser().print_help()
        return 0
    try:
        return int(arguments.run(arguments))
    except GradoscopeError as error:
        _say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _say("interrupted. Nothing that was handed over has been changed; what was recorded up to here is kept.")
        return INTERRUPTED
    except MemoryError as error:
        _say(f"out of memory{f' ({error})' if str(error) else ''}. Use a smaller batch or model, or a machine with more memory.")
        return OUT_OF_MEMORY
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        sys.stderr.close()
        return 0
    except Exception as error:  # not a mistake of the user's: the exit code must not read as a verdict
        return _unexpected(error)


def _unexpected(error: Exception) -> int:
    if type(error).__name__ == "OutOfMemoryError":
        first = str(error).partition("\n")[0]
        _say(f"out of memory on the device: {first} Use a smaller batch, a smaller model or --device cpu.")
        return OUT_OF_MEMORY
    import traceback

    traceback.print_exception(error)
    _say("this is an error in gradoscope itself. Please report it with the lines above.")
    return BUG


def _say(message: str) -> None:
    sys.stderr.write(f"gradoscope: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradoscope",
        description="Finds out, and shows, what obstructs gradient-based training.",
        epilog=CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_diagnose(commands)
    _add_landscape(commands)
    _add_study(commands)
    trials.add(commands, _count, _bar)
    listing = commands.add_parser("list", help="list the problems, studies, obstacles and remedies that there are")
    listing.add_argument("kind", nargs="?", choices=("problems", "studies", "obstacles", "remedies"), help="only these")
    listing.set_defaults(run=_list)
    schema = commands.add_parser("schema", help="print the JSON Schema of what --json prints")
    kinds = ("diagnosis", "landscape", "claims")
    schema.add_argument(
        "kind", nargs="?", choices=kinds, default="diagnosis", help="whose: diagnose's (default), landscape's, study's claims"
    )
    schema.set_defaults(run=_schema)
    return parser


def _add_diagnose(commands: Any) -> None:
    parser = commands.add_parser(
        "diagnose",
        help="say what obstructs a training, and what removes it",
        description=TARGET,
        epilog=CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="TARGET", help="what to diagnose, see above")
    parser.add_argument("--steps", type=_count, metavar="N", help="optimizer steps, instead of the training's own")
    parser.add_argument("--seed", type=_seed, metavar="S", help="seed of everything random (default 0, or the recorded run's)")
    parser.add_argument("--device", metavar="D", help="where to train, e.g. cpu or cuda:0 (default: where the model is)")
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout (see: gradoscope schema)")
    parser.add_argument("--report", metavar="PATH", help="write a self-contained HTML page")
    parser.add_argument("--no-counterfactuals", action="store_true", help="measure only: findings stay undetermined, but it is quick")
    parser.add_argument(
        "--budget", type=_share, default=0.05, metavar="SHARE", help="measurements' share of the training's own time (default 0.05)"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 if obstructed, with 5 if undetermined")
    parser.add_argument("--record", metavar="DIR", help="record the run in this folder, to be diagnosed again later")
    parser.set_defaults(run=_diagnose)


def _add_landscape(commands: Any) -> None:
    parser = commands.add_parser(
        "landscape",
        help="draw the loss around a training's path, and answer five questions about it",
        description=TARGET.replace("what to diagnose", "whose landscape"),
        epilog=WITHOUT_CHECK,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="TARGET", help="whose landscape, see above")
    chosen = parser.add_argument_group("what to compute (default: everything)")
    chosen.add_argument("--line", action="store_true", help="the straight lines from start to end and between two solutions")
    chosen.add_argument(
        "--plane", action="append", choices=("pca", "random", "hessian", "three"), help="a surface over this plane; may be repeated"
    )
    chosen.add_argument("--view", action="store_true", help="the 3-D view of projection against residual")
    chosen.add_argument("--evidence", action="store_true", help="conditioning and noise along the run")
    chosen.add_argument("--questions", action="store_true", help="minimum, saddle, detour, bumps, canyon: answered with numbers")
    parser.add_argument("--points", type=_points, metavar="N", help="points along each side of a surface (default: what is affordable)")
    parser.add_argument("--coarse", action="store_true", help="interpolate surfaces from few points, with an estimate of the error")
    parser.add_argument("--steps", type=_count, metavar="N", help="optimizer steps, instead of the training's own")
    parser.add_argument("--seed", type=_seed, metavar="S", help="seed of everything random (default 0, or the recorded run's)")
    parser.add_argument("--device", metavar="D", help="where to train, e.g. cpu or cuda:0 (default: where the model is)")
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout (see: gradoscope schema landscape)")
    parser.add_argument("--report", metavar="PATH", help="where the HTML page goes (default landscape.html; with --json none)")
    parser.add_argument("--figures", metavar="DIR", help="write every figure as SVG and PNG into this folder")
    parser.set_defaults(run=_landscape)


def _add_study(commands: Any) -> None:
    parser = commands.add_parser(
        "study",
        help="run an experiment of a source, and say which of its claims hold",
        description="Interrupted at any point, the same command goes on from what is there.",
        epilog=CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="which one (see: gradoscope list studies), or all")
    parser.add_argument("--scale", choices=("quick", "paper"), default="quick", help="a minute (default), or the source's own setting")
    parser.add_argument("--seeds", type=_count, metavar="N", help="seeds per setting, instead of the study's own number")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=_count, metavar="N", help="processes on this machine (default: one per core)")
    where.add_argument("--dask", metavar="ADDRESS", help="a Dask scheduler, e.g. tcp://10.0.0.1:8786")
    where.add_argument("--ray", metavar="ADDRESS", help="a Ray cluster, e.g. 10.0.0.1:6379")
    parser.add_argument("--device", metavar="D", default="cpu", help="what to compute on, e.g. cuda:0 (default cpu)")
    parser.add_argument("--out", metavar="DIR", default="studies", help="each study gets a folder of its name in here (default: studies)")
    parser.add_argument(
        "--json", action="store_true", help="print the claims as one JSON document to stdout (see: gradoscope schema claims)"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 if a claim that should hold fails, or the reverse")
    parser.set_defaults(run=_study)


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from gradoscope import __version__

        sys.stdout.write(f"gradoscope {__version__}\n")  # a message of `exit` would go to stderr
        parser.exit()


def _number(text: str, kind: Callable[[str], Any], holds: Callable[[Any], bool], expected: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not holds(value):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value


def _count(text: str) -> int:
    return int(_number(text, int, lambda n: n >= 1, "a whole number of at least 1"))


def _points(text: str) -> int:
    return int(_number(text, int, lambda n: 3 <= n <= 501, "a whole number from 3 to 501"))


def _seed(text: str) -> int:
    return int(_number(text, int, lambda n: 0 <= n < 2**63, "a whole number from 0 to 2^63 - 1"))


def _share(text: str) -> float:
    return float(_number(text, float, lambda s: 0 < s <= 1, "a share above 0 and up to 1, such as 0.05"))


def _list(arguments: argparse.Namespace) -> int:
    from gradoscope.catalogue import KINDS, render

    sys.stdout.write(render([arguments.kind] if arguments.kind else KINDS))
    return 0


def _study(arguments: argparse.Namespace) -> int:
    from gradoscope import sweep
    from gradoscope.conduct import conduct, document
    from gradoscope.report.claims import print_study
    from gradoscope.study import all_studies, find
    from gradoscope.target import check_device

    studies = list(all_studies().values()) if arguments.name == "all" else [find(arguments.name)]
    check_device(arguments.device)
    where: sweep.Where = sweep.local(arguments.workers)
    if arguments.dask is not None:
        where = sweep.dask(arguments.dask)
    elif arguments.ray is not None:
        where = sweep.ray(arguments.ray)
    done = []
    for study in studies:
        with redirect_stdout(sys.stderr), _bar() as tell:
            options = {"seeds": arguments.seeds, "where": where, "device": arguments.device, "out": arguments.out}
            done.append(conduct(study, arguments.scale, progress=tell, **options))
        if not arguments.json:
            print_study(done[-1])
    if arguments.json:
        import json

        sys.stdout.write(json.dumps(document([claim for one in done for claim in one.claims]), indent=2) + "\n")
    sys.stdout.flush()
    return 1 if arguments.check and any(one.surprises for one in done) else 0


def _schema(arguments: argparse.Namespace) -> int:
    import json

    from gradoscope.report.schema import load_schema

    sys.stdout.write(json.dumps(load_schema(arguments.kind), indent=2) + "\n")
    return 0


def _diagnose(arguments: argparse.Namespace) -> int:
    from gradoscope.target import check_writable

    if arguments.report is not None:
        check_writable(arguments.report)  # before the long work, and again when it is written
    with redirect_stdout(sys.stderr):  # what the user's code prints must not get into the document
        diagnosis = _work(arguments)
    if arguments.json:
        sys.stdout.write(diagnosis.to_json() + "\n")
    else:
        from gradoscope.report.terminal import print_diagnosis

        print_diagnosis(diagnosis)
    sys.stdout.flush()
    if arguments.report is not None:
        diagnosis.save_html(arguments.report)
        _say(f"the report is in {arguments.report}")
    return CHECK[diagnosis.verdict] if arguments.check else 0


def _work(arguments: argparse.Namespace) -> "Diagnosis":
    from dataclasses import replace

    from gradoscope.target import check_device, is_run, open_run, record, resolve

    check_device(arguments.device)
    options: dict[str, Any] = {
        "counterfactuals": not arguments.no_counterfactuals,
        "budget": arguments.budget,
        "device": arguments.device,
    }
    if is_run(arguments.target):
        if arguments.steps is not None or arguments.record is not None:
            raise Usage("--steps and --record belong to a training; a recorded run has its own steps and folder.")
        recorded = open_run(arguments.target)
        if arguments.seed is not None:
            options["seed"] = arguments.seed
        from gradoscope.diagnose import diagnose_run

        with _progress() as progress:
            return diagnose_run(recorded, progress=progress, **options)
    options["seed"] = seed = arguments.seed or 0
    training = resolve(arguments.target, seed=seed)
    if arguments.steps is not None:
        training = replace(training, steps=arguments.steps)
    if arguments.record is not None:
        options["record"] = record(arguments.record, arguments.target, training, seed)
    from gradoscope.diagnose import diagnose

    with _progress() as progress:
        return diagnose(training, progress=progress, **options)


def _landscape(arguments: argparse.Namespace) -> int:
    from gradoscope.target import check_writable

    page = arguments.report or (None if arguments.json else "landscape.html")
    if page is not None:
        check_writable(page)
    with redirect_stdout(sys.stderr):
        found = _explored(arguments)
    if arguments.json:
        sys.stdout.write(found.to_json() + "\n")
    else:
        from gradoscope.report.landscape import print_landscape

        print_landscape(found)
    sys.stdout.flush()
    if arguments.figures is not None:
        found.save_figures(arguments.figures)
        _say(f"the figures are in {arguments.figures}")
    if page is not None:
        found.save_html(page)
        _say(f"the page is in {page}")
    if found.interrupted:
        _say("interrupted. What was measured up to here is kept.")
    return INTERRUPTED if found.interrupted else 0


def _explored(arguments: argparse.Namespace) -> "Landscape":
    from gradoscope.landscape.run import PARTS, explore, training_of
    from gradoscope.target import check_device

    check_device(arguments.device)
    chosen = [*(arguments.plane or ()), *(p for p in ("line", "view", "evidence", "questions") if getattr(arguments, p))]
    training, seed = training_of(arguments.target, seed=arguments.seed, steps=arguments.steps)
    options = {"seed": seed, "device": arguments.device, "points": arguments.points, "coarse": arguments.coarse}
    with _progress() as progress:
        return explore(training, parts=chosen or PARTS, progress=progress, keep_interrupted=True, **options)


@contextmanager
def _bar() -> Iterator[Callable[[str, float, float], None]]:
    """A bar on stderr with the time left; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty(), speed_estimate_period=600
    ) as bar:
        task = bar.add_task("starting", total=None)

        def tell(text: str, done: float, total: float) -> None:
            bar.update(task, description=text, completed=done, total=max(total, 1e-9))

        yield tell


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr that goes away at the end; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("starting", total=1.0)

        def progress(text: str, done: float) -> None:
            bar.update(task, description=text, completed=min(max(done, 0.0), 1.0))

        yield progress


if __name__ == "__main__":
    sys.exit(main())
