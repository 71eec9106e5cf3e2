"""The matrix of methods and families: every cell works, or is impossible for the reason that is given."""

import matrix
import pytest


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[matrix.Cell]:
    return matrix.matrix(tmp_path_factory.mktemp("matrix"))


@pytest.mark.parametrize("family", matrix.FAMILIES)
def test_every_method_on(family: str, cells: list[matrix.Cell]) -> None:
    column = [cell for cell in cells if cell.family == family]
    assert [cell.variant for cell in column] == list(matrix.variants())
    for cell in column:
        assert cell.reason or cell.reload <= 1e-6, cell
        assert cell.reason or cell.merge is None or (cell.holds and cell.merge <= 1e-5), cell
        assert cell.encoder_changed == (cell.variant != "Head only"), cell
    assert matrix.marks_in_readme(family) == [cell.mark for cell in column]
