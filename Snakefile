"""InvarLock: is an edited checkpoint still as good as its baseline?

config -> pinned revisions -> baseline -> windows -> baseline run -> preset -> edited and damaged
checkpoints -> evaluations -> verdict -> signed pack -> verification. Every step is a file; a repeated command
goes on where the last one stopped.
"""

from snakemake.utils import min_version

min_version("9.27.0")


include: "rules/common.smk"
include: "rules/resources.smk"
include: "rules/provenance.smk"
include: "rules/pin.smk"
include: "rules/baseline.smk"
include: "rules/calibrate.smk"
include: "rules/edit.smk"
include: "rules/tune.smk"
include: "rules/evaluate.smk"
include: "rules/deployable.smk"
include: "rules/decide.smk"
include: "rules/analysis.smk"
include: "rules/pack.smk"
include: "rules/release.smk"
include: "rules/sentinels.smk"
include: "rules/progress.smk"


rule all:
    """The verified pack (what a plain `snakemake` makes)."""
    default_target: True
    input:
        OUT / "evidence_pack/manifest.json",
        OUT / "verify_pack.json",
        OUT / "analysis/evaluation_optimization_summary.json",


rule suite:
    """Everything but the pack."""
    input:
        OUT / "reports/final_verdict.json",
        first_pages,
        OUT / "analysis/evaluation_optimization_summary.json",
        REPEATS,


rule pack:
    """The pack, signed if a key is configured."""
    input:
        OUT / "evidence_pack/manifest.json",
