"""Numbers with their nouns, as people read them."""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural (noun + s) unless it is one: 1 meter, 2,000 meters."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
