"""`python -m tests.mutants`: puts one wrong line after another into a copy of the package; tests must notice each."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.mutant import ROOT
from tests.mutants.table import MUTANTS

SECONDS = 300  # what the tests of one mutant may take: one that loops for ever is killed, too


def judged(mutant):
    """ "killed", "SURVIVED", or why the tests did not run; the seconds that took; and the first test that noticed."""
    began, noticed = time.monotonic(), ""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        file = source / "torchimplicit" / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            return f"STALE: the line is there {text.count(mutant.old)} times", 0.0, ""
        file.write_text(text.replace(mutant.old, mutant.new))
        compile(file.read_text(), str(file), "exec")
        environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *options, *mutant.tests.split()]
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)
            code, last = done.returncode, (done.stdout.strip().splitlines() or [done.stderr[-200:]])[-1]
            noticed = next(iter(re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)), "")
        except subprocess.TimeoutExpired:
            code, last = 1, "hangs"
    # 0 all passed, 1 some failed; anything else: pytest did not get to run them.
    word = {0: "SURVIVED", 1: "killed"}.get(code, f"NOT RUN: {last}")
    return word, time.monotonic() - began, noticed


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--only", help="those whose file or words hold this text")
    parser.add_argument("--verbose", action="store_true", help="name the first test that noticed")
    chosen = parser.parse_args()
    mutants = [m for m in MUTANTS if not chosen.only or chosen.only in f"{m.file} {m.why} {m.new}"]
    began = time.monotonic()
    with ThreadPoolExecutor(chosen.workers) as pool:
        results = []
        for mutant, (word, seconds, noticed) in zip(mutants, pool.map(judged, mutants), strict=True):
            by = f" [{noticed}]" if chosen.verbose and noticed else ""
            print(f"{word:9} {seconds:4.0f} s  {mutant.file}: {mutant.why}{by}", flush=True)
            results.append(word)
    left = sum(word != "killed" for word in results)
    print(f"{len(results) - left} of {len(results)} killed in {time.monotonic() - began:.0f} s")
    raise SystemExit(left > 0)


if __name__ == "__main__":
    main()
