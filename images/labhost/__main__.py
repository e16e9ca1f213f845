"""`python -m images.labhost`: build, up, down, status, ssh, push, put, console, reboot, trial, doctor."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from images.labhost import build, commands, doctor, lab, machine, trial, watch


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m images.labhost", description=__doc__)
    todo = parser.add_subparsers(dest="command", required=True)
    todo.add_parser("build", help="make the image if the cache lacks it; prints its folder")
    up = todo.add_parser("up", help="boot the lab")
    up.add_argument("--shape", choices=sorted(machine.SHAPES), default="everyday")
    up.add_argument("--n", type=int, choices=(1, 2), default=1, help="two are joined by a wire, uplink0")
    up.add_argument("--probe", type=Path, help="a disk image to attach read-only as serial 'probe'")
    todo.add_parser("down", help="end the lab")
    todo.add_parser("status", help="what runs, and the stand-ins")
    on_one_host = {
        "ssh": "run a command", "push": "bring this checkout's code", "put": "copy a file",
        "console": "show the console's end", "reboot": "reboot the kernel",
    }  # fmt: skip
    for name, text in on_one_host.items():
        one = todo.add_parser(name, help=text)
        one.add_argument("--host", type=int, default=1)
        if name == "ssh":
            one.add_argument("words", nargs=argparse.REMAINDER, metavar="CMD")
        if name == "put":
            one.add_argument("file", type=Path)
            one.add_argument("dest")
        if name == "console":
            one.add_argument("--lines", type=int, default=40)
    todo.add_parser("doctor", help="what this machine has for building and testing")
    tried = todo.add_parser("trial", help="start and end a VFIO tenant many times; prints survival and times")
    tried.add_argument("--cycles", type=int, default=20)
    return parser


def _ssh(host: lab.LabHost, words: list[str]) -> int:
    """Hand the terminal to ssh itself, so that output streams and ^C works."""
    if host.running() is None:
        raise lab.LabError("no lab host runs: start it with `python -m images.labhost up`")
    return subprocess.run([*host.ssh_argv(), *words], cwd=host.folder, check=False).returncode


def _run(options: argparse.Namespace) -> int:
    host = lab.LabHost(getattr(options, "host", 1))
    match options.command:
        case "build":
            print(build.build(_say).folder)
        case "up":
            numbers = range(1, options.n + 1)
            commands.up(_say, shape=options.shape, numbers=numbers, probe_image=options.probe)
            print(commands.status())
        case "down":
            commands.down(_say)
        case "status":
            print(commands.status())
        case "ssh":
            return _ssh(host, options.words)
        case "push":
            print(f"{commands.SOURCE}: {'new' if commands.push(host) else 'as it was'}")
        case "put":
            host.put(options.file, options.dest)
        case "console":
            tail = watch.read_tail(host.folder / "console.log").splitlines()[-options.lines :]
            print("\n".join(tail))
        case "reboot":
            print(f"back after {host.reboot():.0f} s")
        case "doctor":
            return doctor.main()
        case "trial":
            return trial.main(commands.up(_say)[0], options.cycles)
    return 0


def main() -> int:
    """Run one command; a failure of the lab is one line and status 1."""
    try:
        return _run(_parser().parse_args())
    except lab.TOLD as exc:
        print(f"labhost: {exc}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
