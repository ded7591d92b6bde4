# Reads: the verdict and everything it rests on; a received pack
# Writes: evidence_pack/ (staged beside it, renamed when whole), verify_pack.json,
#         verify_pack.<name>.json of the pack that target verify_pack is asked about


rule build_pack:
    """Build the pack, on the machine that has the key: an allow-list of files, then signed."""
    input:
        refused_pack,
        verdict=OUT / "reports/final_verdict.json",
        rendered=of_evaluations(*PAGES),
        config=OUT / "state/config.json",
        source=OUT / "state/source_repo.json",
        environment=OUT / "state/environment.json",
        revisions=OUT / "state/model_revisions.json",
        baselines=[OUT / m.slug / "baseline.json" for m in S.models],
        presets=[
            OUT / m.slug / f"presets/calibrated_preset_{m.slug}.json" for m in S.models
        ],
        analyses=analyses,
        timings=OUT / "analysis/evaluation_optimization_summary.json",
        references=[OUT / m.slug / "runs/baseline/report.json" for m in S.models],
        tuned=[OUT / "state/tuned_edit_params.json"] if S.tuned_types() else [],
    output:
        L.packed(REPEATS),
    log:
        LOGS / "build_pack.log",
    localrule: True
    container:
        on_host
    params:
        pack=OUT / "evidence_pack",
        run=OUT,
        profile=C["profile"],
        # the key itself never reaches a parameter that is recorded, only which key it is
        signer=fingerprint_of(C["signing_key"]),
        require="--require-signature" if C["require_signature"] else "",
        code=code("evidence_pack"),
    shell:
        # a pack of an older run is replaced as a whole; the new one appears by one rename
        "rm -rf {params.pack:q} &&"
        " python -m invarlock advanced evidence-pack build {params.pack:q} --run-dir {params.run:q}"
        " --analysis {input.analyses:q} --profile {params.profile} {params.require}"
        ' ${{INVARLOCK_SIGNING_KEY:+--signing-key "$INVARLOCK_SIGNING_KEY"}}'
        " > {log:q} 2>&1"


rule packed_report:
    """A file of the pack below reports/, by its name: what lies there is known when it is built."""
    input:
        ancient(OUT / "evidence_pack/manifest.json"),
    output:
        # only looked at: it must not be removed before the job, as outputs are
        update(OUT / "evidence_pack/reports/{file}"),
    log:
        LOGS / "evidence_pack/{file}.log",
    wildcard_constraints:
        file=r"[^/].*",
    localrule: True
    container:
        on_host
    params:
        listed=OUT / "evidence_pack/checksums.sha256",
    shell:
        "test -f {output:q} || {{ echo invarlock: {output:q}: the pack holds no such file\\;"
        " what it holds is listed in {params.listed:q} | tee {log:q} >&2; exit 3; }}"


rule verify_made_pack:
    """Verify the pack of this run as a stranger would."""
    input:
        OUT / "evidence_pack/manifest.json",
    output:
        OUT / "verify_pack.json",
    log:
        LOGS / "verify_pack.log",
    localrule: True
    container:
        on_host
    params:
        pack=OUT / "evidence_pack",
        # without a key the pack is unsigned, which strict verification refuses
        options=L.verifying(own=True),
        unsigned="0" if C["signing_key"] else "1",
        code=code("evidence_pack"),
    shell:
        "INVARLOCK_ALLOW_UNVERIFIED_PROVENANCE={params.unsigned}"
        " python -m invarlock advanced evidence-pack verify {params.pack:q} {params.options}"
        " --json-out {output:q} > {log:q} 2>&1"


rule verify_pack:
    """Verify a pack that is there, received or made, every time it is asked for; makes none."""
    input:
        made_before,
    log:
        LOGS / "verify_pack.received.log",
    localrule: True
    container:
        on_host
    params:
        pack=L.named_pack,
        report=L.named_pack.resolve().with_name(f"verify_pack.{L.named_pack.name}.json"),
        options=L.verifying(own=False),
        code=code("evidence_pack"),
    shell:
        "python -m invarlock advanced evidence-pack verify {params.pack:q} {params.options}"
        " --json-out {params.report:q} 2>&1 | tee {log:q}"
