# Reads: evaluations, the effective scenarios, benchmark files of the jobs
# Writes: analysis/{determinism_repeats,evaluation_optimization_summary}.json,
#         <model>/determinism/<scenario>/repeat_<k>/,
#         analysis/{evaluations,windows,modules}.{parquet,csv} and
#         reports/guard_value_all_guard_probe_sweep.json (only when they are asked for)
# What the evaluations show beside the verdict.

from invarlock.verdict.repeats import subject_of

SWEEP = OUT / "reports/guard_value_all_guard_probe_sweep.json"
REPEATED = subject_of(S.scenarios).id
REPEAT_FOLDERS = [
    OUT / S.models[0].slug / "determinism" / REPEATED / f"repeat_{k}"
    for k in range(1, C["repeats"] + 1)
]
REPEATS = [OUT / "analysis/determinism_repeats.json"] if REPEAT_FOLDERS else []


use rule evaluate as repeat with:
    output:
        REPEAT / "report.json",
        REPEAT / "events.jsonl",
        REPEAT / "evaluation.report.json",
        REPEAT / "runtime.manifest.json",
        REPEAT / "outcome.json",
    log:
        LOGS / "{model}/{scenario}/repeat.{run}.log",
    params:
        out=str(REPEAT),


rule determinism:
    """Compare repeated evaluations of one subject, field by field."""
    input:
        outcomes=repeated,
        reports=[folder / "evaluation.report.json" for folder in REPEAT_FOLDERS],
    output:
        OUT / "analysis/determinism_repeats.json",
    log:
        LOGS / "determinism.log",
    localrule: True
    container:
        IMAGE
    params:
        folders=[str(folder) for folder in REPEAT_FOLDERS],
        determinism=C["determinism"],
        suite=C["suite"],
        code=code("analyze"),
    shell:
        # also on the terminal: strict repeats that differ leave a file and a warning, no failed job
        "python -m invarlock advanced analyze repeats --evaluation {params.folders:q}"
        " --determinism {params.determinism} --suite {params.suite} --out {output:q}"
        " 2>&1 | tee {log:q}"


rule guard_value_sweep:
    """What each guard says about each guard's probe, on every model and run."""
    input:
        scenarios=OUT / "state/scenarios.json",
        outcomes=of_evaluations("outcome.json"),
        reports=of_evaluations("evaluation.report.json"),
    output:
        SWEEP,
    log:
        LOGS / "guard_value_sweep.log",
    localrule: True
    container:
        IMAGE
    params:
        folders=lambda wc: L.evaluation_words(),
        code=code("analyze"),
    shell:
        "python -m invarlock advanced analyze guard-value --scenarios {input.scenarios:q}"
        " --evaluation {params.folders} --out {output:q} > {log:q} 2>&1"


rule timings:
    """Sum up where the time went; a removed benchmark file causes no new measurement."""
    input:
        # of each evaluation the times themselves: outcomes that were measured again have the same bytes
        manifests=of_evaluations("runtime.manifest.json"),
    output:
        OUT / "analysis/evaluation_optimization_summary.json",
    log:
        LOGS / "timings.log",
    localrule: True
    container:
        IMAGE
    params:
        folders=lambda wc: L.evaluation_words(),
        run=OUT,
        deferred="--deferred" if C["defer_rendering"] else "",
        code=code("analyze"),
    shell:
        "python -m invarlock advanced analyze timings --evaluation {params.folders}"
        " --run-dir {params.run:q} {params.deferred} --out {output:q} > {log:q} 2>&1"


rule table:
    """A tidy table of all evaluations: a row an evaluation, a window or a module of each."""
    input:
        outcomes=of_evaluations("outcome.json"),
        reports=of_evaluations("evaluation.report.json"),
    output:
        OUT / "analysis/{table}.{format}",
    log:
        LOGS / "{table}.{format}.log",
    wildcard_constraints:
        table="evaluations|windows|modules",
        format="parquet|csv",
    localrule: True
    container:
        IMAGE
    params:
        folders=lambda wc: L.evaluation_words(),
        code=code("analyze"),
    shell:
        "python -m invarlock advanced analyze table --evaluation {params.folders}"
        " --out {output:q} > {log:q} 2>&1"
