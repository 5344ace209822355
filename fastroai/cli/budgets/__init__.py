"""`fastroai budgets`: the standing budgets in a ledger."""

from __future__ import annotations

from cyclopts import App

budgets = App(name="budgets", help_format="markdown")
# By their paths: none needs what another one imports.
for _name, _path, _help in (
    (
        "list",
        "listing:list_budgets",
        "List standing budgets, what is left of them, and when they will be reached.",
    ),
    (
        "set",
        "changes:set_budget",
        "Set a standing budget, or replace the one of this name.\n\n"
        "It holds at once for every process that writes to the ledger. What its window has spent "
        "counts. What is not given gets its default, also where a budget is replaced; `raise` "
        "changes the limit alone.",
    ),
    (
        "raise",
        "changes:raise_budget",
        "Give a standing budget another limit, higher or lower.\n\n"
        "Requests that wait for it go on.",
    ),
    ("remove", "changes:remove_budget", "Have a standing budget hold no longer."),
    (
        "apply",
        "files:apply_file",
        "Set the standing budgets that a file names, where they differ.\n\n"
        "The file is a list, as JSON or YAML; each budget has a name, usd, and what `set` has as "
        "options: window, zone, pipeline, deployment, tag, model, strength, at_limit, warn_at, "
        "max_request_usd. Nothing is changed if any of them is wrong.",
    ),
    (
        "automations",
        "automations:install",
        "Have Prefect's server act when a budget is reached: call a webhook, cancel the run, pause "
        "its deployment.\n\n"
        "What is already as asked for is left alone, so the command can be part of what deploys.",
    ),
):
    budgets.command(f"{__name__}.{_path}", name=_name, help=_help)
