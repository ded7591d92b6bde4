# Reads: baseline, its run, windows, one edited or damaged checkpoint
# Writes: <model>/reference.sha256
#         <model>/reports/<scenario>/run_<n>/{report.json,events.jsonl,evaluation.report.json,
#         runtime.manifest.json,outcome.json,evaluation.md,evaluation.html,verify.json}


RUN = OUT / "{model}/reports/{scenario}/run_{run}"
REPEAT = OUT / "{model}/determinism/{scenario}/repeat_{run}"  # see analysis.smk


rule reference:
    """What all evaluations of a model are compared with, in one file: a plan of thousands of them
    has one name for each in place of seven."""
    input:
        L.reference_folders("{model}"),
        # which settings were in force is recorded; a change of others does not measure again
        config=ancient(OUT / "state/config.json"),
        files=L.reference_files("{model}"),
    output:
        L.reference("{model}"),
    log:
        LOGS / "{model}/reference.log",
    priority: 40  # every evaluation waits for it
    localrule: True
    container:
        IMAGE
    params:
        code=code("provenance"),
    shell:
        "python -m invarlock advanced provenance reference --files {input.files:q} --out {output:q}"
        " > {log:q} 2>&1"


rule evaluate:
    """Measure a subject once and compare it with the baseline's run."""
    input:
        IMAGE_RECORD,
        [C["policy_pack"]] if C["policy_pack"] else [],
        L.reference("{model}"),
        subject=L.subject if L.custom else OUT / "{model}/models/{scenario}",
        metadata=L.metadata,
    output:
        RUN / "report.json",
        RUN / "events.jsonl",
        RUN / "evaluation.report.json",
        RUN / "runtime.manifest.json",
        RUN / "outcome.json",
    log:
        LOGS / "{model}/{scenario}/evaluate.{run}.log",
    priority: 30  # a subject that is evaluated makes room for the next
    retries: C["retries"]
    group:
        batch("evaluations")
    container:
        IMAGE
    threads: C["threads"]
    resources:
        mem_mb=run_mb,
        gpu=gpus,
        runtime=run_minutes,
        attempt=lambda wc, attempt: attempt,
        turn=1,
    params:
        out=str(RUN),
        subject=L.under_test,
        state=own_state,
        options=once(
            lambda wc: L.measuring(
                EvaluateOptions, wc, **L.compared_with(wc.model), **L.of_scenario(wc)
            )
        ),
        retries=C["retries"],
        image=each("--image", IMAGE_RECORD),
        code=code("evaluate", "evaluate_worker", "evaluate_record"),
    shell:
        USAGE
        + PROGRESS
        + "python -m invarlock evaluate {params.subject} {params.options}"
        " --run-number {wildcards.run} --attempt {resources.attempt} --gpus {resources.gpu}"
        # the last attempt records what it could not measure, so that the verdict can say it
        " $([ {resources.attempt} -le {params.retries} ] || echo --record-failure)"
        # one of several in a job does not fail the others, which would all be started again
        ' ${{INVARLOCK_FINISHED:+--record-failure --finished "$INVARLOCK_FINISHED"}}'
        " {params.image} --out {params.out:q} > {log[0]:q} 2>&1"


if C["defer_rendering"]:

    rule render_together:
        """All reports as pages that people read, and their re-check, in one process."""
        input:
            reports=of_evaluations("evaluation.report.json"),
            manifests=of_evaluations("runtime.manifest.json"),
        output:
            [folder / name for folder in L.evaluations for name in PAGES],
        log:
            LOGS / "render.log",
        localrule: True
        container:
            IMAGE
        params:
            reports=lambda wc: L.evaluation_words("evaluation.report.json"),
            profile=C["profile"],
            code=code("pages"),
        shell:
            "python -m invarlock advanced pages {params.reports} --profile {params.profile}"
            " > {log:q} 2>&1"

else:

    # A job for all runs of a scenario: of many runs it is the pages that there would be most jobs of.
    for runs, scenarios in L.by_runs().items():

        rule:
            """The reports of a scenario as pages that people read, and their re-check."""
            name:
                f"render_{runs}_runs" if runs > 1 else "render"
            input:
                reports=of_runs(runs, "evaluation.report.json"),
            output:
                of_runs(runs, *PAGES),
            log:
                LOGS / "{model}/{scenario}/render.log",
            wildcard_constraints:
                scenario=any_of(scenarios),
            localrule: True
            container:
                IMAGE
            params:
                profile=C["profile"],
                code=code("pages"),
            shell:
                "python -m invarlock advanced pages {input.reports:q} --profile {params.profile}"
                " > {log:q} 2>&1"
