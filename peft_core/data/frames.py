"""Columns and rows of a data frame with exact types: pandas itself declares `frame[...]` as either."""

import pandas as pd


def column_of(frame: pd.DataFrame, name: str) -> pd.Series:
    """Return a column whose name is unique in the frame."""
    column = frame[name]
    assert isinstance(column, pd.Series)
    return column


def select_rows(frame: pd.DataFrame, mask: pd.Series) -> pd.DataFrame:
    """Return the rows where a boolean mask is true."""
    rows = frame[mask]
    assert isinstance(rows, pd.DataFrame)
    return rows
