"""Methods on families: every cell works, or is impossible for the documented reason.

All methods on BERT, a share of them on the other families; `make matrix` trains every cell.
"""

import matrix
import pytest

from benchmarks import method_matrix


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[matrix.Cell]:
    return matrix.cells_of_the_suite(tmp_path_factory.mktemp("matrix"))


@pytest.mark.parametrize("family", matrix.FAMILIES)
def test_matrix_cells_of_family_match_the_documentation(family: str, cells: list[matrix.Cell]) -> None:
    column = [cell for cell in cells if cell.family == family]
    assert [cell.variant for cell in column] == matrix.variants_of_the_suite(family)
    for cell in column:
        assert cell.reason or cell.reload <= 1e-6, cell
        assert cell.reason or cell.merge is None or (cell.holds and cell.merge <= 1e-5), cell
        assert cell.encoder_changed == (cell.variant != "Head only"), cell
    marks = method_matrix.documented_marks(family)
    assert list(marks) == list(matrix.variants())
    assert {cell.variant: cell.mark for cell in column}.items() <= marks.items()


def test_suite_cells_cover_every_variant_on_two_families() -> None:
    covered = [name for family in matrix.FAMILIES for name in matrix.variants_of_the_suite(family)]
    assert all(covered.count(name) >= 2 for name in matrix.variants())
    assert len(covered) < len(matrix.variants()) * len(matrix.FAMILIES) / 2
