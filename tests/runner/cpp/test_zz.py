def test_build(with_rtx):
    assert with_rtx.library.exists()
