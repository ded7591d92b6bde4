# Reads: every evaluation (and the records of deployable subjects) of every selected scenario and model, all runs
# Writes: reports/*.json, reports/final_verdict.txt, analysis/edit_artifact_summary.json


rule verdict:
    """Judge all evaluations; a missing one cannot be overlooked, it is an input."""
    input:
        scenarios=OUT / "state/scenarios.json",
        outcomes=judged_outcomes,
        deployable=L.deployable_records(),
    output:
        OUT / "reports/final_verdict.json",
        OUT / "reports/final_verdict.txt",
        OUT / "reports/category_summary.json",
        OUT / "reports/guard_signal_summary.json",
        OUT / "reports/guard_intervention_summary.json",
        OUT / "reports/scenario_signal_summary.json",
        OUT / "reports/verification_summary.json",
        OUT / "analysis/edit_artifact_summary.json",
    log:
        LOGS / "verdict.log",
    localrule: True
    container:
        IMAGE
    params:
        folders=lambda wc: L.evaluation_words(),
        models=each("--model", [m.model_id for m in S.models]),
        reports=OUT / "reports",
        analysis=OUT / "analysis",
        code=code("verdict"),
    shell:
        "python -m invarlock verdict --scenarios {input.scenarios:q} --evaluation {params.folders}"
        " {params.models} --out-dir {params.reports:q} --analysis-dir {params.analysis:q}"
        " > {log:q} 2>&1"
