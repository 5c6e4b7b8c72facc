"""What classes are called where people read them; submissions use the source's own names, which are often numbers."""

from collections import Counter

import polars as pl


def class_labels(classes: pl.DataFrame) -> dict[int, str]:
    """Class id → what the class is called: its title, or else its name, with its finest taxon before a bare number.

    Titles that several classes share are followed by the class's name.

    Args:
        classes: a ``classes`` table.
    """
    shared = Counter(classes["title"].to_list())
    labels = {}
    for row in classes.iter_rows(named=True):
        name, title = row["name"], row["title"]
        if title:
            labels[row["class_id"]] = title if shared[title] == 1 else f"{title} ({name})"
        elif name.isdigit():
            taxa = [row[taxon] for taxon in ("genus", "family", "order", "class") if row[taxon]]
            labels[row["class_id"]] = f"{taxa[0] if taxa else 'class'} {name}"
        else:
            labels[row["class_id"]] = name
    return labels
