"""What was found: violations by kind, and the figures of a run."""

from collections import Counter

# After Jepsen's Kafka workload, in the words of this project.
KINDS = {
    "lost": "a record, row, file or mark that must be there is nowhere",
    "doubled": "something that must be there once is there twice",
    "mis-filed": "in the wrong sink, day folder or range",
    "gap": "offsets that no file claims, below a frontier that has passed them",
    "overlap": "offsets that two files claim",
    "orphan": "something that nothing accounts for",
    "frontier-regression": "the ledger stands behind what has already been done",
    "mismatch": "two places that must agree do not",
    "pending": "not yet done: the run was not drained",
}
EXAMPLES_MAX = 20


class Report:
    """Collects violations and counters; reports of several processes are merged."""

    def __init__(self):
        self.counts = Counter()
        self.examples = {kind: [] for kind in KINDS}
        self.figures = Counter()

    def violation(self, kind, text, times=1):
        if kind not in KINDS:
            raise KeyError(kind)
        self.counts[kind] += times
        if len(self.examples[kind]) < EXAMPLES_MAX:
            self.examples[kind].append(text)

    def count(self, name, by=1):
        self.figures[name] += by

    def merge(self, other):
        self.counts.update(other.counts)
        self.figures.update(other.figures)
        for kind, texts in other.examples.items():
            room = EXAMPLES_MAX - len(self.examples[kind])
            self.examples[kind].extend(texts[:room])

    @property
    def clean(self):
        return not any(self.counts.values())

    def lines(self):
        for kind in KINDS:
            total = self.counts[kind]
            if not total:
                continue
            yield f"{kind}: {total} ({KINDS[kind]})"
            for text in self.examples[kind]:
                yield f"  {kind}: {text}"
            if total > len(self.examples[kind]):
                yield f"  … and {total - len(self.examples[kind])} more"

    def violations_json(self):
        return {
            kind: {"count": self.counts[kind], "examples": self.examples[kind]}
            for kind in KINDS
            if self.counts[kind]
        }


def ranges(offsets):
    """Sorted offsets as [first, next) ranges: a thousand lost rows in a row are one line."""
    found = []
    for offset in offsets:
        if found and found[-1][1] == offset:
            found[-1][1] = offset + 1
        else:
            found.append([offset, offset + 1])
    return [tuple(pair) for pair in found]
