# Reads: evidence_pack/, verify_pack.json
# Writes: nothing
# What a release review demands of the pack: the settings before the first job, the results after.


rule release:
    """A pack whose verdict is PASS, signed, with strict reports that were all made in the image."""
    input:
        reviewed,
    log:
        LOGS / "release.log",
    localrule: True
    container:
        on_host
    params:
        pack=OUT / "evidence_pack",
        profile=C["profile"],
        signer=L.expected_signer(),
        code=code("evidence_pack", "gate"),
    shell:
        # the verdict first: its line says what failed; then every report, strictly
        "python -m invarlock gate {params.pack:q} {params.signer} > {log:q} 2>&1 &&"
        " python -m invarlock advanced evidence-pack verify {params.pack:q} --strict --replay"
        " --report-assurance strict --profile {params.profile} {params.signer} >> {log:q} 2>&1"
