"""Run the command line: ``python -m invarlock``."""

from invarlock.cli import main

raise SystemExit(main())
