"""Which meters are in which buckets, said as simply as can be: comparing costs time for each reading."""

from collections.abc import Collection


def simplest_classes(buckets: Collection[int], count: int) -> tuple[int, list[int]]:
    """Return the least divisor, and the remainders, by which the meters of these of `count` buckets can be told.

    Every second bucket is every second meter: one remainder is compared with, not half of the buckets.
    """
    for divisor in (number for number in range(1, count) if count % number == 0):
        remainders = sorted({bucket % divisor for bucket in buckets})
        if len(remainders) * (count // divisor) == len(buckets):
            return divisor, remainders
    return count, sorted(buckets)
