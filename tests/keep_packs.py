"""Build the packs that are kept for ever under ``tests/packs/``: once for each format we write.

    python tests/keep_packs.py NAME     adds tests/packs/NAME-{pass,fail,unsigned,single}

What is there is never built again, and the keys are thrown away: these packs stand for those in
the hands of others, which later versions have to verify (``test_attacks.py``).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pack_factory as packs

from invarlock.evidence.result import VerifyOptions
from invarlock.evidence.verify import verify_pack

PACKS = Path(__file__).resolve().parent / "packs"
EXPECTED = PACKS / "expected.json"
GOOD, BAD = ("noop_clean", "nan_injection"), ("noop_clean", "prune_50pct_stress")


def keep(name: str) -> None:
    """Build the four packs and add what is expected of them to the table."""
    table = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        key = packs.new_key(folder / "pack.pem")
        good = packs.write_suite(folder / "good", GOOD)
        bad = packs.write_suite(folder / "bad", BAD, packs.harmless_stress)
        one = packs.write_suite(folder / "one", GOOD[:1])  # a verdict of one evaluation
        verdict = one / "reports" / "final_verdict.json"
        report = next(one.rglob("noop_clean/run_1/evaluation.report.json"))
        build = ["advanced", "evidence-pack", "build"]
        kinds = {
            "pass": lambda out: packs.build(good, out, key=key),
            "fail": lambda out: packs.build(bad, out, key=key),
            "unsigned": lambda out: packs.build(good, out),
            "single": lambda out: packs.cli(
                [*build, str(out), "--final-verdict", str(verdict), "--report", str(report),
                 "--signing-key", str(key)]),
        }  # fmt: skip
        for kind, make in kinds.items():
            out = PACKS / f"{name}-{kind}"
            if out.exists() or make(out):
                raise SystemExit(f"{out}: exists, or was not built")
            result = verify_pack(out, VerifyOptions(allow_unsigned=True))
            table[out.name] = {
                "exit": {"plain": 5 if kind == "unsigned" else 0, "replay": REPLAYED[kind]},
                "verdict": result.verdict,
                "evidence_level": result.recomputed.evidence_level,
                "signer": result.signer,
            }
    EXPECTED.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n")


# The verdict of single reports cannot be replayed; an unsigned pack fails before that.
REPLAYED = {"pass": 0, "fail": 0, "unsigned": 5, "single": 7}

if __name__ == "__main__":
    keep(sys.argv[1])
