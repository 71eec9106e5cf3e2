"""The matrix of methods and families: every cell works, or is impossible for the reason that is given."""

import matrix
import pytest
from small_data import write_small_data


@pytest.mark.parametrize("family", matrix.FAMILIES)
def test_every_method_on(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp(family)
    data = write_small_data(folder / "data")
    cells = matrix.check_family(matrix.train_family(family, folder, data), folder)
    assert [cell.variant for cell in cells] == list(matrix.variants())
    for cell in cells:
        assert cell.reason or cell.reload <= 1e-6, cell
        assert cell.reason or cell.merge is None or (cell.holds and cell.merge <= 1e-5), cell
        assert cell.encoder_changed == (cell.variant != "Head only"), cell
    assert matrix.marks_in_readme(family) == [cell.mark for cell in cells]
