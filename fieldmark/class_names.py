"""What classes are called where people read them; competitions want the source's own names, which are often numbers."""

from collections import Counter

import polars as pl


def spoken_names(classes: pl.DataFrame) -> dict[int, str]:
    """Class id → its title, or else its name as the source writes it; titles that several share, with the name.

    Args:
        classes: a ``classes`` table.
    """
    shared = Counter(classes["title"].to_list())
    return {
        class_id: name if not title else title if shared[title] == 1 else f"{title} ({name})"
        for class_id, name, title in classes.select("class_id", "name", "title").iter_rows()
    }


def class_labels(classes: pl.DataFrame) -> dict[int, str]:
    """Class id → its spoken name, with its finest taxon before a bare number.

    Args:
        classes: a ``classes`` table.
    """
    labels = spoken_names(classes)
    for row in classes.filter(pl.col("title").fill_null("") == "").iter_rows(named=True):
        if row["name"].isdigit():
            taxa = [row[taxon] for taxon in ("genus", "family", "order", "class") if row[taxon]]
            labels[row["class_id"]] = f"{taxa[0] if taxa else 'class'} {row['name']}"
    return labels
