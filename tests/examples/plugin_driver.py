"""Runs commands in one process and prints what each gave; then checks the plug-in's numbers. Not a test by itself.

python plugin_driver.py COMMANDS      # JSON: list of argument lists; prints the list of [code, out, err]
"""

import contextlib
import io
import json
import sys

from dyneq.cli.main import run


def call(arguments: list[str]) -> list[object]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments)
    return [code, out.getvalue(), err.getvalue()]


if __name__ == "__main__":
    print(json.dumps([call(arguments) for arguments in json.loads(sys.argv[1])]))
