import numpy as np

from restorevar.datamodules.degradations.sheet import contact_sheet


def test_a_row_a_kind_and_a_column_a_severity(photos):
    sheet = contact_sheet(photos[:2], ["haze", "low_light"], (0.0, 1.0), cell=(40, 60))
    assert sheet.shape[0] > 80
    assert sheet.shape[1] > 120
    cells = {(row, column): sheet[22 + row * 44 :, 22 + column * 64 :][:40, :60] for row in (0, 1) for column in (0, 1)}
    # fog is brighter than the photo, darkness darker
    assert cells[0, 1].mean() > cells[0, 0].mean()
    assert cells[1, 1].mean() < cells[1, 0].mean()


def test_one_kind_shows_every_photo(photos):
    sheet = contact_sheet(photos, ["snow"], (0.5,), cell=(30, 30))
    assert sheet.shape[0] == 22 + len(photos) * 34
    assert np.unique(sheet).size > 50
