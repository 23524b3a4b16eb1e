"""Files one by one, and together: one original or not, and what a merge would gain."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recover._brief import Brief
from recover._text import quoted, some
from recover.containers.gguf.remote import sparing
from recover.execution.tiles import Progress
from recover.inputs.alignment import align
from recover.inputs.completion import complete
from recover.inputs.descent import ESTIMATED
from recover.inputs.metadata import metadata_warnings
from recover.inputs.open import open_models
from recover.inputs.originals.agreement import with_originals
from recover.inputs.relations import (
    ANOTHER_MODEL,
    IDENTICAL,
    PARTLY_QUANTIZED_FROM,
    ROUNDED,
    SAME_ORIGINAL,
    SOME_TENSORS_DIFFER,
    Relation,
    find_relations,
    groups,
)
from recover.inputs.repeated import is_same_file
from recover.inspect.conflicts import NOTHING_COMPARED, Conflicts, count_conflicts
from recover.inspect.files import FileReport, inspect_model
from recover.merge.expect import Expectation, drafts_of, expect_merge, expected_ratio
from recover.merge.redundant import find_redundant
from recover.merge.savings import Saving, savings

_UNLIKE = 0.2  # correlation of the weights; of different models it is next to 0


@dataclass(frozen=True, repr=False)
class Inspection(Brief):
    """What was found."""

    files: tuple[FileReport, ...]
    """In the order given."""
    relations: tuple[Relation, ...] = ()
    """Of every two files."""
    expectations: tuple[Expectation, ...] = ()
    """What a merge would give, by tensor; empty for a single file."""
    conflicts: Conflicts = NOTHING_COMPARED
    """Where they contradict each other, as all of their weights tell."""
    metadata: tuple[str, ...] = ()
    """Lines on metadata that differ, though a model runs by them."""

    def facts(self) -> Iterator[tuple[str, object]]:
        """See `recover._brief.Brief`."""
        yield "files", " + ".join(Path(each.path).name for each in self.files)
        yield "same_original", self.same_original
        yield "expected_mse_ratio", self.expected_mse_ratio

    @property
    def same_original(self) -> bool:
        """Whether all files may come from one original."""
        is_like = all(map(self._is_like, self.relations))
        return is_like and not self.conflicts.refused

    def _is_like(self, relation: Relation) -> bool:
        """Whether two files may come from one original, as a sample of each tensor tells.

        Where nothing confines the weights, files of different models do not contradict each other.
        """
        is_told = self.conflicts.is_told or relation.kind == IDENTICAL
        return relation.is_compatible and (is_told or relation.correlation > _UNLIKE)

    @property
    def groups(self) -> list[list[int]]:
        """Files (numbers from 0) that may come from one original, the largest group first."""
        return groups(len(self.files), self.relations)

    @property
    def expected_mse_ratio(self) -> float | None:
        """Expected mean square error of a merge over that of the best file.

        None if the files do not belong together, or nothing is estimated.
        """
        return expected_ratio(self.expectations) if self.same_original else None

    @property
    def is_of_use(self) -> bool:
        """Whether `recover merge` merges them: also where floats of a few tensors differ."""
        is_partly_one = all(
            self._is_like(each) or each.kind == SOME_TENSORS_DIFFER for each in self.relations
        )
        return is_partly_one and not self.conflicts.refused

    @property
    def savings(self) -> tuple[Saving, ...]:
        """What other methods are expected to save of a merge's error."""
        if not self.same_original:
            return ()
        return savings(
            (each.sources, each.n_weights, each.variance)
            for each in self.expectations
            if each.variance is not None
        )

    @property
    def identical_tensors(self) -> tuple[str, ...]:
        """Tensors that have the same bytes in all files."""
        return tuple(each.name for each in self.expectations if not any(each.duplicate_of))

    def findings(self) -> list[str]:
        """What is to be said of the files together, a line each."""
        return [*self._of_weights(), *self.metadata]

    def _of_weights(self) -> list[str]:
        """What their weights tell."""
        lines = list(dict.fromkeys(self._finding(relation) for relation in self.relations))
        if self.same_original:
            notable = [
                each
                for each in self.relations
                if each.kind in (IDENTICAL, ROUNDED, PARTLY_QUANTIZED_FROM)
            ]
            is_rounded = any(relation.kind == ROUNDED for relation in notable)
            lines = [self.conflicts.sentence(is_rounded=is_rounded), *self._sampled_conflicts()]
            return lines + [self._finding(relation) for relation in notable]
        if self.conflicts.refused:
            lines.append(self.conflicts.sentence(is_rounded=False))
        members = self.groups
        if len(members) > 1 and len(members[0]) > len(members[1]):
            odd = [self._path(i) for group in members[1:] for i in group]
            lines.append(f"does not belong to the others: {some(odd)}")
        return lines

    def _sampled_conflicts(self) -> list[str]:
        """Contradictions in tensors of which only a sample was compared."""
        whole = {each.name for each in self.expectations if each.is_compared}
        whole |= {name for each in self.relations for name in each.descended}
        names = {name: None for each in self.relations for name in each.tensors}
        found = [quoted(name) for name in names if name not in whole]
        return [f"a sample contradicts itself in {some(found)}"] if found else []

    def _path(self, number: int) -> str:
        return self.files[number].path

    def _parents(self, child: int) -> list[int]:
        """Files that one was quantized from, perhaps by way of a merge."""
        known = {each.parent for each in self.relations if each.child == child}
        return sorted(parent for parent in known if parent is not None)

    def _finding(self, relation: Relation) -> str:
        one, two = self._path(relation.first), self._path(relation.second)
        if relation.kind == IDENTICAL and one == two:
            return f"{one}: given more than once"
        if relation.kind == IDENTICAL and is_same_file(Path(one), Path(two)):
            return f"{one} and {two}: the same file"
        if relation.kind == IDENTICAL:
            return f"{one} and {two}: the same weights, byte for byte"
        if relation.kind == SAME_ORIGINAL:
            likeness = f"correlation {relation.correlation:.2f}"
            if not self._is_like(relation):
                return f"{one} and {two}: different models ({likeness})"
            return f"{one} and {two}: may come from one original, as a sample tells ({likeness})"
        if relation.kind == ROUNDED:
            rounded = two if relation.rounded == relation.second else one
            share = f"conflicts on {relation.conflict_fraction:.2%} of the weights"
            return (
                f"{one} and {two}: one original, but it seems rounded to {relation.via} before"
                f" {rounded} was quantized ({share})"
            )
        if relation.child is not None and relation.parent is not None:
            child, parent = self._path(relation.child), self._path(relation.parent)
            if relation.via == ESTIMATED:
                parents = " and ".join(self._path(i) for i in self._parents(relation.child))
                return f"{child} was made from a merge of {parents}, not from the original"
            via = f", by way of {relation.via}" if relation.via else ""
            return (
                f"{child} was quantized from {parent}{via}, not from the original: every decoded"
                " weight of the latter lies in its cell of the former"
            )
        if relation.kind == PARTLY_QUANTIZED_FROM:
            return "; ".join(
                f"{self._path(child)} was quantized from"
                f" {two if child == relation.first else one}, not from the original, in"
                f" {some([quoted(name) for name, i in relation.descended.items() if i == child])}"
                for child in sorted(set(relation.descended.values()))
            )
        if relation.kind == SOME_TENSORS_DIFFER:
            named = some([f"{quoted(name)} ({x:.1%})" for name, x in relation.tensors.items()])
            return f"{one} and {two}: one original, but not in the tensors {named}"
        share = f"conflicts on {relation.conflict_fraction:.2%} of the weights"
        if relation.kind == ANOTHER_MODEL:
            likeness = f"correlation {relation.correlation:.2f}"
            return f"{one} and {two}: different models ({share}, {likeness})"
        children = {each.child for each in self.relations}
        if known := {i for i in (relation.first, relation.second) if i in children}:
            child = self._path(min(known))
            why = f"{child} was not quantized from the original"
            return f"{one} and {two}: {share}, because {why}"
        return (
            f"{one} and {two}: one is a fine-tune of the other's model, or quantized from another"
            f" quantization of it ({share}, in {len(relation.tensors)} tensors; correlation"
            f" {relation.correlation:.4f})"
        )

    def to_json(self) -> dict[str, Any]:
        """The document that ``recover inspect --json`` prints."""
        document: dict[str, Any] = {"files": [file.to_json() for file in self.files]}
        document["together"] = None
        if self.relations:
            document["together"] = {
                "same_original": self.same_original,
                "groups": self.groups,
                "findings": self.findings(),
                "pairs": [relation.to_json() for relation in self.relations],
                "identical_tensors": list(self.identical_tensors),
                "n_compared": self.conflicts.n_compared,
                "n_conflicts": self.conflicts.n_conflicts,
                "contradicting_tensors": list(self.conflicts.refused),
                "expected_mse_ratio": self.expected_mse_ratio,
                "other_methods": [each._asdict() for each in self.savings],
                "tensors": [
                    {
                        "name": each.name,
                        "types": list(each.types),
                        "twins": list(each.duplicate_of),
                        "conflict_fraction": each.n_conflicts / each.n_weights,
                        "expected_rmse": None if each.variance is None else each.variance**0.5,
                        "expected_mse_ratio": each.mse_ratio,
                    }
                    for each in self.expectations
                ],
            }
        return document


@sparing()
def inspect_files(
    paths: Sequence[str | os.PathLike[str]],
    *,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Say what files are, how they belong together, and what merging them would gain.

    Parameters
    ----------
    paths : sequence of path-like
        GGUF files or Hugging Face folders.
    n_threads, progress : optional
        See `recover.execution.tiles`.

    Returns
    -------
    Inspection

    Raises
    ------
    GGUFError, PlanError
        If a file cannot be read, or tensors or shapes differ.
    """
    opened = open_models(paths)
    reports = tuple(inspect_model(model) for model in opened)
    if len(opened) == 1:
        return Inspection(reports)
    aligned = align(opened)
    models = with_originals(aligned.models, aligned.names, [])
    models = complete(models, aligned.names, [])
    drafts = drafts_of(replace(aligned, models=models))
    descents = {draft.name: draft.descents for draft in drafts}
    expectations = expect_merge(models, drafts, n_threads=n_threads, progress=progress)
    return Inspection(
        reports,
        find_relations(models, descents, find_redundant(models, drafts)),
        expectations,
        count_conflicts(models, drafts, expectations),
        tuple(metadata_warnings(models)),
    )
