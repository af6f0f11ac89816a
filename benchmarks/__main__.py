"""python -m benchmarks exactness [--width 0.5] [--rank 4] [--dash_k 8]"""

from __future__ import annotations

import argparse
import sys


def main() -> int:
    """Run a benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measurements, one command each.")
    commands = parser.add_subparsers(dest="name", required=True)
    exactness = commands.add_parser(
        "exactness", help="how far stock loaders' outputs are from the trained model's, SD- and SDXL-shaped"
    )
    exactness.add_argument("--width", type=float, default=0.5, help="share of the real channels (default: 0.5)")
    exactness.add_argument("--rank", type=int, default=4)
    exactness.add_argument("--dash_k", type=int, default=8)
    args = parser.parse_args()
    from .exactness import report

    report(args.width, args.rank, args.dash_k)
    return 0


if __name__ == "__main__":
    sys.exit(main())
