# Reads: baseline, its run, windows, one edited or damaged checkpoint
# Writes: <model>/reports/<scenario>/run_<n>/{report.json,events.jsonl,evaluation.report.json,
#         runtime.manifest.json,outcome.json,evaluation.md,evaluation.html,verify.json}


RUN = OUT / "{model}/reports/{scenario}/run_{run}"


rule evaluate:
    """Measure a subject once and compare it with the baseline's run."""
    input:
        image=IMAGE_RECORD,
        # which settings were in force is recorded; a change of others does not measure again
        config=ancient(OUT / "state/config.json"),
        baseline=OUT / "{model}/models/baseline",
        reference=OUT / "{model}/runs/baseline/report.json",
        tokens=OUT / "{model}/runs/baseline/guards.safetensors",
        windows=OUT / "{model}/windows.json",
        preset=OUT / "{model}/presets/calibrated_preset_{model}.json",
        subject=subject,
        metadata=metadata,
    output:
        RUN / "report.json",
        RUN / "events.jsonl",
        RUN / "evaluation.report.json",
        RUN / "runtime.manifest.json",
        RUN / "outcome.json",
    log:
        LOGS / "{model}/{scenario}/evaluate.{run}.log",
    benchmark:
        LOGS / "{model}/{scenario}/evaluate.{run}.benchmark.tsv"
    retries: C["retries"]
    container:
        IMAGE
    threads: C["threads"]
    resources:
        mem_mb=run_mb,
        gpu=gpus,
        runtime=run_minutes,
        attempt=lambda wc, attempt: attempt,
    params:
        out=lambda wc: str(RUN).format(**wc),
        entry=lambda wc: json.dumps(dict(S.scenario(wc.scenario).entry), sort_keys=True),
        label=lambda wc: (
            C["edit_label"]
            if wc.scenario in CUSTOM
            else (
                S.scenario(wc.scenario).error_type or S.scenario(wc.scenario).edit_type
            )
        ),
        measuring=measuring,
        replicates=C["bootstrap"]["replicates"],
        alpha=C["bootstrap"]["alpha"],
        assurance=C["assurance"],
        tail=f"--tail-mode {C['tail_mode']}" if C["tail_mode"] else "",
        limits="--kl-mean-max {kl_mean_max} --flip-fraction-max {flip_fraction_max}".format(
            **C["distribution"]
        ),
        timeout=C["timeout_minutes"],
        retries=C["retries"],
        image=[f"--image {path}" for path in IMAGE_RECORD],
        host="" if C["allow_host_execution"] else "--require-container",
        code=code("evaluate", "evaluate_worker", "evaluate_record"),
    shell:
        "python -m invarlock evaluate --baseline {input.baseline:q} --subject {input.subject:q}"
        " --baseline-report $(dirname {input.reference:q}) --windows {input.windows:q}"
        " --preset {input.preset:q} {params.tail} {params.limits} --assurance {params.assurance}"
        " {params.measuring} --scenario {params.entry:q} --edit-label {params.label:q}"
        " --edit-metadata {input.metadata:q} --run-number {wildcards.run}"
        " --replicates {params.replicates} --alpha {params.alpha}"
        " --timeout-minutes {params.timeout} --attempt {resources.attempt}"
        # the last attempt records what it could not measure, so that the verdict can say it
        " $([ {resources.attempt} -le {params.retries} ] || echo --record-failure)"
        " {params.image} {params.host} --config-record {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule render:
    """The report as pages that people read."""
    input:
        RUN / "evaluation.report.json",
    output:
        markdown=RUN / "evaluation.md",
        html=RUN / "evaluation.html",
    log:
        LOGS / "{model}/{scenario}/render.{run}.log",
    localrule: True
    container:
        IMAGE
    params:
        code=code("report"),
    shell:
        "python -m invarlock report --report {input:q} --format markdown --out {output.markdown:q}"
        " > {log:q} 2>&1 &&"
        " python -m invarlock report html --report {input:q} --out {output.html:q} >> {log:q} 2>&1"


rule verify_report:
    """Re-check a report from its own evidence; what it finds is in the file."""
    input:
        report=RUN / "evaluation.report.json",
        manifest=RUN / "runtime.manifest.json",
    output:
        RUN / "verify.json",
    log:
        LOGS / "{model}/{scenario}/verify.{run}.log",
    localrule: True
    container:
        IMAGE
    params:
        profile=C["profile"],
        code=code("verify"),
    shell:
        # exit code 1 says that the report does not pass, which is a result
        "python -m invarlock verify {input.report:q} --profile {params.profile} --runtime-provenance host"
        " --out {output:q} > {log:q} 2>&1 || [ $? -eq 1 ]"
