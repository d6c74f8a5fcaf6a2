# SPDX-License-Identifier: Apache-2.0
"""`python -m opendino`, the same as the command; torchrun needs a module."""

from opendino.cli.main import entry

if __name__ == "__main__":
    entry()
