"""Digest of the documents at a path or URI: summaries, shared topics and open points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from fastroai import FastroAgent, Pipeline, PipelineConfig, StepContext, step
from flows.documents import Document, Documents, read_documents
from flows.item_keys import item_key
from flows.models import CONCURRENT_CALLS, choose_model

CHARACTERS_PER_DOCUMENT = 40_000
"""What of a document is sent for its summary."""
CHARACTERS_TOGETHER = 80_000
"""What is sent of all documents at once, an equal share of each."""


class DigestInput(BaseModel):
    """What to digest."""

    model_config = ConfigDict(extra="forbid")  # a misspelt field must not mean the default

    documents: str = Field(
        default="docs",
        description="A file, a folder (.txt, .md, .rst, .html), file://…, https://… or "
        "s3://bucket/prefix. A relative path starts where the run does; FASTROAI_READABLE of the "
        "worker says what else may be read.",
    )
    focus: str = Field(
        default="",
        max_length=500,
        description="What the reader wants to know. Empty: the essentials.",
    )
    max_documents: int = Field(
        default=20, ge=1, le=500, description="How many documents are read at most."
    )


class Summary(BaseModel):
    """A document in short."""

    summary: str = Field(description="The essentials, in two or three sentences.")
    key_points: list[str] = Field(
        description="The most important statements, at most five.", max_length=8
    )


class Topics(BaseModel):
    """What the documents are about."""

    topics: list[str] = Field(description="Topics, the most important first.", max_length=12)


class OpenPoints(BaseModel):
    """What the documents leave to be done or answered."""

    questions: list[str] = Field(
        description="What is open: unknown, unclear, or yet to be decided.", max_length=12
    )
    actions: list[str] = Field(
        description="What a reader must, should or has to do.", max_length=12
    )


class Overview(BaseModel):
    """All documents in short."""

    headline: str = Field(description="One sentence.")
    overview: str = Field(description="The essentials, in one paragraph.")


class DigestedDocument(BaseModel):
    """One document of the digest."""

    name: str
    characters: int
    characters_read: int
    """Fewer than `characters` where the document is longer than what is sent of one."""
    summary: str
    key_points: list[str]


class Digest(BaseModel):
    """The result."""

    headline: str
    overview: str
    topics: list[str]
    open_questions: list[str]
    actions: list[str]
    documents: list[DigestedDocument]
    left_out: list[str]


_MODEL = choose_model()
_RULES = (
    "Use only what the documents say. Keep their names and figures. Write in the language of the "
    "documents."
)

summariser = FastroAgent(
    model=_MODEL,
    name="summariser",
    output_type=Summary,
    system_prompt=f"You summarise one document. {_RULES}",
)
indexer = FastroAgent(
    model=_MODEL,
    name="indexer",
    output_type=Topics,
    system_prompt=f"You name what documents are about. {_RULES}",
)
reviewer = FastroAgent(
    model=_MODEL,
    name="reviewer",
    output_type=OpenPoints,
    system_prompt=(
        f"You look for open questions and for actions that documents ask of their reader. {_RULES}"
    ),
)
editor = FastroAgent(
    model=_MODEL,
    name="editor",
    output_type=Overview,
    system_prompt=(
        f"You write the overview of a digest from the summaries of its documents. {_RULES}"
    ),
)


@step(retries=0)
def read(context: StepContext[Any]) -> Documents:
    """Read the documents, in a thread; what can't be read ends the run here, before any request."""
    return read_documents(context.get_input("documents"), context.get_input("max_documents"))


@step
def documents(context: StepContext[Any]) -> list[Document]:
    """What is summarised one by one."""
    return context.get_dependency("read", Documents).read


@step(cache_policy="inputs")
async def summarise(context: StepContext[Any]) -> Summary:
    """One document in short: asked for again where its text, or the reader's question, changed."""
    document: Document = context.item
    task = f"Summarise the document {document.name}."
    prompt = _prompt(context, task, document.text[:CHARACTERS_PER_DOCUMENT])
    return (await context.run(summariser, prompt)).output


@step(cache_policy="inputs")
async def topics(context: StepContext[Any]) -> Topics:
    """What the documents share."""
    prompt = _prompt(context, "Name the topics of these documents.", _together(context))
    return (await context.run(indexer, prompt)).output


@step(cache_policy="inputs")
async def open_points(context: StepContext[Any]) -> OpenPoints:
    """What the documents leave open."""
    prompt = _prompt(context, "List open questions and actions.", _together(context))
    return (await context.run(reviewer, prompt)).output


@step(cache_policy="inputs")
async def digest(context: StepContext[Any]) -> Digest:
    """Join the parts under an overview."""
    documents = context.get_dependency("read", Documents)
    parts: Sequence[Summary] = context.get_dependency("summaries")
    shared = context.get_dependency("topics", Topics)
    left = context.get_dependency("open_points", OpenPoints)
    material = "\n\n".join(
        "\n".join(
            [f"{document.name}: {part.summary}", *(f"- {point}" for point in part.key_points)]
        )
        for document, part in zip(documents.read, parts, strict=True)
    )
    overview = (
        await context.run(
            editor, _prompt(context, "Write the overview of these documents.", material)
        )
    ).output
    return Digest(
        headline=overview.headline,
        overview=overview.overview,
        topics=shared.topics,
        open_questions=left.questions,
        actions=left.actions,
        documents=[
            DigestedDocument(
                name=document.name,
                characters=len(document.text),
                characters_read=min(len(document.text), CHARACTERS_PER_DOCUMENT),
                summary=part.summary,
                key_points=part.key_points,
            )
            for document, part in zip(documents.read, parts, strict=True)
        ],
        left_out=documents.left_out,
    )


def _prompt(context: StepContext[Any], task: str, material: str) -> str:
    focus = context.get_input("focus")
    return f"{task}{f' The reader asks: {focus}' if focus else ''}\n\n{material}"


def _together(context: StepContext[Any]) -> str:
    documents = context.get_dependency("read", Documents)
    share = CHARACTERS_TOGETHER // len(documents.read)
    return "\n\n".join(
        f"# {document.name}\n\n{document.text[:share]}" for document in documents.read
    )


pipeline: Pipeline[None, DigestInput, Digest] = Pipeline(
    "document-digest",
    steps={
        "read": read,
        "documents": documents,
        "summaries": summarise.map(
            over="documents",
            key=lambda document: item_key(document.name),
            max_concurrency=CONCURRENT_CALLS,
        ),
        "topics": topics,
        "open_points": open_points,
        "digest": digest,
    },
    dependencies={
        "documents": ["read"],
        "topics": ["read"],
        "open_points": ["read"],
        "digest": ["read", "summaries", "topics", "open_points"],
    },
    config=PipelineConfig(retries=2, retry_delay=2.0, timeout=600),
    input_type=DigestInput,
)
