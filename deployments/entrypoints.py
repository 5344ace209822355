"""Flows that prefect.yaml deploys: each pipeline of flows/ under a name of this module."""

from __future__ import annotations

from flows.document_digest import pipeline as document_digest_pipeline
from flows.licence_review import pipeline as licence_review_pipeline
from flows.ticket_triage import pipeline as ticket_triage_pipeline

document_digest = document_digest_pipeline.to_flow(
    publish_output=True,
    description=(
        "Reads the documents at a path or URI; sums up each, names their topics and what they "
        "leave open."
    ),
)
licence_review = licence_review_pipeline.to_flow(
    publish_output=True,
    description=(
        "Reviews installed packages: licences against a policy, what those ask for, and recent "
        "changes."
    ),
)
ticket_triage = ticket_triage_pipeline.to_flow(
    publish_output=True,
    description=(
        "Triages the tickets in a file at a path or URI: category, urgency, summary and a first "
        "reply for each, in a file beside it."
    ),
)
