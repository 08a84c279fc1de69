"""Let a trained transformer write: python write.py CHECKPOINT "def "."""

from __future__ import annotations

import argparse

from model import SourceTransformer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("checkpoint")
parser.add_argument("begin", nargs="?", default="def ")
parser.add_argument("--length", type=int, default=400, help="characters to write (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="another one writes another text (default: %(default)s)")
args = parser.parse_args()

model = SourceTransformer.load_from_checkpoint(args.checkpoint, map_location="cpu").eval()
print(model.write(args.begin, args.length, seed=args.seed))
