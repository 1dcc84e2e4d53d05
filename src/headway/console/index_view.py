"""An index version as its pages show it: where it stands, in words, and what it was made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headway.config.indexes import VersionSpec
from headway.console.view import Progress, StepView, Tone
from headway.domain.display import format_seconds, format_usd
from headway.retrieval.manifest import name_embedder
from headway.storage.builds import STAGES
from headway.storage.versions import Version

_STAGES = {"snapshot": "list", "load": "load", "index": "index", "verify": "verify"}
_DOING = {
    "snapshot": "Looking through the lake for documents.",
    "load": "Loading documents.",
    "index": "Making the search index.",
    "verify": "Checking that all is there.",
}
_TONES: dict[str, Tone] = {"building": "running", "published": "good", "failed": "bad"}


@dataclass(frozen=True)
class Fact:
    """Something about a version; ``exact`` is shown as it would be written."""

    what: str
    value: str
    exact: bool = False


@dataclass(frozen=True)
class VersionView:
    """An index version as its page shows it.

    Attributes:
        version: As stored.
        state: Its state, in words.
        tone: Whether it is built, is good, or failed; waiting for what nobody searches any more.
        headline: Where it stands, in a sentence.
        reason: Why it failed, or what it waits for; empty if that is plain.
        steps: The way to being published, while it is on it.
        loaded: Per cent of the documents that are dealt with; None where that is not known.
        source: Which documents it is built over, and how.
        work: What building it took.
    """

    version: Version
    state: str
    tone: Tone
    headline: str
    reason: str
    steps: tuple[StepView, ...]
    loaded: float | None
    source: tuple[Fact, ...]
    work: tuple[Fact, ...]

    @property
    def is_over(self) -> bool:
        """Whether nothing happens any more."""
        return self.version.state != "building"


def describe_version(version: Version, *, held: bool = True) -> VersionView:
    """Say what a version's page shows.

    Args:
        version: As stored.
        held: Whether somebody is building it right now.
    """
    progress = version.progress
    building = version.state == "building"
    known = building and version.stage != "snapshot" and progress.documents
    return VersionView(
        version=version,
        state=version.state,
        tone=_TONES.get(version.state, "waiting"),
        headline=_headline(version),
        reason=_reason(version, held=held),
        steps=tuple(_steps(version)) if version.state in ("building", "failed") else (),
        loaded=round(progress.done / progress.documents * 100, 1) if known else None,
        source=tuple(_source(version.spec)),
        work=tuple(_work(version)),
    )


def count(number: int, noun: str) -> str:
    """Write how many.

    Example:
        >>> count(1, "document"), count(1200, "document")
        ('1 document', '1,200 documents')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _headline(version: Version) -> str:
    progress = version.progress
    if version.state == "building":
        if version.stage != "load":
            return _DOING[version.stage]
        return f"{progress.done:,} of {count(progress.documents, 'document')} read{_left(version)}."
    if version.state == "published" and version.spec.index.is_pinned:
        return _headline_pinned(version)
    words = {
        "published": f"{count(progress.loaded, 'document')} in {count(progress.chunks, 'passage')}.",
        "failed": f"The build failed after {count(progress.done, 'document')}.",
        "cancelled": f"The build was given up after {count(progress.done, 'document')}.",
        "dropped": "Dropped: what it held is gone, what it was made of is still known.",
    }
    return words[version.state]


def _headline_pinned(version: Version) -> str:
    found = (version.manifest or {}).get("documents")
    held = "" if found is None else f", with {count(found, 'document')} when it was found"
    return f"An index of Azure AI Search as it is{held}."


def _left(version: Version) -> str:
    """How long the rest takes, if it goes on like this."""
    progress = version.progress
    if progress.done < 20 or progress.seconds < 5:
        return ""
    seconds = progress.seconds / progress.done * (progress.documents - progress.done)
    return f", about {format_seconds(seconds)} to go" if seconds >= 1 else ""


def _reason(version: Version, *, held: bool) -> str:
    if version.problem:
        return version.problem
    if version.state == "building" and not held:
        return "nobody builds it right now: a control plane takes it up within seconds, or `headway index build` does"
    return ""


def _steps(version: Version) -> list[StepView]:
    here = STAGES.index(version.stage)
    steps = []
    for place, stage in enumerate(STAGES):
        progress: Progress = "done" if place < here else "ahead"
        if place == here:
            progress = "current" if version.state == "building" else "stopped"
        steps.append(StepView(_STAGES[stage], progress))
    return steps


def _source(spec: VersionSpec) -> list[Fact]:
    index, service = spec.index, spec.index.azure_ai_search
    lake = index.lake
    facts = []
    if service is not None:
        facts.append(Fact("Azure AI Search", service.endpoint, exact=True))
    if service is not None and index.is_pinned:
        facts.append(Fact("index there", service.index, exact=True))
        return [*facts, Fact("embedder", name_embedder(spec) if service.fields and service.fields.vector else "none")]
    facts += [Fact("lake", lake.url, exact=True), Fact("include", "  ".join(lake.include), exact=True)]
    if lake.exclude:
        facts.append(Fact("exclude", "  ".join(lake.exclude), exact=True))
    if lake.prefix:
        facts.append(Fact("prefix", lake.prefix, exact=True))
    if lake.modified_since:
        facts.append(Fact("modified since", lake.modified_since))
    facts += [
        Fact("passages", f"up to {index.chunk.tokens} tokens, {index.chunk.overlap} repeated"),
        Fact("embedder", name_embedder(spec)),
        Fact("language", index.language),
    ]
    facts += [Fact("only for " + ", ".join(groups), pattern, exact=True) for pattern, groups in index.labels]
    return facts


def _work(version: Version) -> list[Fact]:
    progress, manifest = version.progress, version.manifest or {}
    if version.spec.index.is_pinned:
        return [Fact("took", format_seconds(progress.seconds))]
    facts = [
        Fact("documents", f"{progress.loaded:,} of {progress.documents:,}"),
        Fact("left out", f"{progress.skipped:,}"),
        Fact("passages", f"{progress.chunks:,}"),
        Fact("embedded", f"{progress.embedded:,}"),
        Fact("taken over", f"{progress.reused:,}"),
    ]
    if "tokens" in manifest:
        facts.append(Fact("tokens", f"{manifest['tokens']:,}"))
    facts += [
        Fact("read", format_bytes(progress.size_bytes)),
        Fact("took", format_seconds(progress.seconds)),
        Fact("cost", "not known" if progress.cost_usd is None else format_usd(progress.cost_usd)),
    ]
    return facts


def format_bytes(size: float) -> str:
    """Write an amount of data.

    Example:
        >>> format_bytes(812), format_bytes(48_200), format_bytes(3_400_000)
        ('812 B', '48 kB', '3.4 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.1f} {unit}" if size < 10 and unit not in ("B", "kB") else f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def describe_metadata(metadata: dict[str, Any]) -> list[Fact]:
    """Write a document's metadata."""
    return [Fact(key, value if isinstance(value, str) else str(value)) for key, value in sorted(metadata.items())]
