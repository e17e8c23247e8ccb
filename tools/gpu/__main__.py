"""`tools/gpu/run -o OUT`: everything that a GPU machine can answer, within nine minutes. See README.md beside this."""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tools.gpu.rows import FAILED, Report, count
from tools.gpu.settings import MINUTES, Settings, parts
from tools.gpu.supervisor import supervise


def main() -> int:
    arguments = _parser().parse_args()
    out = Path(arguments.out or os.environ.get("OUT") or "")
    if out == Path(""):
        _parser().error("give -o OUT, or set OUT in the environment")
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs what `finally` says
    if arguments.rehearse:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    work = Path(tempfile.mkdtemp(prefix="llm2enc-gpu-"))
    begun = float(os.environ.get("LLM2ENC_GPU_BEGUN", time.time()))  # the bash entry has installed wheels since
    carried = Path(os.environ.get("LLM2ENC_GPU_CARRIED") or Path(__file__).parent / "carried")
    settings = Settings(
        out=str(out.resolve()), work=str(work), carried=str(carried.resolve()),
        end=begun + 60 * arguments.minutes, device="cpu" if arguments.rehearse else "cuda",
        rehearse=arguments.rehearse, minutes=arguments.minutes, max_tokens=arguments.max_tokens,
        piece_mib=arguments.piece_mib, out_mib=arguments.out_mib,
        **({"shapes": tuple(arguments.shapes.split(","))} if arguments.shapes else {}),
    )  # fmt: skip
    todo = [part for part in parts(settings) if any(word in part.name for word in arguments.only.split(","))]
    report = Report(out, time.strftime("%F %T"), sys.argv[1:], [part.name for part in todo])
    try:
        supervise(todo, settings, report)
        report.facts["ended"] = f"{time.strftime('%F %T')}, after {time.time() - begun:.0f} s"
    finally:
        report.write()
        shutil.rmtree(work, ignore_errors=True)
    print((out / "report.md").read_text())
    print(count(report.rows))
    return int(any(row.status == FAILED for row in report.rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/gpu/run", description=__doc__)
    parser.add_argument("-o", "--out", help="folder for the report, the log and the trained weights; default: $OUT")
    parser.add_argument("--rehearse", action="store_true", help="everything on a CPU, with tiny shapes")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="the whole run ends by itself within these")
    parser.add_argument("--only", default="", help="parts whose name contains one of these words, by commas")
    parser.add_argument("--shapes", help="by commas: qwen3-0.6b,llama-3.2-1b,mistral-7b")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest text of the speed rows")
    parser.add_argument("--piece-mib", type=float, default=15.0, help="largest file to bring back; weights are cut")
    parser.add_argument("--out-mib", type=float, default=60.0, help="all files to bring back together")
    return parser


if __name__ == "__main__":
    sys.exit(main())
