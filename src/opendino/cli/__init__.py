# SPDX-License-Identifier: Apache-2.0
"""The command `opendino`: one file a verb, each with SUMMARY, USAGE and `main(argv) -> int`; start with `main.py`.

A verb imports what it needs inside its functions: `opendino --help` answers before torch could be imported.
"""

from types import MappingProxyType

VERBS = MappingProxyType(
    {
        "demo": "opendino.cli.demo",
        "curate": "opendino.cli.curate",
        "pretrain": "opendino.cli.pretrain",
        "adapt": "opendino.cli.adapt",
        "distill": "opendino.cli.distill",
        "eval": "opendino.cli.eval",
        "embed": "opendino.cli.embed",
        "search": "opendino.cli.search",
        "view": "opendino.cli.view",
        "export": "opendino.cli.export",
        "serve": "opendino.cli.serve",
        "convert": "opendino.cli.convert",
        "config": "opendino.cli.config",
        "doctor": "opendino.cli.doctor",
    }
)
"""Verb -> module, in the order of the help page; modules are imported when asked for."""
