"""Command line of the engine's benchmark; see ``bench/README.md``."""

import argparse
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

from bench.engine.checkpoint import QWEN3_06B, SMALL, make_checkpoint, make_gguf
from bench.engine.loads import LOADS, Load
from bench.engine.peer import CONTESTANTS, DEFAULT, Contestant, Maker, Settings
from bench.engine.report import Report
from bench.engine.rival import Rival, RivalError
from bench.engine.run import Pace, Run
from bench.engine.samples import Header, Store


def main() -> None:
    """Takes the samples that are missing, then writes and prints the tables."""
    options = _parser().parse_args()
    shape, model = (SMALL, "2 layers of it") if options.small else (QWEN3_06B, "")
    model = f"Qwen3-0.6B's shape, random bfloat16 weights{', ' if model else ''}{model}"
    folder = options.cache / ("small" if options.small else "qwen3-0.6b")
    loads = [load for load in LOADS if load.name in options.loads]
    names = [name for name in CONTESTANTS if name in options.contestants]
    chosen = [c for name in names if _wanted(c := CONTESTANTS[name], options)]
    header = Header(_commit(), _machine(), model, options.threads)
    try:
        store = Store(options.out, header)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    pace = Pace(options.minutes, options.quiet, options.patience, options.tries, options.repeats)
    if not options.report:
        make_checkpoint(folder, shape)
        for contestant in chosen:
            if contestant.maker is Maker.LLAMA:
                make_gguf(folder, contestant.dtype)
        settings = Settings(str(folder), options.threads)
        _measure(store, pace, loads, chosen, settings, shape["vocab_size"])
    report = Report(store, loads, options.quiet).render()
    (options.out / "report.md").write_text(report)
    print(report)


def _measure(
    store: Store,
    pace: Pace,
    loads: list[Load],
    chosen: list[Contestant],
    settings: Settings,
    vocab: int,
) -> None:
    # Stopped contestants must not outlive the benchmark, however it is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" has it ignored
    rivals: list[Rival] = []
    try:
        for contestant in chosen:
            log = store.folder / f"{contestant.name}.log"
            try:
                rivals.append(Rival(contestant, settings, vocab, log))
            except RivalError as error:
                print(error, flush=True)
                continue
            _say(f"{contestant.name} is loaded: {rivals[-1].loaded.about}")
        Run(store, pace, _say).take(loads, rivals)
    except KeyboardInterrupt:
        _say("Interrupted; the same command goes on from here.")
    finally:
        for rival in rivals:
            rival.close()


def _say(text: str) -> None:
    print(text, flush=True)


def _wanted(contestant: Contestant, options: argparse.Namespace) -> bool:
    if contestant.maker is not Maker.OURS or options.exact is None:
        return True
    return bool(contestant.exact == options.exact)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.engine",
        description="Measures the engine beside its peers; a repeated command goes on.",
    )
    add = parser.add_argument
    add("--cache", type=Path, required=True, help="folder for the generated model (6 GB)")
    add("--out", type=Path, required=True, help="folder for samples, logs and report.md")
    names = tuple(load.name for load in LOADS)
    add("--contestants", nargs="+", choices=tuple(CONTESTANTS), default=DEFAULT)
    add("--loads", nargs="+", choices=names, default=names)
    add("--exact", action=argparse.BooleanOptionalAction, help="only this mode of ours")
    add("--repeats", type=int, help="of every load, instead of its own")
    add("--minutes", type=float, default=25.0, help="no sample begins later")
    add("--quiet", type=float, default=0.06, help="foreign share that disturbs a sample")
    add("--patience", type=float, default=20.0, help="seconds to wait for quiet, each time")
    add("--tries", type=int, default=2, help="of a disturbed sample")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--small", action="store_true", help="a model of 2 layers, to try the benchmark out")
    add("--report", action="store_true", help="only write the tables of what is in --out")
    return parser


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no commit"


def _machine() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {os.cpu_count()} CPUs"
    return platform.processor()


if __name__ == "__main__":
    main()
