"""How code in documentation is found and run; pages themselves run where what they need is."""

from __future__ import annotations

import pytest
from code_blocks import Block, blocks_of, run_page

PAGE = """# Page

```bash
echo one > file
```
<!-- file: sub/module.py -->
```python
x = 1
```

<!-- not run: it would take a day -->
```bash
exit 1
```

```text
exit 1
```

```python
import pathlib
print(pathlib.Path("file").read_text() + pathlib.Path("sub/module.py").read_text())
```
"""


def test_blocks_are_found_with_their_lines():
    assert blocks_of(PAGE)[:2] == [
        Block(4, "bash", "echo one > file\n"),
        Block(8, "python", "x = 1\n", "sub/module.py"),
    ]
    assert len(blocks_of(PAGE)) == 3


def test_page_is_run_block_by_block_in_one_directory(tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    assert run_page(tmp_path / "page.md", tmp_path) == ["", "one\nx = 1\n\n"]


def test_block_that_fails_is_named_with_what_it_said(tmp_path):
    (tmp_path / "page.md").write_text("Text\n\n```bash\necho why; exit 3\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:4: exit 3\nwhy"):
        run_page(tmp_path / "page.md", tmp_path)


def test_page_without_code_is_an_error(tmp_path):
    (tmp_path / "page.md").write_text("Text\n")
    with pytest.raises(AssertionError, match="no code"):
        run_page(tmp_path / "page.md", tmp_path)
