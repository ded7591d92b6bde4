"""Read by every Python of a run that has this folder on its path: looks at its jobs as it was told.

While none ends, the plugin of SLURM looks ten seconds later each time, whatever
``--seconds-between-status-checks`` says. A job of the tests takes ten to twenty: most of the
time of their runs would go between its end and the next look.
"""

import sys


def _look_regularly() -> None:
    from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

    def between(executor: RemoteExecutor) -> int:
        return executor.workflow.remote_execution_settings.seconds_between_status_checks

    RemoteExecutor.next_seconds_between_status_checks = property(between, lambda *_: None)


if "snakemake" in sys.orig_argv and "slurm" in sys.orig_argv:  # the profile: it is no job
    _look_regularly()
