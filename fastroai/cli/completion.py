"""`fastroai --install-completion`: completes commands and options in a shell."""

from __future__ import annotations

from cyclopts.completion.install import create_install_completion_command

from . import app

install = create_install_completion_command(app.install_completion, True)
