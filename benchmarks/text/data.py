"""Ham and spam in three parts, split by groups of near-duplicates and threads, as rows of tokens.

``python -m benchmarks.text.data`` fetches and checks the e-mails and prints what they hold.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from benchmarks.fashion.data import Data, Split
from benchmarks.text import files, mails
from dyncompile.errors import DyncompileError

TOKENS = 32
"""Tokens that the network sees; shorter mails are padded, longer ones cut."""
PER_GROUP = 2
"""Mails that are taken of a group of near-duplicates or of a thread: no thread outweighs the rest."""
SIZES = {"test": 1000, "validation": 300, "train": 800}
_SPLIT_SEED = 0


class Mails(Data):
    """Every part holds words [N, 32] (token numbers, 0 pads) and labels [N]: 1 is spam."""

    def heads(self, train: int, validation: int, test: int) -> Mails:
        """The first mails of every part, which are in random order."""
        return Mails(self.train.head(train), self.validation.head(validation), self.test.head(test))

    @property
    def training_set(self) -> TensorDataset:
        """What `dyncompile.fit` reads."""
        return TensorDataset(self.train.images, self.train.labels)


def load(tokenizer: Any, archive: Path | None = None) -> Mails:
    """All three parts, the same in every run.

    Raises:
        DyncompileError: the package of e-mails is missing or damaged.
    """
    parts = split([mails.parse(file) for file in files.read(archive or files.locate())])
    return Mails(**{name: _tokenized(found, tokenizer) for name, found in parts.items()})


def split(found: Sequence[mails.Mail]) -> dict[str, list[mails.Mail]]:
    """Whole groups are dealt out in random order; every part has the same share of spam.

    Raises:
        DyncompileError: there are too few e-mails.
    """
    groups: dict[int, list[mails.Mail]] = {}
    for mail, group in zip(found, mails.groups(found), strict=True):
        groups.setdefault(group, []).append(mail)
    draw = random.Random(_SPLIT_SEED)
    waiting = [draw.sample(one, min(PER_GROUP, len(one))) for one in groups.values()]
    draw.shuffle(waiting)
    spam = sum(mail.spam for group in waiting for mail in group) / sum(map(len, waiting))
    streams = {kind: iter([group for group in waiting if group[0].spam == kind]) for kind in (True, False)}
    parts: dict[str, list[mails.Mail]] = {}
    for name, size in SIZES.items():
        wanted = {True: round(size * spam), False: size - round(size * spam)}
        parts[name] = [mail for kind, count in wanted.items() for mail in _filled(streams[kind], name, count)]
        draw.shuffle(parts[name])
    return parts


def _filled(groups: Iterator[list[mails.Mail]], name: str, size: int) -> Iterator[mails.Mail]:
    """Mails of whole groups; what the last one has too many is left out of all parts."""
    while size > 0:
        group = next(groups, None)
        if group is None:
            raise DyncompileError(f"there are too few e-mails: {name} lacks {size}")
        yield from group[:size]
        size -= len(group)


def _tokenized(found: Sequence[mails.Mail], tokenizer: Any) -> Split:
    given = tokenizer(
        [mail.text for mail in found],
        padding="max_length",
        truncation=True,
        max_length=TOKENS,
        return_tensors="pt",
    )
    words: Tensor = given["input_ids"]
    return Split(words * given["attention_mask"], torch.tensor([int(mail.spam) for mail in found]))


def main() -> int:
    """Fetch, check, and say what there is. Returns the exit status."""
    try:
        found = [mails.parse(file) for file in files.read(files.locate())]
    except DyncompileError as error:
        print(error, file=sys.stderr)
        return 2
    groups = Counter(mails.groups(found))
    print(f"{len(found):,} e-mails, {sum(m.spam for m in found):,} spam, in {len(groups):,} groups of near-")
    print(f"duplicates and threads; the largest: {', '.join(str(n) for _, n in groups.most_common(5))}")
    for name, part in split(found).items():
        print(f"{name}: {len(part):,}, of which {sum(mail.spam for mail in part) / len(part):.1%} spam")
    return 0


if __name__ == "__main__":
    sys.exit(main())
