import re
import sys
from pathlib import Path

from torchimplicit.train.command.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def test_the_recipe_of_the_page_trains(tmp_path, monkeypatch):
    files = re.findall(r"^```(?:python|yaml)\n# (mine\.\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == ["mine.py", "mine.yaml"]
    for name, text in files:
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    options = {"max_epochs": 1, "limit_val_batches": 1, "enable_progress_bar": "false", "accelerator": "cpu"}
    words = [word for name, value in options.items() for word in (f"--trainer.{name}", str(value))]
    assert main(["fit", "--config", "mine.yaml", "--model.network.width", "64", *words]) == 0
    (checkpoint,) = tmp_path.glob("lightning_logs/version_0/checkpoints/*.ckpt")
    assert main(["report", str(checkpoint), "--trust", "mine"]) == 0
    assert list(tmp_path.rglob("*.html"))
