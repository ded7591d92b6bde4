# Reads: a finished run (run=DIR), its baseline, windows, presets and kept subjects
# Writes: <run>/sentinels/<model>/<edit>/{evaluation.report.json,verify.json}
# Do saved subjects load, measure and verify? A FAIL of the metric is a result.

from invarlock.cli.sentinels import SentinelsOptions


rule sentinels:
    """Evaluate and verify kept subjects of a finished run again, every time it is asked for."""
    log:
        LOGS / "sentinels.log",
    localrule: not ON_GPU
    container:
        IMAGE
    threads: C["threads"]
    resources:
        mem_mb=8000,
    params:
        options=L.options(SentinelsOptions),
        code=code("sentinels"),
    shell:
        "python -m invarlock advanced sentinels {params.options} 2>&1 | tee {log:q}"
